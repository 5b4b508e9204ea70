//! The helper: a process of its own that keeps what the serving one gives up. It opens the files of the configuration
//! when they are wanted again or have changed, and starts the next binary. It is asked with one byte, so that who takes
//! over the serving process gets nothing from it but what the operator configured; the states of agents alone are handed
//! to it, and saved as nothing else. It speaks to no network.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::config::Settings;
use crate::os::files::PassedFiles;

/// Bytes of a message; the names of all files have to fit.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a text that is sent in parts.
const PART_BYTES: usize = MESSAGE_BYTES_MAX / 2;
/// Descriptors of a message (`SCM_MAX_FD`, unix(7)).
const DESCRIPTORS_MAX: usize = 253;

/// Of a message that came without its files.
pub(crate) const TRUNCATED: &str =
    "there are too few file descriptors for its files: raise LimitNOFILE or ulimit -n";

/// The subject of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum MessageKind {
    /// The configuration and its files, read again.
    Reload = b'r',
    /// The configuration of the last answer to a reload is gone by; it has no answer.
    Applied = b't',
    /// It is not gone by; it has no answer.
    Rejected = b'd',
    /// Files that have changed; nobody asks for it. As a question it says that they have not arrived, and has no answer.
    Changed = b'c',
    /// What `--agents-command` lists now, or why it lists nothing; nobody asks for it. As a question it says
    /// that it has not arrived, and has no answer.
    AgentsCommand = b'l',
    /// Files that have changed and do not fit together yet; nobody asks for it. The text says why.
    Unfit = b'n',
    /// The access log's file.
    Reopen = b'o',
    /// The control socket is to be found from now on.
    Announce = b'a',
    /// That of the process before is to be found again.
    Withdraw = b'w',
    /// This process serves, whatever becomes of the one before; it has no answer.
    Serving = b'v',
    /// The kernel is to count the connections of the cgroup that the text names.
    EnableEbpf = b'k',
    /// The kernel's TCP statistics.
    Stats = b'f',
    /// The network helper is to be started; the answer has the socket that it is reached by.
    NetworkHelper = b'x',
    /// What commands have set of agents, as it was saved last.
    States = b'g',
    /// It is to be saved: a part of its text, and it is good where it is the last one. The others have no answer.
    SaveStates = b'p',
    /// Listening sockets for the next binary; it has no answer.
    Sockets = b's',
    /// The next binary.
    Upgrade = b'u',
}

impl MessageKind {
    fn of(code: u8) -> Option<Self> {
        let all = [
            Self::Reload,
            Self::Applied,
            Self::Rejected,
            Self::Changed,
            Self::AgentsCommand,
            Self::Unfit,
            Self::Reopen,
            Self::Announce,
            Self::Withdraw,
            Self::Serving,
            Self::EnableEbpf,
            Self::Stats,
            Self::NetworkHelper,
            Self::States,
            Self::SaveStates,
            Self::Sockets,
            Self::Upgrade,
        ];
        all.into_iter().find(|kind| *kind as u8 == code)
    }

    /// What is logged of an answer: of success, and of failure.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Reload => ("reloaded", "reload failed, nothing has changed"),
            Self::Changed => {
                ("changed files loaded", "changed files can't be used, the old ones stay in use")
            }
            Self::Reopen => ("access log reopened", "access log can't be reopened"),
            Self::Announce => ("control socket opened", "control socket can't be opened"),
            Self::Withdraw => ("control socket handed back", "control socket can't be handed back"),
            Self::States | Self::SaveStates => {
                ("agent state set and saved", "agent state can't be saved, it holds until the process ends")
            }
            Self::AgentsCommand => {
                ("agents listed by --agents-command", "--agents-command lists nothing new")
            }
            Self::NetworkHelper => ("network helper started", "network helper can't be started"),
            Self::EnableEbpf | Self::Stats => ("eBPF statistics enabled", "eBPF statistics disabled"),
            Self::Applied | Self::Rejected | Self::Unfit | Self::Serving | Self::Sockets | Self::Upgrade => {
                ("upgraded, the new process serves", "upgrade failed, this process goes on serving")
            }
        }
    }
}

/// A question, or what came of it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: MessageKind,
    /// Whether it came to something.
    pub(super) good: bool,
    pub(super) text: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Message {
    pub(super) fn about(kind: MessageKind) -> Self {
        Self { kind, good: true, text: Vec::new(), descriptors: Vec::new() }
    }

    pub(super) fn outcome(kind: MessageKind, outcome: Result<String, String>) -> Self {
        let good = outcome.is_ok();
        let (Ok(text) | Err(text)) = outcome;
        Self { good, text: text.into_bytes(), ..Self::about(kind) }
    }

    /// The text is the files' names, each with a NUL at its end.
    pub(super) fn with_files(kind: MessageKind, files: Vec<(PathBuf, File)>) -> Self {
        let mut message = Self::about(kind);
        for (path, file) in files {
            message.text.extend_from_slice(path.as_os_str().as_bytes());
            message.text.push(0);
            message.descriptors.push(file.into());
        }
        message
    }

    pub(super) fn files(self) -> PassedFiles {
        let names =
            self.text.split(|byte| *byte == 0).map(|name| Path::new(OsStr::from_bytes(name)).to_owned());
        names.zip(self.descriptors.into_iter().map(File::from)).collect()
    }
}

/// One end between the two processes: whole messages, with descriptors. The socket keeps messages apart
/// (`SOCK_SEQPACKET`), which its type does not say.
#[derive(Debug)]
pub(super) struct HelperChannel(UnixStream);

impl HelperChannel {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    pub(super) async fn send(&self, message: &Message) -> io::Result<()> {
        let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
        if message.text.len() + 2 > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            let what = "too many files, or too long names, for one configuration";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let head = [message.kind as u8, u8::from(message.good)];
        let parts = [IoSlice::new(&head), IoSlice::new(&message.text)];
        let send = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            Ok(sendmsg(&self.0, &parts, &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(|_| ())
    }

    /// The next message; none once the other process has gone. A wait that is given up loses nothing.
    pub(super) async fn receive(&self) -> io::Result<Option<Message>> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }
}

fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    let is_cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    match &bytes[..received.bytes] {
        [] => Ok(None),
        [code, good, text @ ..] => {
            let kind = MessageKind::of(*code).ok_or_else(|| io::Error::other("no such message"))?;
            if is_cut {
                return Ok(Some(Message::outcome(kind, Err(TRUNCATED.to_owned()))));
            }
            Ok(Some(Message { kind, good: *good == 1, text: text.to_vec(), descriptors }))
        }
        [_] => Err(io::Error::other("half a message")),
    }
}

/// The name of the file that an answer to [`MessageKind::Stats`] has.
pub(crate) const STATS: &str = "stats";
/// The same of [`MessageKind::AgentsCommand`].
pub(crate) const LIST: &str = "list";
/// The same of [`MessageKind::States`].
pub(crate) const STATES: &str = "states";

/// A file that is nowhere on the disk.
pub(super) fn in_memory(text: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("dcv-splice", MemfdFlags::CLOEXEC)?);
    file.write_all(text)?;
    Ok(file)
}

/// The answer to a question.
#[derive(Debug)]
pub(crate) struct Answer {
    /// To which one.
    pub kind: MessageKind,
    /// The files that were opened, or what to tell whoever asked; or why nothing came of it.
    pub outcome: Result<Payload, String>,
}

/// The content of an answer.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Files.
    Files(PassedFiles),
    /// Something to tell.
    Text(String),
    /// A socket.
    Socket(OwnedFd),
}

/// The serving process's side of it.
#[derive(Debug)]
pub(crate) struct HelperClient(HelperChannel);

impl HelperClient {
    /// Starts the helper of these settings, whose first answer is to [`MessageKind::Reload`].
    pub(crate) fn start(settings: &Settings) -> io::Result<Self> {
        let (own, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Command::new(std::env::current_exe()?)
            .arg0(program()?)
            .arg("helper")
            .args(settings.words())
            .stdin(Stdio::from(theirs))
            .spawn()?;
        Ok(Self(HelperChannel::new(own)?))
    }

    /// Asks; each question gets one answer, in their order, unless its [`MessageKind`] says otherwise.
    pub(crate) async fn ask(&self, kind: MessageKind) -> io::Result<()> {
        self.0.send(&Message::about(kind)).await
    }

    /// Asks the kernel to count the connections of that cgroup.
    pub(crate) async fn ask_ebpf(&self, cgroup: &Path) -> io::Result<()> {
        let text = cgroup.as_os_str().as_bytes().to_vec();
        self.0.send(&Message { text, ..Message::about(MessageKind::EnableEbpf) }).await
    }

    /// Asks for the states of agents to be saved.
    pub(crate) async fn ask_save_states(&self, text: &str) -> io::Result<()> {
        let mut parts = text.as_bytes().chunks(PART_BYTES).peekable();
        while let Some(part) = parts.next() {
            let good = parts.peek().is_none();
            self.0
                .send(&Message { text: part.to_vec(), good, ..Message::about(MessageKind::SaveStates) })
                .await?;
        }
        Ok(())
    }

    /// Asks for the next binary, which is to listen on `sockets`.
    pub(crate) async fn ask_upgrade(&self, sockets: impl Iterator<Item = BorrowedFd<'_>>) -> io::Result<()> {
        let sockets = sockets.map(|socket| socket.try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        let mut sockets = sockets.into_iter().peekable();
        while sockets.peek().is_some() {
            let descriptors = sockets.by_ref().take(DESCRIPTORS_MAX).collect();
            self.0.send(&Message { descriptors, ..Message::about(MessageKind::Sockets) }).await?;
        }
        self.ask(MessageKind::Upgrade).await
    }

    /// Asks nothing any more: what is under way is given up.
    pub(crate) fn stop_asking(&self) -> io::Result<()> {
        Ok(shutdown(&self.0.0, Shutdown::Write)?)
    }

    /// The next answer. A wait that is given up loses none.
    pub(crate) async fn next(&self) -> io::Result<Answer> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the helper has ended");
        let message = self.0.receive().await?.ok_or_else(gone)?;
        let kind = message.kind;
        let text = |message: &Message| String::from_utf8_lossy(&message.text).into_owned();
        let outcome = match kind {
            _ if !message.good => Err(text(&message)),
            MessageKind::Reload
            | MessageKind::Changed
            | MessageKind::AgentsCommand
            | MessageKind::Reopen
            | MessageKind::Stats
            | MessageKind::States => Ok(Payload::Files(message.files())),
            MessageKind::NetworkHelper => {
                let socket = message.descriptors.into_iter().next();
                socket.map(Payload::Socket).ok_or_else(|| "it came without its socket".to_owned())
            }
            _ => Ok(Payload::Text(text(&message))),
        };
        Ok(Answer { kind, outcome })
    }
}

/// Where the binary is to be found, also when it has been replaced: as it was called by its path, or where it lies.
pub(super) fn program() -> io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from);
    match called.filter(|path| path.components().count() > 1) {
        Some(path) => std::path::absolute(path),
        None => std::env::current_exe(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn files_and_words_come_over_whole() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (one, other) = pair.expect("a pair");
        let (one, other) = (
            HelperChannel::new(one).expect("a line"),
            HelperClient(HelperChannel::new(other).expect("a line")),
        );
        let file = || File::open("Cargo.toml").expect("a file");
        let files = vec![(PathBuf::from("/a b"), file()), (PathBuf::from("c"), file())];
        one.send(&Message::with_files(MessageKind::Changed, files)).await.expect("room");
        one.send(&Message::outcome(MessageKind::Upgrade, Err("no".into()))).await.expect("room");
        let Answer { kind: MessageKind::Changed, outcome: Ok(Payload::Files(files)) } =
            other.next().await.expect("an answer")
        else {
            panic!("not the files")
        };
        let read = crate::os::files::Files::read(&files, Path::new("/a b")).expect("a file");
        let mut expected = Vec::new();
        file().read_to_end(&mut expected).expect("a file");
        assert_eq!(read, expected);
        let answer = other.next().await.expect("an answer");
        assert!(matches!(answer.outcome, Err(text) if text == "no"));
        drop(one);
        assert_eq!(other.next().await.expect_err("an end").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn more_files_than_fit_are_refused_before_any_is_sent() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let line = HelperChannel::new(pair.expect("a pair").0).expect("a line");
        let file = || File::open("Cargo.toml").expect("a file");
        let files = (0..=DESCRIPTORS_MAX).map(|number| (PathBuf::from(number.to_string()), file())).collect();
        let error = line.send(&Message::with_files(MessageKind::Reload, files)).await.expect_err("too many");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
