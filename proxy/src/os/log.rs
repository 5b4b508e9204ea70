//! Lines on their way to a log, of which the outside decides when it takes them: a disk, a pipe, a terminal. A task of the
//! control plane writes them, through its ring where it has one, and nobody ever waits for it: what does not fit into a
//! bounded queue is dropped and counted. The target can be changed while a write to the former one is blocked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{Notify, Semaphore};
use tokio_uring::buf::BoundedBuf;

/// Bytes of lines that wait to be written; further lines are dropped. About 20,000 requests of an access log.
pub(crate) const WAITING_BYTES_MAX: usize = 4 << 20;
/// Bytes that are written at a time, in whole lines; a longer line is written alone.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a write to a former target may take before the next target is written to. Until then lines stay in their order,
/// and none is torn where both targets are one file.
const HANDOVER: Duration = Duration::from_secs(1);
/// How long the last lines have to be written when the program ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Writes of one log that are under way, with those that are blocked. With all of them blocked, lines wait for the first one
/// that ends.
const WRITES_MAX: usize = 8;
/// After what time an output that blocks nobody, and has no room, is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// The offset that means the file's own position (`io_uring_enter(2)`); a file that is appended to and a pipe have no other.
const OWN_POSITION: u64 = u64::MAX;

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

    /// Each log has one standard stream.
    fn kind(&self) -> TargetKind {
        match self {
            Self::Off => TargetKind::Off,
            Self::Standard(_) => TargetKind::Standard,
            Self::File(_) => TargetKind::File,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TargetKind {
    Off,
    Standard,
    File,
}

/// How writes are made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WriteBackend {
    /// By the ring of the tokio-uring runtime that the log's task runs on.
    Ring,
    /// By threads of the tokio runtime: where there is no ring.
    Threads,
}

/// An open target.
enum Output {
    Off,
    Ring(tokio_uring::fs::File),
    Thread(Arc<File>),
}

impl Output {
    fn new(target: Target, backend: WriteBackend) -> Self {
        match (target, backend) {
            (Target::Off, _) => Self::Off,
            (Target::Standard(file) | Target::File(file), WriteBackend::Ring) => {
                Self::Ring(tokio_uring::fs::File::from_std(file))
            }
            (Target::Standard(file) | Target::File(file), WriteBackend::Threads) => {
                Self::Thread(Arc::new(file))
            }
        }
    }

    /// Writes as much as can be written; gives how many lines were lost.
    async fn write(&self, lines: Vec<u8>) -> u64 {
        match self {
            Self::Off => 0,
            Self::Ring(file) => write_by_ring(file, lines).await,
            Self::Thread(file) => {
                let file = file.clone();
                let written = tokio::task::spawn_blocking(move || write_all(&file, &lines)).await;
                written.unwrap_or_default()
            }
        }
    }

    /// Closing a file of another host may wait for it (close(2)).
    async fn close(self) {
        match self {
            Self::Off => {}
            // What can't be written was said when it was written.
            Self::Ring(file) => drop(file.close().await),
            Self::Thread(file) => drop(tokio::task::spawn_blocking(move || drop(file)).await),
        }
    }
}

/// A log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// There are lines.
    news: Notify,
    /// There is another target.
    changed: Notify,
    /// A write has ended.
    written: Notify,
    /// Lines that were dropped, and of how many of them the owner was told.
    dropped: AtomicU64,
    told: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Whole lines.
    chunks: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// The target that has not been written to yet.
    next: Option<Target>,
    /// What the newest target is, and when it became the target.
    kind: TargetKind,
    since: Instant,
    /// A write is under way that is waited for.
    is_writing: bool,
}

impl State {
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

    fn pop(&mut self) -> Option<Vec<u8>> {
        let chunk = self.chunks.pop_front()?;
        self.waiting_bytes -= chunk.len();
        self.is_writing = true;
        Some(chunk)
    }
}

impl Log {
    fn new(target: Target) -> Self {
        let state = State {
            chunks: VecDeque::new(),
            waiting_bytes: 0,
            kind: target.kind(),
            next: Some(target),
            since: Instant::now(),
            is_writing: false,
        };
        Self(Arc::new(Queue {
            state: Mutex::new(state),
            news: Notify::new(),
            changed: Notify::new(),
            written: Notify::new(),
            dropped: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }))
    }

    /// Takes a whole line, with its end; gives whether there is room for it.
    pub fn write(&self, line: &[u8]) -> bool {
        let has_room = self.0.lock().push(line);
        if has_room {
            // A system call only where the writer waits.
            self.0.news.notify_one();
        } else {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Writes to `target` from now on, also what waits.
    pub fn change(&self, target: Target) {
        let mut state = self.0.lock();
        let kind = target.kind();
        if kind == state.kind && kind != TargetKind::File {
            return;
        }
        (state.kind, state.since) = (kind, Instant::now());
        state.next = Some(target);
        drop(state);
        self.0.changed.notify_one();
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
    async fn finish(&self) -> usize {
        let all_written = async {
            loop {
                let written = self.0.written.notified();
                {
                    let state = self.0.lock();
                    if state.chunks.is_empty() && !state.is_writing {
                        return;
                    }
                }
                written.await;
            }
        };
        // What is left then is counted.
        let _ = tokio::time::timeout(END_TIMEOUT, all_written).await;
        self.0.lock().chunks.iter().map(|chunk| lines(chunk)).sum()
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

    /// Waits for lines to be written, or for another target; gives what there is of both.
    async fn next(&self) -> (Option<Target>, Option<Vec<u8>>) {
        loop {
            {
                let mut state = self.lock();
                let next = (state.next.take(), state.pop());
                if next.0.is_some() || next.1.is_some() {
                    return next;
                }
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Waits until there is another target, and a write to the former one has had its time.
    async fn handover(&self) {
        loop {
            let since = {
                let state = self.lock();
                state.next.is_some().then_some(state.since)
            };
            match since.map(|since| HANDOVER.saturating_sub(since.elapsed())) {
                Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
                None => self.changed.notified().await,
            }
        }
    }

    fn ended(&self) {
        self.lock().is_writing = false;
        self.written.notify_waiters();
    }
}

/// The logs of a process, whose tasks run on the thread that has started them.
#[derive(Debug)]
pub(crate) struct LogWriters {
    backend: WriteBackend,
    logs: RefCell<Vec<Log>>,
}

impl LogWriters {
    /// None yet.
    pub(crate) fn new(backend: WriteBackend) -> Self {
        Self { backend, logs: RefCell::default() }
    }

    /// A log that goes to `target`, and its task. Wants a `LocalSet`, which a tokio-uring runtime has.
    pub(crate) fn start(&self, target: Target) -> Log {
        let log = Log::new(target);
        tokio::task::spawn_local(run(log.0.clone(), self.backend));
        self.logs.borrow_mut().push(log.clone());
        log
    }

    /// Waits until all logs are written, the last one last, since it may be told of the others; for a second each at the most.
    pub(crate) async fn finish(&self) {
        for log in self.logs.take().into_iter().rev() {
            let left = log.finish().await;
            if left > 0 {
                tracing::warn!(left, "log lines lost at the end: the output does not take them in time");
            }
        }
    }
}

/// Writes what a log takes, for as long as the runtime lasts.
async fn run(queue: Arc<Queue>, backend: WriteBackend) {
    let writes = Arc::new(Semaphore::new(WRITES_MAX));
    let mut output = Rc::new(Output::Off);
    loop {
        let (target, chunk) = queue.next().await;
        if let Some(target) = target {
            let former = mem::replace(&mut output, Rc::new(Output::new(target, backend)));
            if let Ok(former) = Rc::try_unwrap(former) {
                tokio::task::spawn_local(former.close());
            }
        }
        let Some(chunk) = chunk else { continue };
        let Ok(place) = writes.clone().acquire_owned().await else { return };
        let (queue_of_write, output_of_write) = (queue.clone(), output.clone());
        let mut write = tokio::task::spawn_local(async move {
            let lost = output_of_write.write(chunk).await;
            queue_of_write.dropped.fetch_add(lost, Ordering::Relaxed);
            if let Ok(former) = Rc::try_unwrap(output_of_write) {
                former.close().await;
            }
            drop(place);
        });
        tokio::select! {
            _ = &mut write => {}
            // It goes on by itself, and its lines get where they were to go.
            () = queue.handover() => {}
        }
        queue.ended();
    }
}

async fn write_by_ring(file: &tokio_uring::fs::File, lines_left: Vec<u8>) -> u64 {
    let (mut left, mut from) = (lines_left, 0);
    while from < left.len() {
        let (written, slice) = file.write_at(left.slice(from..), OWN_POSITION).submit().await;
        left = slice.into_inner();
        match written {
            Ok(written @ 1..) => from += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // As in `write_all`; readiness would take a second descriptor for what hardly ever happens.
                tokio::time::sleep(RETRY).await;
            }
            Ok(0) | Err(_) => break,
        }
    }
    lines(&left[from..]) as u64
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
    use tokio::task::LocalSet;

    use super::*;

    /// Runs a test with each way of writing.
    fn with_each_backend(test: impl AsyncFn(LogWriters) + Sync) {
        std::thread::scope(|scope| {
            scope.spawn(|| tokio_uring::start(test(LogWriters::new(WriteBackend::Ring))));
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime");
                runtime.block_on(LocalSet::new().run_until(test(LogWriters::new(WriteBackend::Threads))));
                // A write may be blocked for good.
                runtime.shutdown_background();
            });
        });
    }

    fn append(path: &Path) -> Target {
        Target::File(File::options().append(true).create(true).open(path).expect("a file"))
    }

    /// As a terminal or a pipe is that somebody else has set so.
    #[test]
    fn an_output_that_does_not_block_is_waited_for() {
        with_each_backend(async |logs| {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
            let log = logs.start(Target::File(writer.into()));
            let lines: Vec<_> = (0..10_000).map(line).collect();
            assert!(lines.iter().all(|line| log.write(line)));
            let expected = lines.concat();
            let mut seen = Vec::new();
            let mut reader = File::from(reader);
            until("all has come", || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = reader.read(&mut bytes) {
                    seen.extend_from_slice(&bytes[..read]);
                }
                seen.len() >= expected.len() || log.dropped() > 0
            })
            .await;
            assert_eq!((log.dropped(), seen == expected), (0, true));
        });
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

    async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_true() {
            assert!(start.elapsed() < Duration::from_mins(1), "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn write_begins(log: &Log) {
        until("the write has begun", || {
            let state = log.0.lock();
            state.is_writing && state.chunks.is_empty() && state.next.is_none()
        })
        .await;
    }

    fn line(number: usize) -> Vec<u8> {
        format!("{number} {}\n", "x".repeat(100)).into_bytes()
    }

    #[test]
    fn no_line_is_lost_or_torn_while_the_target_changes() {
        const LINES: usize = 20_000;
        with_each_backend(async |logs| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |number: usize| folder.path().join(number.to_string());
            let log = logs.start(append(&path(0)));
            for number in 0..LINES {
                assert!(log.write(&line(number)), "there is room");
                if number % 100 == 0 {
                    // Each is the target again and again, as a log is that was not moved away.
                    log.change(append(&path(number / 100 % 7)));
                    tokio::task::yield_now().await;
                }
                if number % 5000 == 0 {
                    until("there is room for more", || log.0.lock().chunks.is_empty()).await;
                }
            }
            assert_eq!((log.finish().await, log.dropped()), (0, 0));
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
        });
    }

    /// As a shell's `> file` is, which is written where its last writer left off.
    #[test]
    fn a_file_that_is_not_appended_to_is_written_one_line_after_the_other() {
        with_each_backend(async |logs| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("log");
            let mut file = File::create(&path).expect("a file");
            file.write_all(b"first\n").expect("a file");
            let log = logs.start(Target::File(file));
            log.write(b"second\n");
            until("it is written", || fs::read(&path).is_ok_and(|text| text == b"first\nsecond\n")).await;
            log.write(b"third\n");
            assert_eq!(log.finish().await, 0);
            assert_eq!(fs::read(&path).expect("a file"), b"first\nsecond\nthird\n");
        });
    }

    #[test]
    fn lines_go_to_the_next_target_while_a_write_to_the_former_one_is_blocked() {
        with_each_backend(async |logs| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("log");
            let (_reader, pipe) = full_pipe();
            let log = logs.start(pipe);
            log.write(b"blocked\n");
            write_begins(&log).await;
            log.write(b"waits\n");
            log.change(append(&path));
            until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"waits\n")).await;
            log.write(b"comes later\n");
            assert_eq!(log.finish().await, 0);
            assert_eq!(fs::read(&path).expect("a file"), b"waits\ncomes later\n");
        });
    }

    #[test]
    fn blocked_writes_are_bounded_and_the_first_that_ends_lets_the_log_go_on() {
        with_each_backend(async |logs| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("log");
            let (mut reader, pipe) = full_pipe();
            let log = logs.start(pipe);
            let mut others = Vec::new();
            for _ in 0..WRITES_MAX {
                log.write(b"blocked\n");
                write_begins(&log).await;
                let (reader, pipe) = full_pipe();
                log.change(pipe);
                until("it has been given up", || !log.0.lock().is_writing).await;
                others.push(reader);
            }
            log.change(append(&path));
            log.write(b"waits\n");
            tokio::time::sleep(2 * HANDOVER).await;
            assert!(!path.exists() || fs::read(&path).expect("a file").is_empty());
            assert!(reader.read(&mut vec![0; 1 << 20]).expect("bytes") > 0);
            until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"waits\n")).await;
        });
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_dropped_is_counted() {
        with_each_backend(async |logs| {
            let (mut reader, pipe) = full_pipe();
            let log = logs.start(pipe);
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
            until("all is written", || {
                let state = log.0.lock();
                state.chunks.is_empty() && !state.is_writing
            })
            .await;
            // Only then does the pipe end.
            log.change(Target::Off);
            until("it has ended", || reading.is_finished()).await;
            assert_eq!(reading.join().expect("no panic").expect("text"), taken);
        });
    }

    #[test]
    fn a_blocked_log_keeps_the_end_waiting_for_a_bounded_time() {
        with_each_backend(async |logs| {
            let (_reader, pipe) = full_pipe();
            let log = logs.start(pipe);
            log.write(b"blocked\n");
            write_begins(&log).await;
            // The line that is being written is waited for too.
            let start = Instant::now();
            assert_eq!(log.finish().await, 0);
            assert!(start.elapsed() >= END_TIMEOUT);
            log.write(b"one\n");
            log.write(b"two\n");
            assert_eq!(log.finish().await, 2);
        });
    }

    #[test]
    fn a_standard_stream_that_stays_the_target_is_the_same_target() {
        with_each_backend(async |logs| {
            let (_reader, pipe) = full_pipe();
            let Target::File(pipe) = pipe else { panic!("a file") };
            let same = Target::standard(&pipe).expect("a descriptor");
            let log = logs.start(Target::Standard(pipe));
            log.write(b"blocked\n");
            write_begins(&log).await;
            log.change(same);
            assert!(log.0.lock().next.is_none());
        });
    }

    /// Or lines could overtake each other where both targets are one file.
    #[test]
    fn a_write_that_ends_soon_after_the_target_has_changed_is_waited_for() {
        with_each_backend(async |logs| {
            let folder = tempfile::tempdir().expect("a folder");
            for number in 0..100 {
                let path = folder.path().join(number.to_string());
                let (mut reader, pipe) = full_pipe();
                let log = logs.start(pipe);
                log.write(b"first\n");
                write_begins(&log).await;
                log.write(b"second\n");
                log.change(append(&path));
                tokio::time::sleep(HANDOVER / 10).await;
                let is_waited_for = log.0.lock().is_writing;
                let is_empty = !path.exists() || fs::read(&path).is_ok_and(|it| it.is_empty());
                if log.0.lock().since.elapsed() >= HANDOVER {
                    // A machine that is too busy shows nothing.
                    continue;
                }
                assert!(is_waited_for && is_empty);
                assert!(reader.read(&mut vec![0; 1 << 20]).expect("bytes") > 0);
                until("the line is written", || fs::read(&path).is_ok_and(|text| text == b"second\n")).await;
                return;
            }
            panic!("a machine that is too busy");
        });
    }

    #[test]
    fn lines_of_a_write_that_fails_are_counted() {
        with_each_backend(async |logs| {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
            drop(reader);
            let log = logs.start(Target::File(writer.into()));
            log.write(b"one\n");
            log.write(b"two\n");
            assert_eq!(log.finish().await, 0);
            assert_eq!(log.dropped(), 2);
        });
    }

    #[test]
    fn the_programs_own_log_tells_what_it_has_lost() {
        with_each_backend(async |logs| {
            let (mut reader, pipe) = full_pipe();
            let log = logs.start(pipe);
            for _ in 0..2 * WAITING_BYTES_MAX / line(0).len() {
                if log.dropped() < 3 {
                    Write::write(&mut &log, &line(0)).expect("a log that never fails");
                }
            }
            let mut bytes = vec![0; 1 << 20];
            until("there is room", || {
                let is_full = log.0.lock().waiting_bytes + CHUNK_BYTES > WAITING_BYTES_MAX;
                if is_full {
                    assert!(reader.read(&mut bytes).expect("bytes") > 0);
                }
                !is_full
            })
            .await;
            (&log).write_all(b"again\n").expect("a log that never fails");
            let state = log.0.lock();
            let last = String::from_utf8_lossy(state.chunks.back().expect("lines"));
            assert!(
                last.ends_with("again\ndcv-splice: 3 lines of this log were dropped: nobody took them\n"),
                "{last}"
            );
        });
    }
}
