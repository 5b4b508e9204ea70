//! What this process uses: processor time, memory, descriptors. The files of /proc are opened before they are out of reach, and
//! read again and again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of /proc/self/stat that are read; it has some 350.
const STAT_BYTES_MAX: usize = 4096;

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessUsage {
    /// Processor time, of the program and of the kernel for it, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// Addresses in use, in bytes.
    pub virtual_bytes: u64,
    /// Open descriptors; the kernel tells it from Linux 6.2 on.
    pub open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub max_fds: Option<u64>,
    /// When it began, in seconds since 1970.
    pub start_seconds: f64,
}

/// Processor time that the calling thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or_default())
}

/// The files that tell it.
#[derive(Debug)]
pub(crate) struct UsageReader {
    stat: File,
    descriptors: File,
    /// Units of processor time in a second, and bytes of a page. Before Linux 6.4 they are read from a file too.
    ticks: f64,
    page_bytes: u64,
}

impl UsageReader {
    /// Opens them.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            stat: File::open("/proc/self/stat")?,
            descriptors: File::open("/proc/self/fd")?,
            ticks: whole(clock_ticks_per_second()),
            page_bytes: page_size() as u64,
        })
    }

    /// What is used now.
    pub(crate) fn read(&self) -> io::Result<ProcessUsage> {
        let mut text = vec![0; STAT_BYTES_MAX];
        let length = self.stat.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let stat =
            Stat::parse(&text).ok_or_else(|| io::Error::other("/proc/self/stat is of another form"))?;
        let since_boot = clock_gettime(ClockId::Boottime);
        let since_boot = whole(since_boot.tv_sec.unsigned_abs());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let entries = self.descriptors.metadata()?.size();
        Ok(ProcessUsage {
            cpu_seconds: whole(stat.user_ticks + stat.system_ticks) / self.ticks,
            resident_bytes: stat.resident_pages * self.page_bytes,
            virtual_bytes: stat.virtual_bytes,
            open_fds: (entries > 0).then_some(entries),
            max_fds: getrlimit(Resource::Nofile).current,
            start_seconds: (now - since_boot + whole(stat.start_ticks) / self.ticks).round(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "after millions of years")]
fn whole(value: u64) -> f64 {
    value as f64
}

/// The fields of /proc/self/stat that are used (`proc_pid_stat(5)`).
#[derive(Debug, Eq, PartialEq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may have anything in it, also spaces and brackets; the state, field 3, follows.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_whatever_the_name_is() {
        let text =
            "7 (a) b 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 15 16 17 18 20 0 1 0 22 23 24 18446744073709551615 1";
        let stat =
            Stat { user_ticks: 15, system_ticks: 16, start_ticks: 22, virtual_bytes: 23, resident_pages: 24 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn it_is_of_this_process() {
        let reader = UsageReader::open().expect("/proc");
        let before = reader.read().expect("what it uses");
        assert!(
            before.resident_bytes > 1 << 20 && before.virtual_bytes > before.resident_bytes,
            "{before:?}"
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs_f64();
        assert!(before.start_seconds <= now + 1.0 && before.start_seconds > now - 86_400.0, "{before:?}");
        while reader.read().expect("what it uses").cpu_seconds <= before.cpu_seconds {
            std::hint::black_box((0..1_000_000_u64).sum::<u64>());
        }
    }
}
