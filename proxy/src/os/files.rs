//! How files are had: from the disk, or from the helper that opened them. Whoever builds something of a configuration
//! asks here and can't tell which.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags, access, fcntl_getfl, fcntl_setfl};

/// Bytes of one file: certificates, keys, passwords and configurations are far smaller.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A place in a file, shown as editors and compilers show it: path, line and column (in characters), both from 1.
#[derive(Debug)]
pub struct Location<'a> {
    path: &'a Path,
    before: &'a str,
}

impl<'a> Location<'a> {
    /// So many bytes behind the beginning of its text.
    pub fn new(path: &'a Path, text: &'a str, at: usize) -> Self {
        Self { path, before: text.get(..at).unwrap_or(text) }
    }
}

impl fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.before.matches('\n').count() + 1;
        let column = self.before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        write!(f, "{}:{line}:{column}", self.path.display())
    }
}

/// Where files come from.
pub trait Files {
    /// All of a file.
    fn read(&self, file: &Path) -> io::Result<Vec<u8>>;
    /// Its permissions (inode(7)).
    fn mode(&self, file: &Path) -> io::Result<u32>;
    /// A file that is written to at its end, made if there is none.
    fn append(&self, file: &Path) -> io::Result<File>;
}

/// Files of the disk, which are remembered.
#[derive(Debug, Default)]
pub struct FileSystem(RefCell<BTreeMap<PathBuf, io::Result<File>>>);

impl FileSystem {
    /// Each file that was asked for, and the result.
    pub fn into_asked(self) -> BTreeMap<PathBuf, io::Result<File>> {
        self.0.into_inner()
    }

    fn remember(&self, file: &Path, opened: &io::Result<File>) {
        let opened = match opened {
            Ok(opened) => opened.try_clone(),
            Err(error) => Err(error.kind().into()),
        };
        self.0.borrow_mut().insert(file.to_owned(), opened);
    }
}

impl Files for FileSystem {
    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        // What was read first is what was validated, whatever stands there later.
        if let Some(Ok(opened)) = self.0.borrow().get(file) {
            return read_whole(opened);
        }
        let opened = open_regular(file);
        self.remember(file, &opened);
        read_whole(&opened?)
    }

    fn mode(&self, file: &Path) -> io::Result<u32> {
        Ok(fs::metadata(file)?.mode())
    }

    fn append(&self, file: &Path) -> io::Result<File> {
        let opened = open_log(file);
        self.remember(file, &opened);
        opened
    }
}

/// Never waits, as opening a FIFO would (fifo(7)).
const NO_WAIT: i32 = OFlags::NONBLOCK.bits().cast_signed();

fn open_regular(file: &Path) -> io::Result<File> {
    let opened = File::options().read(true).custom_flags(NO_WAIT).open(file)?;
    if opened.metadata()?.is_file() { Ok(opened) } else { Err(io::Error::other("is no regular file")) }
}

fn open_log(file: &Path) -> io::Result<File> {
    let opened = File::options().append(true).create(true).custom_flags(NO_WAIT).open(file)?;
    // The thread that writes to it may wait.
    fcntl_setfl(&opened, fcntl_getfl(&opened)? - OFlags::NONBLOCK)?;
    Ok(opened)
}

/// Files of the disk, for somebody who only wants to know whether they can be used: nothing is made.
#[derive(Debug, Default)]
pub struct DryRun;

impl Files for DryRun {
    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        read_whole(&open_regular(file)?)
    }

    fn mode(&self, file: &Path) -> io::Result<u32> {
        Ok(fs::metadata(file)?.mode())
    }

    fn append(&self, file: &Path) -> io::Result<File> {
        if !file.exists() {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            access(folder.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)?;
            return File::open("/dev/null");
        }
        File::options().append(true).custom_flags(NO_WAIT).open(file)
    }
}

/// Files that somebody else has opened.
#[derive(Debug, Default)]
pub struct PassedFiles(BTreeMap<PathBuf, File>);

impl FromIterator<(PathBuf, File)> for PassedFiles {
    fn from_iter<T: IntoIterator<Item = (PathBuf, File)>>(files: T) -> Self {
        Self(files.into_iter().collect())
    }
}

impl PassedFiles {
    fn file(&self, file: &Path) -> io::Result<&File> {
        self.0.get(file).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "was not delivered"))
    }
}

impl Files for PassedFiles {
    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        read_whole(self.file(file)?)
    }

    fn mode(&self, file: &Path) -> io::Result<u32> {
        Ok(self.file(file)?.metadata()?.mode())
    }

    fn append(&self, file: &Path) -> io::Result<File> {
        self.file(file)?.try_clone()
    }
}

/// Files of which one is known already.
pub struct CachedText<'a> {
    /// Where the others come from.
    pub files: &'a dyn Files,
    /// The one, and what it says.
    pub known: Option<&'a (PathBuf, Vec<u8>)>,
}

impl Files for CachedText<'_> {
    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        match self.known {
            Some((known, text)) if known == file => Ok(text.clone()),
            _ => self.files.read(file),
        }
    }

    fn mode(&self, file: &Path) -> io::Result<u32> {
        self.files.mode(file)
    }

    fn append(&self, file: &Path) -> io::Result<File> {
        self.files.append(file)
    }
}

/// All of a file from its beginning, wherever others who have it open stand; an error where that is too much.
pub fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    FromStart { file, at: 0 }.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "has more than 16 MiB"));
    }
    Ok(bytes)
}

struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_delivered_file_is_the_one_that_was_opened_and_is_read_as_often_as_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "one").expect("room");
        let disk = FileSystem::default();
        assert_eq!(disk.read(&path).expect("a file"), b"one");
        assert!(disk.read(&folder.path().join("absent")).is_err());
        std::fs::rename(&path, folder.path().join("old")).expect("a file");
        std::fs::write(&path, "two").expect("room");
        let asked = disk.into_asked();
        assert_eq!(asked.len(), 2);
        let delivered: PassedFiles =
            asked.into_iter().filter_map(|(path, file)| Some((path, file.ok()?))).collect();
        assert_eq!(delivered.read(&path).expect("a file"), b"one");
        assert_eq!(delivered.read(&path).expect("a file"), b"one");
        assert!(delivered.read(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn what_is_read_again_is_what_was_read_first_to_whom_it_is_delivered() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "one").expect("room");
        let disk = FileSystem::default();
        assert_eq!(disk.read(&path).expect("a file"), b"one");
        std::fs::remove_file(&path).expect("a file");
        std::fs::write(&path, "two").expect("room");
        assert_eq!(disk.read(&path).expect("a file"), b"one");
        let asked = disk.into_asked();
        assert_eq!(read_whole(asked[&path].as_ref().expect("a file")).expect("a file"), b"one");
    }

    #[test]
    fn a_log_is_written_to_at_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "one\n").expect("room");
        let disk = FileSystem::default();
        disk.append(&path).expect("a log").write_all(b"two\n").expect("room");
        assert_eq!(std::fs::read(&path).expect("a file"), b"one\ntwo\n");
    }

    #[test]
    fn a_fifo_keeps_nobody_waiting_and_a_glance_makes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).expect("a fifo");
        for files in [&FileSystem::default() as &dyn Files, &DryRun] {
            assert_eq!(files.read(&fifo).expect_err("no file").to_string(), "is no regular file");
            assert!(files.append(&fifo).is_err(), "nobody reads it");
        }
        let log = folder.path().join("log");
        DryRun.append(&log).expect("it could be made");
        assert!(!log.exists());
        assert!(DryRun.append(&folder.path().join("absent/log")).is_err());
        FileSystem::default().append(&log).expect("a log");
        assert!(DryRun.append(&log).is_ok() && DryRun.read(&log).is_ok());
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(FILE_BYTES_MAX + 1).expect("room");
        assert_eq!(read_whole(&file).expect_err("too much").kind(), io::ErrorKind::FileTooLarge);
    }
}
