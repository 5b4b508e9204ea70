//! Lines on their way to a log, of which the outside decides when it takes them: a disk, a pipe, a terminal. A thread of
//! their own writes them, and nobody ever waits for it: what does not fit into a bounded queue is dropped and counted.
//! The target can be changed while a write to the former one is blocked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::os::seccomp;

/// Bytes of lines that wait to be written; further lines are dropped. About 20,000 requests of an access log.
pub(crate) const WAITING_BYTES_MAX: usize = 4 << 20;
/// Bytes that are written at a time, in whole lines; a longer line is written alone.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a write to a former target may take before another thread begins with the next one. Until then lines stay in
/// their order, and none is torn where both targets are one file.
const HANDOVER: Duration = Duration::from_secs(1);
/// How long the last lines have to be written when the program ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Threads of one log, with those that stand in a write that is blocked. With all of them blocked, lines wait for the first
/// write that ends.
const THREADS_MAX: usize = 8;

/// Where lines go.
#[derive(Debug)]
pub enum Target {
    /// Nowhere.
    Off,
    /// The standard output or the standard error output.
    Standard(File),
    /// A file.
    File(File),
}

impl Target {
    /// A standard stream; a descriptor of its own, so that nobody meets a lock that a blocked write holds.
    pub fn standard(stream: impl AsFd) -> io::Result<Self> {
        Ok(Self::Standard(stream.as_fd().try_clone_to_owned()?.into()))
    }

    fn is_same(&self, other: &Self) -> bool {
        // Each log has one standard stream.
        matches!((self, other), (Self::Off, Self::Off) | (Self::Standard(_), Self::Standard(_)))
    }

    fn file(&self) -> Option<&File> {
        match self {
            Self::Off => None,
            Self::Standard(file) | Self::File(file) => Some(file),
        }
    }
}

/// A log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// There are lines, another target, or an end; or a write has ended.
    news: Condvar,
    /// Lines that were dropped, and of how many of them the owner was told.
    dropped: AtomicU64,
    told: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Whole lines.
    chunks: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    target: Arc<Target>,
    /// When it became the target.
    since: Instant,
    /// The thread that writes; any other one ends once its write has.
    writer: usize,
    /// The target that the writer is in a write to.
    writing: Option<Arc<Target>>,
    threads: usize,
    started: usize,
    /// Who waits for news: nobody is woken for nothing, which would be a system call per line.
    idle: usize,
    is_ending: bool,
}

impl State {
    /// The writer is in a write to a target that is one no longer.
    fn is_writing_to_former(&self) -> bool {
        self.writing.as_ref().is_some_and(|target| !Arc::ptr_eq(target, &self.target))
    }

    fn push(&mut self, line: &[u8]) -> bool {
        if self.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            return false;
        }
        self.waiting_bytes += line.len();
        match self.chunks.back_mut().filter(|chunk| chunk.len() + line.len() <= CHUNK_BYTES) {
            Some(chunk) => chunk.extend_from_slice(line),
            None => self.chunks.push_back(line.to_vec()),
        }
        true
    }

    fn pop(&mut self) -> Option<(Vec<u8>, Arc<Target>)> {
        let chunk = self.chunks.pop_front()?;
        self.waiting_bytes -= chunk.len();
        self.writing = Some(self.target.clone());
        Some((chunk, self.target.clone()))
    }
}

impl Log {
    /// A log that goes to `target`. Starts a thread.
    pub fn to(target: Target) -> io::Result<Self> {
        let state = State {
            chunks: VecDeque::new(),
            waiting_bytes: 0,
            target: Arc::new(target),
            since: Instant::now(),
            writer: 0,
            writing: None,
            threads: 0,
            started: 0,
            idle: 0,
            is_ending: false,
        };
        let log = Self(Arc::new(Queue {
            state: Mutex::new(state),
            news: Condvar::new(),
            dropped: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }));
        log.start_thread(&mut log.0.lock())?;
        Ok(log)
    }

    /// Takes a whole line, with its end; gives whether there is room for it.
    pub fn write(&self, line: &[u8]) -> bool {
        let mut state = self.0.lock();
        let has_room = state.push(line);
        let is_awaited = state.idle > 0;
        drop(state);
        if is_awaited {
            self.0.news.notify_all();
        }
        if !has_room {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Writes to `target` from now on, also what waits.
    pub fn change(&self, target: Target) {
        let mut state = self.0.lock();
        if state.target.is_same(&target) {
            return;
        }
        let former = std::mem::replace(&mut state.target, Arc::new(target));
        // Closing a file of another host may wait for it (close(2)), which is nobody's affair but a thread's own.
        std::thread::spawn(move || {
            seccomp::forbid_rings();
            drop(former);
        });
        state.since = Instant::now();
        if state.is_writing_to_former() {
            let started = if state.threads < THREADS_MAX {
                self.start_thread(&mut state)
            } else {
                Err(io::Error::other("writes to former logs are blocked"))
            };
            if let Err(error) = started {
                drop(state);
                tracing::warn!(
                    reason = &*error.to_string(),
                    "log lines wait for a blocked write to the former log"
                );
            }
        }
    }

    /// Lines that were dropped so far: those that found no room, and those of writes that failed.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// The same when it is time to tell: at the first line, and whenever they have become twice as many.
    pub fn untold(&self) -> Option<u64> {
        let dropped = self.dropped();
        if dropped == 0 || dropped < 2 * self.0.told.load(Ordering::Relaxed) {
            return None;
        }
        self.0.told.store(dropped, Ordering::Relaxed);
        Some(dropped)
    }

    /// Waits until all is written, for a second at the most; gives how many lines are left.
    pub fn finish(&self) -> usize {
        let mut state = self.0.lock();
        state.is_ending = true;
        self.0.news.notify_all();
        let is_busy = |state: &mut State| !state.chunks.is_empty() || state.writing.is_some();
        let wait = self.0.news.wait_timeout_while(state, END_TIMEOUT, is_busy);
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.chunks.iter().map(|chunk| lines(chunk)).sum()
    }

    /// Ends by itself where it is not needed, or no longer.
    fn start_thread(&self, state: &mut State) -> io::Result<()> {
        let (queue, number) = (self.0.clone(), state.started);
        let work = move || {
            seccomp::forbid_rings();
            queue.work(number);
        };
        std::thread::Builder::new().name("log".into()).spawn(work)?;
        state.started += 1;
        state.threads += 1;
        Ok(())
    }
}

/// Lets a log come to its end when it is dropped.
#[derive(Debug)]
pub(crate) struct Finish(pub Log);

impl Drop for Finish {
    fn drop(&mut self) {
        let left = self.0.finish();
        if left > 0 {
            tracing::warn!(left, "log lines lost at the end: the output does not take them in time");
        }
    }
}

/// Whole lines of the program's own log, which tells itself how many it has lost.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if Log::write(self, line)
            && let Some(dropped) = self.untold()
        {
            let notice = format!("dcv-splice: {dropped} lines of this log were dropped: nobody took them\n");
            Log::write(self, notice.as_bytes());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, number: usize) {
        while let Some((chunk, target)) = self.next(number) {
            let lost = target.file().map_or(0, |file| write_all(file, &chunk));
            self.dropped.fetch_add(lost, Ordering::Relaxed);
            let mut state = self.lock();
            if state.writer == number {
                state.writing = None;
            }
            drop(state);
            self.news.notify_all();
        }
        self.lock().threads -= 1;
    }

    /// Waits for what thread `number` is to write, and where to; nothing once it is not needed.
    fn next(&self, number: usize) -> Option<(Vec<u8>, Arc<Target>)> {
        let mut state = self.lock();
        loop {
            let mut limit = Duration::MAX;
            if state.writer != number {
                if !state.is_writing_to_former() {
                    return None;
                }
                limit = HANDOVER.saturating_sub(state.since.elapsed());
                if limit.is_zero() {
                    (state.writer, state.writing) = (number, None);
                    continue;
                }
            } else if let Some(next) = state.pop() {
                return Some(next);
            } else if state.is_ending {
                return None;
            }
            state.idle += 1;
            let waited = self.news.wait_timeout(state, limit);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
        }
    }
}

/// Writes as much as can be written; gives how many lines were lost.
fn write_all(mut to: &File, mut bytes: &[u8]) -> u64 {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written @ 1..) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who has the same pipe or terminal open has set it not to block (open(2), `O_NONBLOCK`).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
                if waited.is_err_and(|error| error != Errno::INTR) {
                    break;
                }
            }
            Ok(0) | Err(_) => break,
        }
    }
    lines(bytes) as u64
}

fn lines(bytes: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', bytes).count()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::path::Path;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn append(path: &Path) -> Target {
        Target::File(File::options().append(true).create(true).open(path).expect("a file"))
    }

    /// As a terminal or a pipe is that somebody else has set so.
    #[test]
    fn an_output_that_does_not_block_is_waited_for() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let line = [b"a line that is whole\n".repeat(1000), b"last\n".to_vec()].concat();
        let lines = line.repeat(10);
        let expected = lines.clone();
        let writing = std::thread::spawn(move || write_all(&File::from(writer), &lines));
        let mut seen = Vec::new();
        let mut reader = File::from(reader);
        while seen.len() < expected.len() {
            let was_finished = writing.is_finished();
            let mut bytes = [0; 4096];
            match reader.read(&mut bytes) {
                // The writer has gone.
                Ok(0) => break,
                Ok(read) => seen.extend_from_slice(&bytes[..read]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    // Nothing more will come: what is missing is lost.
                    if was_finished {
                        break;
                    }
                }
            }
        }
        assert_eq!((writing.join().expect("no panic"), seen == expected), (0, true));
    }

    /// A pipe that is full, and its reader.
    fn full_pipe() -> (File, Target) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let flags = rustix::fs::fcntl_getfl(&writer).expect("flags");
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("a pipe");
        for size in [4096, 1] {
            while rustix::io::write(&writer, &vec![b'-'; size]).is_ok() {}
        }
        rustix::fs::fcntl_setfl(&writer, flags).expect("a pipe");
        (reader.into(), Target::File(writer.into()))
    }

    fn until(what: &str, mut is_true: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_true() {
            assert!(start.elapsed() < Duration::from_mins(1), "in vain: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn line(number: usize) -> Vec<u8> {
        format!("{number} {}\n", "x".repeat(100)).into_bytes()
    }

    #[test]
    fn no_line_is_lost_or_torn_while_the_target_changes() {
        const LINES: usize = 20_000;
        let folder = tempfile::tempdir().expect("a folder");
        let path = |number: usize| folder.path().join(number.to_string());
        let log = Log::to(append(&path(0))).expect("a thread");
        for number in 0..LINES {
            assert!(log.write(&line(number)), "there is room");
            if number % 100 == 0 {
                // Each is the target again and again, as a log is that was not moved away.
                log.change(append(&path(number / 100 % 7)));
            }
            if number % 5000 == 0 {
                until("there is room for more", || log.0.lock().chunks.is_empty());
            }
        }
        assert_eq!((log.finish(), log.dropped()), (0, 0));
        let mut written = Vec::new();
        for number in 0..7 {
            let text = fs::read_to_string(path(number)).expect("a file");
            let numbers = text.lines().map(|line| {
                let (number, rest) = line.split_once(' ').expect("a whole line");
                assert_eq!(rest.len(), 100, "torn");
                number.parse::<usize>().expect("a number")
            });
            let numbers: Vec<_> = numbers.collect();
            assert!(numbers.is_sorted());
            written.extend(numbers);
        }
        written.sort_unstable();
        assert!(written.into_iter().eq(0..LINES));
    }

    #[test]
    fn lines_go_to_the_next_target_while_a_write_to_the_former_one_is_blocked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let (_reader, pipe) = full_pipe();
        let log = Log::to(pipe).expect("a thread");
        log.write(b"blocked\n");
        until("the write has begun", || log.0.lock().writing.is_some());
        log.write(b"waits\n");
        log.change(append(&path));
        until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"waits\n"));
        log.write(b"comes later\n");
        assert_eq!(log.finish(), 0);
        assert_eq!(fs::read(&path).expect("a file"), b"waits\ncomes later\n");
    }

    #[test]
    fn threads_in_blocked_writes_are_bounded_and_the_first_that_is_free_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let (mut readers, pipe) = full_pipe();
        let log = Log::to(pipe).expect("a thread");
        let mut others = Vec::new();
        for number in 0..THREADS_MAX {
            log.write(b"blocked\n");
            until("the write has begun", || {
                let state = log.0.lock();
                state.writing.is_some() && state.writer == number && !state.is_writing_to_former()
            });
            let (reader, pipe) = full_pipe();
            log.change(pipe);
            others.push(reader);
        }
        log.change(append(&path));
        log.write(b"waits\n");
        assert_eq!(log.0.lock().threads, THREADS_MAX);
        let mut bytes = vec![0; 1 << 20];
        assert!(readers.read(&mut bytes).expect("bytes") > 0);
        until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"waits\n"));
        drop(others);
        until("nobody is left but who writes", || log.0.lock().threads == 1);
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_dropped_is_counted() {
        let (mut reader, pipe) = full_pipe();
        let log = Log::to(pipe).expect("a thread");
        let length = line(0).len();
        let total = 2 * WAITING_BYTES_MAX / length;
        let taken = (0..total).filter(|_| log.write(&line(0))).count();
        let dropped = log.dropped();
        assert_eq!(taken as u64 + dropped, total as u64);
        assert!(taken * length <= WAITING_BYTES_MAX + CHUNK_BYTES, "{taken}");
        assert!((taken + 1) * length > WAITING_BYTES_MAX, "{taken}");
        assert_eq!((log.untold(), log.untold()), (Some(dropped), None));
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text.lines().count())
        });
        until("all is written", || log.0.lock().chunks.is_empty());
        // Only then does the pipe end.
        log.change(Target::Off);
        assert_eq!(log.finish(), 0);
        assert_eq!(reading.join().expect("no panic").expect("text"), taken);
    }

    #[test]
    fn a_blocked_log_keeps_the_end_waiting_for_a_bounded_time() {
        let (_reader, pipe) = full_pipe();
        let log = Log::to(pipe).expect("a thread");
        log.write(b"blocked\n");
        until("the write has begun", || log.0.lock().writing.is_some());
        // The line that is being written is waited for too.
        let start = Instant::now();
        assert_eq!(log.finish(), 0);
        assert!(start.elapsed() >= END_TIMEOUT);
        log.write(b"one\n");
        log.write(b"two\n");
        assert_eq!(log.finish(), 2);
    }

    #[test]
    fn a_standard_stream_that_stays_the_target_has_one_thread() {
        let (_reader, pipe) = full_pipe();
        let Target::File(pipe) = pipe else { panic!("a file") };
        let same = Target::standard(&pipe).expect("a descriptor");
        let log = Log::to(Target::Standard(pipe)).expect("a thread");
        log.write(b"blocked\n");
        until("the write has begun", || log.0.lock().writing.is_some());
        log.change(same);
        let state = log.0.lock();
        assert!(state.threads == 1 && !state.is_writing_to_former());
    }

    /// Or lines could overtake each other where both targets are one file.
    #[test]
    fn a_write_that_ends_soon_after_the_target_has_changed_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..100 {
            let path = folder.path().join(number.to_string());
            let (mut reader, pipe) = full_pipe();
            let log = Log::to(pipe).expect("a thread");
            log.write(b"first\n");
            until("the write has begun", || log.0.lock().writing.is_some());
            log.write(b"second\n");
            log.change(append(&path));
            std::thread::sleep(Duration::from_millis(100));
            let writers =
                (log.0.lock().writer, path.exists() && fs::read(&path).is_ok_and(|it| !it.is_empty()));
            if log.0.lock().since.elapsed() >= Duration::from_secs(1) {
                // A machine that is too busy shows nothing.
                continue;
            }
            assert_eq!(writers, (0, false));
            assert!(reader.read(&mut vec![0; 1 << 20]).expect("bytes") > 0);
            until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"second\n"));
            return;
        }
        panic!("a machine that is too busy");
    }

    #[test]
    fn lines_of_a_write_that_fails_are_counted() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        drop(reader);
        let log = Log::to(Target::File(writer.into())).expect("a thread");
        log.write(b"one\n");
        log.write(b"two\n");
        assert_eq!(log.finish(), 0);
        assert_eq!(log.dropped(), 2);
    }

    #[test]
    fn the_programs_own_log_tells_what_it_has_lost() {
        let (mut reader, pipe) = full_pipe();
        let log = Log::to(pipe).expect("a thread");
        for _ in 0..2 * WAITING_BYTES_MAX / line(0).len() {
            if log.dropped() < 3 {
                Write::write(&mut &log, &line(0)).expect("a log that never fails");
            }
        }
        let mut bytes = vec![0; 1 << 20];
        while log.0.lock().waiting_bytes + CHUNK_BYTES > WAITING_BYTES_MAX {
            assert!(reader.read(&mut bytes).expect("bytes") > 0);
        }
        (&log).write_all(b"again\n").expect("a log that never fails");
        let state = log.0.lock();
        let last = String::from_utf8_lossy(state.chunks.back().expect("lines"));
        assert!(
            last.ends_with("again\ndcv-splice: 3 lines of this log were dropped: nobody took them\n"),
            "{last}"
        );
    }
}
