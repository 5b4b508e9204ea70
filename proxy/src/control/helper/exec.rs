//! Handing over to the next binary. It is started as nobody's child, so that whoever supervises services takes it for
//! its own, with the listening sockets of this one by the protocol of socket activation (`sd_listen_fds(3)`).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Settings;

/// How long the next one has until it serves.
const READY: Duration = Duration::from_mins(1);
/// The first descriptor that is handed over (`sd_listen_fds(3)`).
const FIRST: i32 = 3;
/// Names the process that hands over, and those that handed over before it, the latest first.
const PREDECESSORS: &str = "DCV_SPLICE_PREDECESSORS";
/// Processes that are remembered; most of them have ended.
const PREDECESSORS_MAX: usize = 32;
/// Of the process that hands over, not of the next one (`sd_listen_fds(3)`, `sd_watchdog_enabled(3)`).
const OF_ONE_PROCESS: [&str; 3] = ["LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Starts the program, and waits until it serves. Gives its process id.
pub(super) async fn start_next(
    program: &Path,
    settings: &Settings,
    sockets: Vec<OwnedFd>,
    predecessor: u32,
) -> Result<String, String> {
    let failed = |error: io::Error| format!("{}: {error}", program.display());
    access(program, Access::EXEC_OK).map_err(|error| failed(error.into()))?;
    let (own, theirs) = tokio::net::UnixStream::pair().map_err(failed)?;
    let theirs = theirs.into_std().and_then(|theirs| theirs.set_nonblocking(false).map(|()| theirs));
    start(program, settings, sockets, predecessor, theirs.map_err(failed)?).map_err(failed)?;
    match tokio::time::timeout(READY, hear(own)).await {
        Ok(Ok(process)) => Ok(process),
        Ok(Err(_)) => Err("the new process ended before it could serve: its log says why".to_owned()),
        Err(_) => Err(format!("the new process did not serve within {} s", READY.as_secs())),
    }
}

fn start(
    program: &Path,
    settings: &Settings,
    sockets: Vec<OwnedFd>,
    predecessor: u32,
    line: UnixStream,
) -> io::Result<()> {
    let former = std::env::var(PREDECESSORS).unwrap_or_default();
    let all = [predecessor.to_string()].into_iter().chain(former.split_whitespace().map(str::to_owned));
    let all: Vec<_> = all.take(PREDECESSORS_MAX).collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg("exec").arg(program).args(settings.words()).stdin(Stdio::from(OwnedFd::from(line)));
    command.env("LISTEN_FDS", sockets.len().to_string()).env(PREDECESSORS, all.join(" "));
    for name in OF_ONE_PROCESS {
        command.env_remove(name);
    }
    let mapping = |(child_fd, parent_fd)| FdMapping { parent_fd, child_fd };
    command.fd_mappings((FIRST..).zip(sockets).map(mapping).collect()).map_err(io::Error::other)?;
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("it can't be started")) }
}

/// Starts the network helper; gives the socket that it is reached by. It has no other way to this process.
pub(super) fn start_network_helper(program: &Path) -> io::Result<(Child, OwnedFd)> {
    let (own, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(program)
        .arg("network-helper")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    command.env_clear();
    Ok((command.spawn()?, own.into()))
}

/// Waits for the word of the next one, and answers it.
async fn hear(mut line: tokio::net::UnixStream) -> io::Result<String> {
    let mut word = String::new();
    (&mut line).take(16).read_to_string(&mut word).await?;
    let process: u32 = word.trim_end().parse().map_err(io::Error::other)?;
    line.write_all(b"\n").await?;
    Ok(process.to_string())
}

/// Starts a program with this process's own standard input and sockets, and does not wait for it.
pub(crate) fn exec(program: &[OsString]) -> io::Result<()> {
    let [program, arguments @ ..] = program else { return Err(io::ErrorKind::InvalidInput.into()) };
    Command::new(program).args(arguments).spawn().map(drop)
}

/// The processes that have handed over, the latest first; none where the program was not started by another one.
pub(super) fn predecessors() -> io::Result<Option<Vec<u32>>> {
    let Ok(processes) = std::env::var(PREDECESSORS) else { return Ok(None) };
    let processes = processes.split_whitespace().map(str::parse).collect::<Result<_, _>>();
    processes.map(Some).map_err(io::Error::other)
}

/// The process that hands over to this one.
pub(crate) struct Predecessor {
    /// Its process id, and those of its own predecessors.
    pub processes: Vec<u32>,
    line: UnixStream,
}

impl Predecessor {
    /// The one that the environment names.
    pub(crate) fn from_env() -> io::Result<Option<Self>> {
        let Some(processes) = predecessors()? else { return Ok(None) };
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Some(Self { processes, line }))
    }

    /// The process that hands over.
    pub(crate) fn process(&self) -> u32 {
        self.processes.first().copied().unwrap_or_default()
    }

    /// Fails where this process is not waited for any more; what has begun can be left as it is then.
    pub(crate) fn waits(&self) -> io::Result<()> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.line, &mut [0; 1], flags) {
            Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is not waited for any more")),
        }
    }

    /// Says that this process serves. Fails where it is not waited for any more.
    pub(crate) fn take_over(mut self) -> io::Result<()> {
        self.line.set_read_timeout(Some(READY))?;
        writeln!(self.line, "{}", std::process::id())?;
        self.line.shutdown(Shutdown::Write)?;
        self.line.read_exact(&mut [0])
    }
}
