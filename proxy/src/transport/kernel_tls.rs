//! TLS in this host's kernel: what it can do, found out at the start by doing it between two ends of a connection of the
//! program to itself, and what a connection has given to it. Never used before that trial. Uses `runtime` for the socket
//! options and `tls` for their values.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use zeroize::Zeroizing;

use crate::runtime::io_uring::{
    TlsKey, prepare_tls, receive_record, send_record, set_tls_key, tcp_info, tls_key,
};
use crate::tls::{Cipher, ControlRecord, KernelKey, RecordSuite, Version, Way};
use crate::transport::pipes::Pipe;

/// Which connections' records the kernel may do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelTls(u8);

impl KernelTls {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether it may do those of such a connection.
    pub fn takes(self, suite: RecordSuite) -> bool {
        RecordSuite::ALL.iter().position(|it| *it == suite).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }

    fn of(takes: impl Fn(RecordSuite) -> bool) -> Self {
        let bits = RecordSuite::ALL.iter().enumerate().filter(|(_, suite)| takes(**suite));
        Self(bits.fold(0, |all, (bit, _)| all | (1 << bit)))
    }
}

/// What the kernel can do of TLS.
#[derive(Debug, Eq, PartialEq)]
pub struct KernelTlsTrial {
    /// Suites whose records it seals and opens right.
    suites: KernelTls,
    /// Keys of a connection can be changed (Linux 6.14): a peer may do that whenever it likes in TLS 1.3 (RFC 8446 4.6.3).
    renews_keys: bool,
    /// What does AES; none where that can't be read.
    aes: Option<AesDriver>,
}

/// What the kernel does AES-GCM with.
#[derive(Clone, Debug, Eq, PartialEq)]
struct AesDriver(String);

/// Names of drivers for processors without instructions for AES: more than ten times slower.
const SLOW_DRIVERS: [&str; 4] = ["aes-generic", "aes-lib", "aes-fixed-time", "aes-arm"];
/// The kernel's list of ciphers that were used.
const CIPHERS: &str = "/proc/crypto";
/// A connection of the program to itself answers at once.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// More than a record, so that there are two.
const TRIAL_BYTES: usize = 20_000;
/// Content types (RFC 8446 5.1).
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

impl KernelTlsTrial {
    /// Tries. Fails where the kernel has no TLS, or nothing of it works. To be done before privileges are given up.
    pub fn run() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (mut works, mut renews_keys, mut first) = (Vec::new(), true, None);
        let pipe = Pipe::new()?;
        for suite in RecordSuite::ALL {
            match TrialPair::new(&listener, suite).and_then(|pair| pair.run(&pipe)) {
                Ok(renews) => {
                    works.push(suite);
                    renews_keys &= renews;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        if works.is_empty() {
            return Err(first.unwrap_or_else(|| io::ErrorKind::Unsupported.into()));
        }
        let suites = KernelTls::of(|suite| works.contains(&suite));
        // The trial has used them: ciphers that nobody has used are not in it.
        let aes = fs::read_to_string(CIPHERS).ok().as_deref().and_then(AesDriver::find);
        Ok(Self { suites, renews_keys, aes })
    }

    /// What is to be given to it: TLS 1.3 only where keys can be changed. `sparing`: nothing that another way is cheaper
    /// for.
    pub fn use_of(&self, sparing: bool) -> KernelTls {
        let is_slow = !self.aes.as_ref().is_some_and(AesDriver::is_fast);
        KernelTls::of(|suite| {
            self.suites.takes(suite)
                && (suite.version == Version::Tls12 || self.renews_keys)
                && !(sparing && is_slow && suite.cipher != Cipher::ChaCha20Poly1305)
        })
    }
}

impl AesDriver {
    /// The one that is used: that of the highest priority.
    fn find(ciphers: &str) -> Option<Self> {
        let driver = |entry: &str| {
            let value = |name: &str| {
                let line =
                    entry.lines().find(|line| line.split(':').next().is_some_and(|it| it.trim() == name));
                line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
            };
            let is_gcm = value("name")? == "gcm(aes)";
            let priority: u32 = value("priority")?.parse().ok()?;
            is_gcm.then_some((priority, value("driver")?))
        };
        ciphers.split("\n\n").filter_map(driver).max().map(|(_, driver)| Self(driver))
    }

    fn is_fast(&self) -> bool {
        !SLOW_DRIVERS.iter().any(|slow| self.0.contains(slow))
    }
}

impl fmt::Display for KernelTlsTrial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (version, name) in [(Version::Tls12, "TLS 1.2 with"), (Version::Tls13, "; TLS 1.3 with")] {
            f.write_str(name)?;
            let works = RecordSuite::ALL.iter().filter(|it| it.version == version && self.suites.takes(**it));
            let names: Vec<_> = works.map(|suite| name_of(suite.cipher)).collect();
            f.write_str(if names.is_empty() { " nothing" } else { " " })?;
            f.write_str(&names.join(", "))?;
        }
        if !self.renews_keys {
            f.write_str(", but no change of keys (Linux 6.14): it is left to the program")?;
        }
        match &self.aes {
            None => write!(f, "; {CIPHERS} can't be read: nobody knows how fast AES is"),
            Some(driver) if driver.is_fast() => write!(f, "; AES by {}", driver.0),
            Some(driver) => {
                write!(f, "; AES by {}, which is slow: load the module for this processor", driver.0)
            }
        }
    }
}

fn name_of(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::Aes128Gcm => "AES-128-GCM",
        Cipher::Aes256Gcm => "AES-256-GCM",
        Cipher::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    }
}

/// Two ends of a connection, one of which seals what the other opens.
struct TrialPair {
    sender: TcpStream,
    receiver: TcpStream,
    key: KernelKey,
}

impl TrialPair {
    fn new(listener: &TcpListener, suite: RecordSuite) -> io::Result<Self> {
        let sender = TcpStream::connect(listener.local_addr()?)?;
        let from = sender.local_addr()?;
        // Somebody else may have been faster.
        let receiver = loop {
            let (receiver, address) = listener.accept()?;
            if address == from {
                break receiver;
            }
        };
        receiver.set_read_timeout(Some(TRIAL_TIMEOUT))?;
        sender.set_write_timeout(Some(TRIAL_TIMEOUT))?;
        let pair = Self { sender, receiver, key: KernelKey::of_trial(suite) };
        prepare_tls(pair.sender.as_fd())?;
        prepare_tls(pair.receiver.as_fd())?;
        pair.set_keys()?;
        Ok(pair)
    }

    fn set_keys(&self) -> io::Result<()> {
        set_tls_key(self.sender.as_fd(), TlsKey::Send, self.key.option())?;
        set_tls_key(self.receiver.as_fd(), TlsKey::Receive, self.key.option())
    }

    /// Whether keys can be changed too, where that is a matter of them.
    fn run(mut self, pipe: &Pipe) -> io::Result<bool> {
        self.passes_bytes()?;
        self.passes_through(pipe)?;
        if self.key.suite().version == Version::Tls12 {
            return Ok(true);
        }
        send_record(self.sender.as_fd(), HANDSHAKE, ControlRecord::KeyUpdate.content())?;
        self.receives(HANDSHAKE, ControlRecord::KeyUpdate.content())?;
        Ok(self.set_keys().and_then(|()| self.passes_bytes()).is_ok())
    }

    fn passes_bytes(&mut self) -> io::Result<()> {
        let bytes: Vec<u8> = (0..TRIAL_BYTES).map(|number| number.to_le_bytes()[0]).collect();
        self.sender.write_all(&bytes)?;
        self.receives(DATA, &bytes)
    }

    /// A record through a pipe, and the count of records.
    fn passes_through(&mut self, pipe: &Pipe) -> io::Result<()> {
        let wrong = || io::Error::other("it does not move a record through a pipe");
        self.sender.write_all(b"a record")?;
        let mut into = [0; 8];
        let moved = splice(&self.receiver, None, &pipe.write, None, into.len(), SpliceFlags::empty())?;
        let taken = pipe.take(&mut into)?;
        let opened = count(self.receiver.as_fd(), Way::Receive, self.key.option().len())?;
        if (moved, taken, &into) != (8, 8, b"a record") || opened == 0 { Err(wrong()) } else { Ok(()) }
    }

    fn receives(&self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let (mut got, mut into) = (Vec::new(), vec![0; TRIAL_BYTES]);
        while got.len() < bytes.len() {
            let (received, told) = receive_record(self.receiver.as_fd(), &mut into)?;
            if told != Some(kind) || received == 0 {
                return Err(io::Error::other("it opens something else than was sealed"));
            }
            got.extend_from_slice(&into[..received]);
        }
        if got == bytes { Ok(()) } else { Err(io::Error::other("it opens something else than was sealed")) }
    }
}

/// What a connection has given to the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelRecords {
    /// What moving a record inside the kernel has failed with; that one is no data is such a failure too.
    pub(super) failure: Option<Errno>,
    /// Records that had been opened when nothing was received: an empty one is told from the end by another count.
    nothing_at: Option<u64>,
    /// Bytes of TCP that went to the peer before, and those that were given to be sealed or were added since.
    to_peer: [u64; 2],
    receive: Option<Given>,
    send: Option<Given>,
}

/// A key that the kernel has.
#[derive(Clone, Copy, Debug)]
struct Given {
    suite: RecordSuite,
    option_bytes: usize,
    /// Records that it was used for before.
    since: u64,
}

impl KernelRecords {
    fn way(&mut self, way: Way) -> &mut Option<Given> {
        match way {
            Way::Receive => &mut self.receive,
            Way::Send => &mut self.send,
        }
    }

    /// Whether it opens what is received.
    pub(super) fn opens(&self) -> bool {
        self.receive.is_some()
    }

    /// Whether it seals what is sent.
    pub(super) fn seals(&self) -> bool {
        self.send.is_some()
    }

    /// Gives the key of a way, or a new one. What the records under the one before had besides their content, in bytes.
    pub(super) fn give(&mut self, socket: BorrowedFd<'_>, way: Way, key: &KernelKey) -> io::Result<u64> {
        if self.receive.is_none() && self.send.is_none() {
            match prepare_tls(socket) {
                // It was prepared before, and then not used.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {}
                prepared => prepared?,
            }
        }
        let overhead = self.overhead(socket, way);
        set_tls_key(socket, name(way), key.option())?;
        if way == Way::Send {
            self.to_peer = match self.send {
                None => [given_to_tcp(socket)?, 0],
                Some(_) => [self.to_peer[0], self.to_peer[1] + overhead],
            };
        }
        if way == Way::Receive {
            // The count begins anew.
            self.nothing_at = None;
        }
        let since = KernelKey::sequence(key.option()).unwrap_or(0);
        *self.way(way) = Some(Given { suite: key.suite(), option_bytes: key.option().len(), since });
        Ok(overhead)
    }

    /// What the records of a way had besides their content, in bytes.
    pub(super) fn overhead(&mut self, socket: BorrowedFd<'_>, way: Way) -> u64 {
        let Some(given) = *self.way(way) else { return 0 };
        let records =
            count(socket, way, given.option_bytes).unwrap_or(given.since).saturating_sub(given.since);
        records * given.suite.overhead_bytes()
    }

    /// Whether nothing was received because the stream has ended: as many records were opened as when that was seen last.
    pub(super) fn has_ended(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let given = self.receive.ok_or(io::ErrorKind::NotConnected)?;
        let opened = count(socket, Way::Receive, given.option_bytes)?;
        Ok(self.nothing_at.replace(opened) == Some(opened))
    }

    /// Counts bytes that the kernel has taken to be sealed.
    pub(super) fn note_sent(&mut self, bytes: usize) {
        self.to_peer[1] += bytes as u64;
    }

    /// Whether all that was taken has been sealed and is TCP's. A record that TCP had no room for is kept, and nothing tells
    /// of that: a FIN would go before it.
    pub(super) fn is_flushed(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let [before, taken] = self.to_peer;
        let sealed = taken + self.overhead(socket, Way::Send);
        Ok(given_to_tcp(socket)?.saturating_sub(before) >= sealed)
    }

    /// Records that were sealed with the present key.
    pub(super) fn sealed(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let given = self.send.ok_or(io::ErrorKind::NotConnected)?;
        count(socket, Way::Send, given.option_bytes)
    }
}

/// Bytes that TCP has taken for the peer in all, sent or not.
fn given_to_tcp(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let info = tcp_info(socket)?;
    Ok(info.tcpi_bytes_sent.saturating_sub(info.tcpi_bytes_retrans) + u64::from(info.tcpi_notsent_bytes))
}

fn count(socket: BorrowedFd<'_>, way: Way, option_bytes: usize) -> io::Result<u64> {
    let mut told = Zeroizing::new(vec![0; option_bytes]);
    tls_key(socket, name(way), &mut told)?;
    KernelKey::sequence(&told).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn name(way: Way) -> TlsKey {
    match way {
        Way::Receive => TlsKey::Receive,
        Way::Send => TlsKey::Send,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_6_1: &str = "name         : rfc7539(chacha20,poly1305)\ndriver       : rfc7539(chacha20-generic,poly1305-generic)\n\
        priority     : 100\n\nname         : gcm(aes)\ndriver       : generic-gcm-aesni\nmodule       : aesni_intel\n\
        priority     : 400\n\nname         : gcm(aes)\ndriver       : gcm_base(ctr(aes-generic),ghash-generic)\n\
        priority     : 100\n";

    fn trial(renews_keys: bool, aes: &str) -> KernelTlsTrial {
        KernelTlsTrial { suites: KernelTls::of(|_| true), renews_keys, aes: AesDriver::find(aes) }
    }

    #[test]
    fn aes_is_done_by_the_driver_of_the_highest_priority() {
        let fast = AesDriver::find(OF_6_1).expect("a driver");
        assert!(fast.0 == "generic-gcm-aesni" && fast.is_fast());
        let slow = AesDriver::find(&OF_6_1.replace("400", "1")).expect("a driver");
        assert!(slow.0.starts_with("gcm_base") && !slow.is_fast());
        assert_eq!(AesDriver::find("name : aes\npriority : 9\ndriver : x"), None);
        assert_eq!(AesDriver::find("garbage"), None);
    }

    #[test]
    fn tls_1_3_is_given_to_a_kernel_that_changes_keys_and_aes_to_one_that_is_fast() {
        let all = |kernel: KernelTls| RecordSuite::ALL.map(|suite| kernel.takes(suite));
        assert_eq!(all(trial(true, OF_6_1).use_of(true)), [true; 6]);
        assert_eq!(all(trial(false, OF_6_1).use_of(true)), [true, true, true, false, false, false]);
        for unknown_or_slow in ["", &OF_6_1.replace("400", "1")] {
            let sparing = trial(true, unknown_or_slow).use_of(true);
            assert_eq!(all(sparing), [false, false, true, false, false, true]);
            assert_eq!(all(trial(true, unknown_or_slow).use_of(false)), [true; 6]);
        }
    }
}
