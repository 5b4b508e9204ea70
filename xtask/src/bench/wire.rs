//! What the load's two ends share: the clock, paced ticks, TLS, and messages whose every byte is checked.
//! After the 101 no peer reads frames, so messages carry a header of the load's own instead of WebSocket's.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use harness::certificates::Identity;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Length, sequence number, time stamp, and the check of these three.
const HEADER_BYTES: usize = 32;
/// The longest payload; a header that claims more is a broken stream.
const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// How a leg is secured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Tls {
    Off,
    Tls12,
    Tls13,
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of the machine share.
pub(super) fn now() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn timespec(nanoseconds: u64) -> Timespec {
    let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Timespec { tv_sec: part(nanoseconds / 1_000_000_000), tv_nsec: part(nanoseconds % 1_000_000_000) }
}

/// How often something is due, and when within its period. Both ends take their ticks from the machine's clock: where
/// they fall is the same for every peer, however long it took to connect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Nanoseconds from one time to the next, at least 1.
    pub(super) period: u64,
    /// Nanoseconds into the period.
    pub(super) shift: u64,
}

impl Pace {
    /// So many times a second.
    pub(super) fn new(per_second: f64) -> Self {
        Self { period: nanos(Duration::from_secs_f64(1.0 / per_second)).max(1), shift: 0 }
    }

    /// The paces of so many sessions that take turns within a period.
    pub(super) fn in_turns(self, sessions: u64) -> impl Iterator<Item = Self> {
        (0..sessions).map(move |turn| Self { shift: self.period * turn / sessions, ..self })
    }

    /// The first time it is due after `time`.
    fn first_after(self, time: u64) -> u64 {
        time + self.period - (time + self.period - self.shift) % self.period
    }

    /// Its ticks from now on.
    pub(super) fn ticks(self) -> io::Result<Ticks> {
        Ticks::new(self.first_after(now()), self.period)
    }
}

/// Ticks at exact times. A late reader gets each one it has missed, with the time it was meant for.
pub(super) struct Ticks {
    timer: AsyncFd<rustix::fd::OwnedFd>,
    next: u64,
    period: u64,
    due: u64,
}

impl Ticks {
    /// The first at `first`, then one each `period`, both in nanoseconds.
    fn new(first: u64, period: u64) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let schedule = Itimerspec { it_interval: timespec(period), it_value: timespec(first) };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &schedule)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an owned descriptor that is never replaced is sound"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, next: first, period, due: 0 })
    }

    /// Waits for a tick and returns when it was meant to be. Nothing is lost where the wait is given up.
    pub(super) async fn next(&mut self) -> io::Result<u64> {
        while self.due == 0 {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?)) {
                Ok(read) => self.due = read.map(|_| u64::from_ne_bytes(count))?,
                Err(_not_yet) => {}
            }
        }
        self.due -= 1;
        let meant = self.next;
        self.next += self.period;
        Ok(meant)
    }
}

/// A connection, secured or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// What precedes a payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) payload_bytes: usize,
    pub(super) sequence: u64,
    pub(super) stamp: u64,
}

impl Header {
    /// The header, once there is a whole one; an error if any of its bytes is wrong.
    fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let mut numbers = [0; 4];
        for (number, bytes) in numbers.iter_mut().zip(header.as_chunks().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        let [length, sequence, stamp, check] = numbers;
        let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let header = Self { payload_bytes, sequence, stamp };
        let is_right = check == header.check() && payload_bytes <= PAYLOAD_BYTES_MAX;
        if is_right { Ok(Some(header)) } else { Err(wrong("wrong bytes in a header")) }
    }

    fn check(self) -> u64 {
        let mixed = self.stamp ^ self.sequence.rotate_left(24) ^ (self.payload_bytes as u64).rotate_left(48);
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The whole message, header and payload, behind what is in `out`.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.extend(u64::try_from(self.payload_bytes).unwrap_or(u64::MAX).to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.stamp.to_le_bytes());
        out.extend(self.check().to_le_bytes());
        out.extend_from_slice(payload(self.sequence, self.payload_bytes));
    }
}

/// The one right payload of a message: noise that depends on its sequence number.
pub(super) fn payload(sequence: u64, bytes: usize) -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let step = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(state.to_be_bytes()[0])
        };
        let mut state = 1;
        std::iter::from_fn(move || step(&mut state)).take(PAYLOAD_BYTES_MAX + 256).collect()
    });
    let start = usize::from(sequence.to_le_bytes()[0]);
    &noise[start..start + bytes.min(PAYLOAD_BYTES_MAX)]
}

/// A connection that carries heads first and messages later; every byte read is checked or handed out.
pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
    used: usize,
    expected: u64,
    out: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream, buffer: Vec::with_capacity(READ_BYTES), used: 0, expected: 0, out: Vec::new() }
    }

    /// Sends bytes as they are.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends one message.
    pub(super) async fn post(&mut self, header: Header) -> io::Result<()> {
        self.out.clear();
        header.put(&mut self.out);
        self.stream.write_all(&self.out).await?;
        self.stream.flush().await
    }

    /// A head with its empty line, or nothing where the other side has ended between two.
    pub(super) async fn head(&mut self) -> io::Result<Option<String>> {
        loop {
            let unread = &self.buffer[self.used..];
            if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&unread[..at + 4]).into_owned();
                self.used += at + 4;
                return Ok(Some(head));
            }
            let is_between = unread.is_empty();
            match self.fill().await {
                Ok(0) if is_between => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a body and compares it with the payload of that sequence number.
    pub(super) async fn body(&mut self, sequence: u64, bytes: usize) -> io::Result<()> {
        while self.buffer.len() - self.used < bytes {
            if self.fill().await? == 0 {
                return Err(wrong("the connection ended inside a body"));
            }
        }
        self.check(sequence, bytes)
    }

    /// Takes in a body that is not looked at.
    pub(super) async fn skip(&mut self, mut bytes: usize) -> io::Result<()> {
        loop {
            let taken = bytes.min(self.buffer.len() - self.used);
            (self.used, bytes) = (self.used + taken, bytes - taken);
            if bytes == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(wrong("the connection ended inside a body"));
            }
        }
    }

    /// The next message, checked; giving up the wait loses nothing. Nothing where the stream has ended between two.
    pub(super) async fn message(&mut self) -> io::Result<Option<Header>> {
        loop {
            if let Some(header) = Header::read(&self.buffer[self.used..])? {
                if header.sequence != self.expected {
                    let text = format!("message {} is not next, {} is", header.sequence, self.expected);
                    return Err(wrong(&text));
                }
                if self.buffer.len() - self.used >= HEADER_BYTES + header.payload_bytes {
                    self.used += HEADER_BYTES;
                    self.check(header.sequence, header.payload_bytes)?;
                    self.expected += 1;
                    return Ok(Some(header));
                }
            }
            if self.fill().await? == 0 {
                let is_between = self.used == self.buffer.len();
                return if is_between { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Says goodbye as TLS does, then ends.
    pub(super) async fn close(mut self) {
        // The other side may have gone first.
        let _ = self.stream.shutdown().await;
    }

    fn check(&mut self, sequence: u64, bytes: usize) -> io::Result<()> {
        let end = self.used + bytes;
        if self.buffer[self.used..end] != *payload(sequence, bytes) {
            return Err(wrong(&format!("wrong bytes in message {sequence}")));
        }
        self.used = end;
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await {
            // Some proxies end TLS with FIN alone; what is missing is found by the sequence numbers.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            result => result,
        }
    }
}

/// What the stream should not have said.
pub(super) fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Only AES-256-GCM, so that both legs of every peer use it.
fn provider() -> Arc<CryptoProvider> {
    let suites =
        vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites: suites, ..default_provider() })
}

/// The agent's side; none for a plain leg.
pub(super) fn acceptor(tls: Tls, identity: &Identity) -> io::Result<Option<TlsAcceptor>> {
    let versions = match tls {
        Tls::Off => return Ok(None),
        Tls::Tls12 => &[&TLS12][..],
        Tls::Tls13 => &[&TLS13],
    };
    let chain = identity.chain().map_err(io::Error::other)?;
    let key = identity.key().map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    config.ticketer = Ticketer::new().map_err(io::Error::other)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// The client's side, which trusts the certificates of all peers. It offers TLS 1.3 alone: a peer that would choose
/// 1.2 is to fail here rather than to be measured.
pub(super) fn connector(cert_pem: &str, resume: bool, http2: bool) -> io::Result<TlsConnector> {
    let identity = Identity { cert_pem: cert_pem.into(), key_pem: String::new() };
    let mut roots = RootCertStore::empty();
    for certificate in identity.chain().map_err(io::Error::other)? {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

/// As nanoseconds.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u64, payload_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        Header { payload_bytes, sequence, stamp: 7 }.put(&mut bytes);
        bytes
    }

    async fn received(bytes: Vec<u8>, count: usize) -> io::Result<Option<Header>> {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&bytes).await?;
        drop(near);
        let mut wire = Wire::new(Box::new(far));
        for _ in 1..count {
            wire.message().await?;
        }
        wire.message().await
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in() {
        let two = [message(0, 0), message(1, 70_000)].concat();
        let second = Header { payload_bytes: 70_000, sequence: 1, stamp: 7 };
        assert_eq!(received(two.clone(), 2).await.ok(), Some(Some(second)));
        assert_eq!(received(two, 3).await.ok(), Some(None));
    }

    #[tokio::test]
    async fn a_wrong_byte_a_gap_and_a_cut_are_errors() {
        for at in [0, 8, 20, 31, 32, 500] {
            let mut flipped = message(0, 1000);
            flipped[at] ^= 1;
            assert!(received(flipped, 1).await.is_err(), "byte {at}");
        }
        assert!(received(message(1, 10), 1).await.is_err());
        assert!(received(message(0, 10)[..20].to_vec(), 1).await.is_err());
    }

    #[test]
    fn turns_fall_on_the_same_times_whenever_they_are_asked_for() {
        let firsts = |time| {
            let paces = Pace::new(100.0).in_turns(4);
            paces.map(|pace| pace.first_after(time)).collect::<Vec<_>>()
        };
        assert_eq!(firsts(0), [10_000_000, 2_500_000, 5_000_000, 7_500_000]);
        assert_eq!(firsts(2_499_999), firsts(0));
        assert_eq!(firsts(2_500_000), [10_000_000, 12_500_000, 5_000_000, 7_500_000]);
    }

    #[tokio::test]
    async fn a_late_reader_gets_every_tick_it_missed() -> io::Result<()> {
        let first = now();
        let mut ticks = Ticks::new(first, 1_000)?;
        for tick in 0..100 {
            assert_eq!(ticks.next().await?, first + tick * 1_000);
        }
        Ok(())
    }
}
