//! curl, nghttp and openssl, run to their end.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::process::Process;
use tempfile::TempDir;

/// What a program printed, and whether it was content.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) output: String,
    pub(crate) log: String,
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(args);
    let mut process = Process::start(command);
    let success = process.wait().success();
    Ran { success, output: process.output(), log: process.log() }
}

/// curl, and a folder for what it sends and receives. It speaks HTTP/1.1 where it is not told otherwise.
pub(crate) struct Curl {
    folder: TempDir,
}

/// What curl received of one URL.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) status: u16,
    /// All heads, interim ones included.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// What `-v` tells.
    pub(crate) log: String,
}

impl Received {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header of the last head.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let last = self.head.trim_end().rsplit("\r\n\r\n").next()?;
        harness::raw_client::header(last, name)
    }
}

impl Curl {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Fetches one URL; panics where curl itself fails.
    #[track_caller]
    pub(crate) fn get(&self, args: &[&str]) -> Received {
        let (ran, received) = self.attempt(args);
        assert!(ran.success, "curl {args:?}: {}", ran.log);
        received
    }

    /// The same, whatever curl thinks of it.
    pub(crate) fn attempt(&self, args: &[&str]) -> (Ran, Received) {
        let (head, body) = (self.path("head"), self.path("body"));
        for file in [&head, &body] {
            fs::write(file, "").unwrap();
        }
        let (head_path, body_path) = (head.display().to_string(), body.display().to_string());
        let always = [
            "-sSkv",
            "--http1.1",
            "--max-time",
            "100",
            "-D",
            &head_path,
            "-o",
            &body_path,
            "-w",
            "%{http_code}",
            "--globoff",
        ];
        let ran = run("curl", &[&always[..], args].concat());
        let received = Received {
            status: ran.output.trim().parse().unwrap(),
            head: fs::read_to_string(head).unwrap(),
            body: fs::read(body).unwrap(),
            log: ran.log.clone(),
        };
        (ran, received)
    }
}
