//! Runs the program that lists agents (`--agents-command`): without input, capabilities or a way to gain any, and not for long.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::CommandWords;
use crate::os::sandbox;

/// For one run.
const RUN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a list.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Bytes of what it says of a failure.
const COMPLAINT_BYTES_MAX: usize = 1024;

/// What came of a run: the list, or why there is none.
type Listed = Result<Vec<u8>, String>;

/// The program, and when it is run.
#[derive(Default)]
pub(super) struct AgentsCommand {
    wanted: Option<(CommandWords, Duration)>,
    due: Option<Instant>,
    running: Option<JoinHandle<Listed>>,
    known: Option<Listed>,
}

impl AgentsCommand {
    /// Runs that one from now on; at once, where it is another one.
    pub(super) fn set(&mut self, wanted: Option<(CommandWords, Duration)>) {
        if wanted != self.wanted {
            self.stop();
            self.due = wanted.is_some().then(Instant::now);
            self.wanted = wanted;
        }
    }

    /// Whatever it lists next is news.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// Runs none any more.
    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        (self.wanted, self.due, self.known) = (None, None, None);
    }

    /// The next list that is another one than before, or the next failure. A wait that is given up loses nothing.
    pub(super) async fn next(&mut self) -> Listed {
        loop {
            let (Some((command, interval)), Some(due)) = (&self.wanted, self.due) else {
                return std::future::pending().await;
            };
            if self.running.is_none() {
                tokio::time::sleep_until(due).await;
            }
            let running = self.running.get_or_insert_with(|| tokio::spawn(run(command.words.clone())));
            let listed = running.await.unwrap_or_else(|error| Err(error.to_string()));
            (self.running, self.due) = (None, Some(Instant::now() + *interval));
            if self.known.as_ref() != Some(&listed) {
                self.known = Some(listed.clone());
                return listed;
            }
        }
    }
}

/// Ends what it was started for, and all that this has started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn run(words: Vec<String>) -> Listed {
    let program = words.first().cloned().unwrap_or_default();
    let failed = |error: &dyn std::fmt::Display| format!("{program}: {error}");
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg("exec-unprivileged").arg("--").args(&words).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in
        ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]
    {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let _group = Group(pid);
    let (list, complaint) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let (list, complaint, status) =
            tokio::join!(read(list, LIST_BYTES_MAX + 1), read(complaint, COMPLAINT_BYTES_MAX), child.wait());
        Ok::<_, io::Error>((list?, complaint?, status?))
    };
    match tokio::time::timeout(RUN_TIMEOUT, run).await {
        Err(_) => Err(failed(&format!("it did not end within {} s", RUN_TIMEOUT.as_secs()))),
        Ok(Err(error)) => Err(failed(&error)),
        Ok(Ok((_, complaint, status))) if !status.success() => Err(failed(&complaint_of(status, &complaint))),
        Ok(Ok((list, ..))) if list.len() > LIST_BYTES_MAX => Err(failed(&"its list is too long")),
        Ok(Ok((list, ..))) => Ok(list),
    }
}

/// As much as is looked at; what follows is read too, or the program would wait.
async fn read(from: Option<impl AsyncRead + Unpin>, max: usize) -> io::Result<Vec<u8>> {
    let Some(mut from) = from else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    (&mut from).take(max as u64).read_to_end(&mut text).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(text)
}

/// The last line that it has written, as far as a terminal can show it.
fn complaint_of(status: ExitStatus, complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let line: String = line.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.is_empty() { status.to_string() } else { format!("{status}: {line}") }
}

/// Becomes that program, without capabilities and without a way to gain any. Comes back only where it can't.
pub(crate) fn exec_unprivileged(program: &[std::ffi::OsString]) -> io::Result<()> {
    let [program, arguments @ ..] = program else { return Err(io::ErrorKind::InvalidInput.into()) };
    sandbox::give_up_privileges()?;
    Err(std::process::Command::new(program).args(arguments).exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_complaint_is_its_last_line_without_what_a_terminal_would_obey() {
        let status = std::process::Command::new("/bin/sh").args(["-c", "exit 3"]).status().expect("a shell");
        assert_eq!(complaint_of(status, b"one\ntw\x1bo\n\n"), "exit status: 3: tw o");
        assert_eq!(complaint_of(status, b""), "exit status: 3");
    }

    #[tokio::test]
    async fn nothing_is_run_that_nobody_wants() {
        let mut command = AgentsCommand::default();
        command.set(Some((CommandWords { words: shell("true") }, Duration::from_secs(1))));
        command.stop();
        assert!(tokio::time::timeout(Duration::from_millis(50), command.next()).await.is_err());
    }
}
