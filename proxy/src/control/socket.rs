//! The control socket: how an operator's commands reach the process that runs, and how what came of them gets back. One
//! line each way on a Unix socket that only the same user and root can connect to; no client of the proxy is near it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::umask;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

/// Commands that are heard at a time; the others wait.
pub(super) const CONCURRENT_MAX: usize = 8;
/// Bytes of a command.
const COMMAND_BYTES_MAX: u64 = 2048;
/// How long a command may take to be said, and its answer to be taken.
const IO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long whoever asks waits for what comes of it: longer than an upgrade may take.
const ANSWER: Duration = Duration::from_mins(2);
/// How long answers have to get to whoever asked, at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Before a good answer; anything else is before a bad one.
const GOOD: &str = "ok ";

/// A command of an operator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ControlCommand {
    /// The configuration and its files are to be read again.
    Reload,
    /// The access log is to be opened again.
    Reopen,
    /// The next binary is to take over.
    Upgrade,
    /// How it is, for people.
    Status,
    /// The same for programs: a [`ProcessStatus`](crate::observe::status::ProcessStatus) as JSON.
    Stats,
    /// The same without the kernel's account, which is the helper's to read.
    OwnStats,
    /// The agents, as JSON ([`AgentsReport`](crate::control::fleet::AgentsReport)).
    Agents,
    /// The open sessions, as JSON.
    Sessions,
    /// The last five minutes of the session that the argument names, as JSON.
    History,
    /// What sources of agents have said last, as text, for the next process.
    Lists,
    /// The states of agents that commands have set, as text, for the next process.
    States,
    /// The agent that the argument names keeps its users and takes no others.
    Drain,
    /// It takes users again.
    Undrain,
    /// It takes no users.
    Off,
    /// `/health?ready` is 503 from now on.
    DrainProxy,
    /// It is 200 again.
    UndrainProxy,
    /// The sessions that the argument names, a filter as JSON, are to end; the answer is how many there are.
    End,
}

impl ControlCommand {
    const ALL: [(&str, Self); 17] = [
        ("reload", Self::Reload),
        ("reopen", Self::Reopen),
        ("upgrade", Self::Upgrade),
        ("status", Self::Status),
        ("stats", Self::Stats),
        ("own-stats", Self::OwnStats),
        ("agents", Self::Agents),
        ("sessions", Self::Sessions),
        ("history", Self::History),
        ("lists", Self::Lists),
        ("states", Self::States),
        ("drain", Self::Drain),
        ("undrain", Self::Undrain),
        ("off", Self::Off),
        ("end", Self::End),
        ("drain-proxy", Self::DrainProxy),
        ("undrain-proxy", Self::UndrainProxy),
    ];

    fn word(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, command)| *command == self).map_or("", |(word, _)| word)
    }

    /// Whether it changes nothing, so that a process that stops answers it too.
    pub(super) fn is_question(self) -> bool {
        use ControlCommand::{Agents, Lists, OwnStats, Sessions, States, Stats, Status};
        matches!(self, Agents | Lists | OwnStats | Sessions | States | Stats | Status)
    }

    fn takes_argument(self) -> bool {
        matches!(self, Self::Drain | Self::Undrain | Self::Off | Self::End | Self::History)
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, command)| command)
    }
}

impl fmt::Display for ControlCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The result of a command, as text.
pub(super) type Outcome = Result<String, String>;

/// A command that is waited for.
pub(super) struct ControlRequest {
    pub(super) command: ControlCommand,
    /// What it is about; empty where it needs nothing.
    pub(super) argument: String,
    /// Where what comes of it goes.
    pub(super) answer: oneshot::Sender<Outcome>,
}

/// The socket of one process among those that were started for `path`.
pub(super) fn of_process(path: &Path, process: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{process}"));
    name.into()
}

/// The socket that `path` leads to.
pub(super) fn linked(path: &Path) -> Option<PathBuf> {
    let to = fs::read_link(path).ok()?;
    let process = to.to_str()?.rsplit('.').next()?.parse().ok()?;
    Some(of_process(path, process)).filter(|own| own.file_name() == Some(to.as_os_str()))
}

/// Nothing but such a link is ever replaced at `path`.
pub(super) fn check(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) if linked(path).is_none() => {
            let other = "there is something else; remove it, or give another --control";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, other))
        }
        _ => Ok(()),
    }
}

/// Listens for this process. An error where another one does, unless it hands over to this one.
pub(super) fn bind(path: &Path, is_successor: bool) -> io::Result<UnixListener> {
    check(path)?;
    if !is_successor && is_listened_to(path) {
        let taken = "another dcv-splice is reached there; stop it, or give this one another --control";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, taken));
    }
    let own = of_process(path, std::process::id());
    remove_socket(&own)?;
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(own);
    umask(before);
    bound
}

/// Removes what a process has left at `path`, if anything; an error where that is no socket.
pub(super) fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => {
            let other = format!("{} is no socket; remove it, or give another --control", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, other))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// One whose queue is full is there too, and is not waited for (connect(2), `EAGAIN`).
pub(super) fn is_listened_to(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let connected = socket.and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

/// The listener for commands.
pub(super) struct ControlServer {
    task: JoinHandle<()>,
    places: Arc<Semaphore>,
}

impl ControlServer {
    /// Hears commands from now on.
    pub(super) fn begin(listener: UnixListener, commands: mpsc::Sender<ControlRequest>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(CONCURRENT_MAX));
        let task = tokio::spawn(hear(listener, commands, places.clone()));
        Ok(Self { task, places })
    }

    /// Hears no more, and lets those who asked have their answers.
    pub(super) async fn end(self) {
        self.task.abort();
        let all = u32::try_from(CONCURRENT_MAX).unwrap_or(u32::MAX);
        // Who has said nothing so far is not waited for.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.places.acquire_many(all)).await;
    }
}

async fn hear(
    listener: tokio::net::UnixListener,
    commands: mpsc::Sender<ControlRequest>,
    places: Arc<Semaphore>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(reason = &*error.to_string(), "control socket: accept failed");
                tokio::time::sleep(IO_TIMEOUT).await;
                continue;
            }
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let commands = commands.clone();
        tokio::spawn(async move {
            let _place = place;
            // Whoever asked has gone: there is nobody to tell.
            let _ = tokio::time::timeout(ANSWER, handle(stream, &commands)).await;
        });
    }
}

async fn handle(
    mut stream: tokio::net::UnixStream,
    commands: &mpsc::Sender<ControlRequest>,
) -> io::Result<()> {
    let mut word = String::new();
    let mut said = BufReader::new((&mut stream).take(COMMAND_BYTES_MAX));
    tokio::time::timeout(IO_TIMEOUT, said.read_line(&mut word)).await??;
    let (name, argument) = word.trim_end().split_once(' ').unwrap_or((word.trim_end(), ""));
    let command = ControlCommand::of(name);
    let command = command.filter(|command| argument.is_empty() || command.takes_argument());
    let outcome = match command {
        None => Err("there is no such command".to_owned()),
        Some(command) => {
            let (answer, answered) = oneshot::channel();
            // Where nobody takes it, the other end is dropped.
            let _ = commands.send(ControlRequest { command, argument: argument.to_owned(), answer }).await;
            answered.await.unwrap_or_else(|_| Err("it is stopping".to_owned()))
        }
    };
    let (before, text) = match &outcome {
        Ok(text) => (GOOD, text),
        Err(text) => ("", text),
    };
    tokio::time::timeout(IO_TIMEOUT, stream.write_all(format!("{before}{text}").as_bytes())).await?
}

/// Tells the process that runs what is wanted, and waits for what comes of it.
pub(super) async fn ask(path: &Path, command: ControlCommand, argument: &str) -> Outcome {
    let told = |error: io::Error| format!("{}: {error}: does it run, with this --control?", path.display());
    let said = tokio::time::timeout(ANSWER, inquire(path, command, argument)).await;
    let answer = said.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(told)?;
    match answer.strip_prefix(GOOD) {
        Some(text) => Ok(text.to_owned()),
        None if answer.is_empty() => Err("it ended before it answered".to_owned()),
        None => Err(answer),
    }
}

async fn inquire(path: &Path, command: ControlCommand, argument: &str) -> io::Result<String> {
    let mut stream = tokio::net::UnixStream::connect(path).await?;
    stream.write_all(format!("{} {argument}\n", command.word()).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The sockets of all processes that were started for `path` and listen, first the one that it leads to.
pub(super) fn all(path: &Path) -> Vec<PathBuf> {
    let all = [path.to_owned()].into_iter().chain(others(path));
    all.filter(|socket| is_listened_to(socket)).collect()
}

/// The sockets of processes that were started for `path`, but for the one that it leads to; the latest first.
fn others(path: &Path) -> Vec<PathBuf> {
    let linked = linked(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()));
    let prefix = path.file_name().map(|name| format!("{}.", name.to_string_lossy())).unwrap_or_default();
    let process = |name: OsString| name.to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok();
    let mut processes: Vec<_> = names.filter_map(process).collect();
    processes.sort_unstable_by(|one, other| other.cmp(one));
    let sockets = processes.into_iter().map(|process| of_process(path, process));
    sockets.filter(|socket| Some(socket) != linked.as_ref()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_that_accepts_nobody_is_there_still_and_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let other = of_process(&path, 1);
        symlink("control.1", &path).expect("a link");
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a socket");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&other).expect("a path")).expect("a folder");
        rustix::net::listen(&listener, 0).expect("a socket");
        for _ in 0..3 {
            let error = bind(&path, false).expect_err("another one is there");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
        // Whose queue is full by now.
        let waiting: Vec<_> = (0..2).map(|_| is_listened_to(&path)).collect();
        assert_eq!(waiting, [true, true]);
        assert_eq!(all(&path), [path.as_path()]);
        drop(listener);
        // One that has ended without tidying up.
        assert!(all(&path).is_empty());
        bind(&path, false).expect("nobody is there");
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let own = of_process(&path, std::process::id());
        fs::write(&own, "notes").expect("room");
        let error = bind(&path, false).expect_err("something else is there");
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(fs::read(&own).expect("a file"), b"notes");
    }
}
