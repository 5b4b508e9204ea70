//! Programs a test starts: each leads a process group of its own, its output is kept by line, and the whole
//! group ends with the guard, also when the test panics. Nothing here sleeps for a fixed time: what is waited
//! for is a condition.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// How long a condition may take to come true: far longer than it needs, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long a program may take to end by itself before it is killed, and its output to be read to the end.
const GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer; panics, naming what was waited for, after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    let Some(answer) = within(PATIENCE, attempt) else { panic!("waited {PATIENCE:?} in vain: {what}") };
    answer
}

fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = attempt() {
            return Some(answer);
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// A running program. Dropping it ends the program and whatever it started: asked first, then killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
    grace: Duration,
}

impl Process {
    /// Starts the program without input, in a process group of its own.
    pub fn start(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} doesn't start: {error}"));
        let stdout = Lines::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::read(child.stderr.take().expect("stderr is piped"));
        Self { name, child, stdout, stderr, grace: GRACE }
    }

    /// Dropping it kills it at once.
    #[must_use]
    pub fn without_grace(mut self) -> Self {
        self.grace = Duration::ZERO;
        self
    }

    /// The whole lines printed to stdout so far.
    pub fn output(&self) -> String {
        self.stdout.text()
    }

    /// The whole lines printed to stderr so far.
    pub fn log(&self) -> String {
        self.stderr.text()
    }

    /// The process id, which is also the id of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for a condition that only the running program can bring about; panics with its output if it ends first.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut attempt: impl FnMut(&Self) -> Option<T>) -> T {
        eventually(&format!("{} {what}", self.name), || {
            let ended = self.ended();
            let answer = attempt(self);
            if let (None, Some(status)) = (&answer, ended) {
                self.settle();
                panic!("{} ended ({status}) before it {what}:\n{}{}", self.name, self.output(), self.log());
            }
            answer
        })
    }

    /// Sends a signal to the process alone, not to its group.
    pub fn signal(&self, signal: Signal) {
        signal::kill(self.id(), signal).expect("a child that was not waited for takes a signal");
    }

    /// Waits for the process to end by itself; all it printed has then been read.
    pub fn wait(&mut self) -> ExitStatus {
        let status = eventually(&format!("{} ends", self.name), || self.ended());
        self.settle();
        status
    }

    /// The same of one that takes its time.
    #[track_caller]
    pub fn wait_for(&mut self, limit: Duration) -> ExitStatus {
        let status = within(limit, || self.ended());
        let status =
            status.unwrap_or_else(|| panic!("{} does not end in {limit:?}: {}", self.name, self.output()));
        self.settle();
        status
    }

    /// The rest of what an ended program has printed; a process it left behind may hold its pipes open for longer.
    fn settle(&self) {
        within(GRACE, || (self.stdout.complete() && self.stderr.complete()).then_some(()));
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.pid().try_into().expect("a process id fits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that all of the group has ended before.
        let _ = signal::killpg(self.id(), Signal::SIGTERM);
        within(self.grace, || self.ended());
        let _ = signal::killpg(self.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The whole lines that came out of a pipe so far, collected by a thread of their own.
#[derive(Debug)]
struct Lines {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&text);
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
                collected.push_str(&String::from_utf8_lossy(&line));
                collected.push('\n');
            }
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn complete(&self) -> bool {
        self.reader.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command)
    }

    #[test]
    fn what_a_program_started_ends_with_it() {
        let mut parent = shell("sleep 1000 & echo $!; wait");
        let child = parent.until("has a child", |parent| parent.output().lines().next().map(str::to_owned));
        // A process that has ended but was not waited for has no command line.
        let command = || fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        // While it becomes another program it has none either (execve(2)).
        eventually("the child runs", || (!command().is_empty()).then_some(()));
        drop(parent);
        eventually("the child is gone", || command().is_empty().then_some(()));
    }

    #[test]
    #[should_panic(expected = "ended (exit status: 3) before it is ready:\nwhy not\n")]
    fn a_program_that_ends_instead_is_not_waited_for_and_says_why() {
        shell("echo why not; exit 3").until("is ready", |_| None::<()>);
    }
}
