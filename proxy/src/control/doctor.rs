//! `dcv-splice doctor`: tries step by step how an agent is reached, as the proxy would, and names the cause where it is not. Serves
//! nobody and changes nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::agents::unreachable::UnreachableReason;
use crate::config::Settings;
use crate::control::exit::{Failure, unusable};
use crate::control::validation::Prepared;
use crate::observe::histogram::micros;
use crate::observe::units::short;
use crate::os::files::DryRun;
use crate::runtime::io_uring::tcp_info;
use crate::tls::{BlockingTlsError, Connector, HandshakeFailure};

/// How long a step after connecting may take.
const IO_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer's head that are looked at.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// A key for the upgrade; nothing is said on that connection.
const WEBSOCKET_KEY: &str = "ZGN2LXNwbGljZSBkb2N0b3I=";

/// Why an agent is not reached, and the exit code that says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cause {
    NoSuchName = 10,
    NotAllowed = 11,
    PortClosed = 12,
    NoAnswer = 13,
    Unreachable = 14,
    PlainHttp = 15,
    OldTls = 16,
    CertificateChanged = 17,
    CertificateInvalid = 18,
    NoTls = 19,
    NoHttp = 20,
    WrongHost = 21,
    WrongOrigin = 22,
    NoSession = 23,
}

/// A cause, what was seen of it, and what to do.
struct Finding {
    cause: Cause,
    seen: String,
    remedy: String,
}

fn finding(cause: Cause, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { cause, seen: seen.into(), remedy: remedy.into() }
}

/// Tries it, and says what came of each step.
pub(super) fn run(agent: &str, host: &str, settings: Settings) -> Result<(), Failure> {
    let settings = settings.without(&[agent, host]);
    let prepared = Prepared::new(&settings, &DryRun).map_err(unusable)?;
    match (Doctor { prepared: &prepared, host }).examine(agent) {
        Ok(()) => {
            println!("all is well");
            Ok(())
        }
        Err(Finding { cause, seen, remedy }) => {
            Err(Failure { code: cause as u8, reason: format!("cause: {seen}\nremedy: {remedy}") })
        }
    }
}

struct Doctor<'a> {
    prepared: &'a Prepared,
    /// As browsers name the proxy.
    host: &'a str,
}

/// Whatever bytes go over.
trait Channel: Read + Write {}

impl<T: Read + Write> Channel for T {}

impl Doctor<'_> {
    fn examine(&self, agent: &str) -> Result<(), Finding> {
        let address = self.address(agent)?;
        self.is_allowed(address)?;
        drop(self.connect(address)?);
        self.shows_certificate(address)?;
        self.answers(address)?;
        self.upgrades(address)
    }

    fn address(&self, agent: &str) -> Result<SocketAddr, Finding> {
        let config = self.prepared.config();
        let bare = agent.trim_matches(['[', ']']);
        if let Some(named) = self.prepared.directory.named(bare) {
            step("name", None, &format!("{agent} is {} in --agents-file", named.address));
            return Ok(named.address);
        }
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok((address, config.policy.agent_port).into());
        }
        if let Ok(address) = agent.parse() {
            return Ok(address);
        }
        let begun = Instant::now();
        let found = (bare, config.policy.agent_port).to_socket_addrs().map(|mut all| all.next());
        match found {
            Ok(Some(address)) => {
                step("DNS", Some(begun), &format!("{agent} is {}", address.ip()));
                Ok(address)
            }
            found => {
                let why =
                    found.err().map_or_else(|| "it has no address".to_owned(), |error| error.to_string());
                let seen = format!("no agent is named {agent}: neither in --agents-file nor in DNS ({why})");
                Err(finding(
                    Cause::NoSuchName,
                    seen,
                    "look at the spelling, or name the agent in --agents-file",
                ))
            }
        }
    }

    fn is_allowed(&self, address: SocketAddr) -> Result<(), Finding> {
        if self.prepared.config().policy.agents.allows(address.ip()) {
            return Ok(());
        }
        let seen = format!("{} is in no --agents network: the proxy answers 403 for it", address.ip());
        Err(finding(Cause::NotAllowed, seen, format!("add --agents {}", address.ip())))
    }

    fn connect(&self, address: SocketAddr) -> Result<TcpStream, Finding> {
        let limit = self.prepared.config().limits.connect_timeout;
        let begun = Instant::now();
        let stream =
            TcpStream::connect_timeout(&address, limit).map_err(|error| connect_cause(address, &error))?;
        let rtt = tcp_info(stream.as_fd()).map(|info| short(info.tcpi_rtt.into()));
        let from = stream.local_addr().map(|local| local.ip().to_string());
        let from = from.unwrap_or_else(|error| error.to_string());
        let rtt = rtt.unwrap_or_else(|error| error.to_string());
        step("TCP", Some(begun), &format!("connected to {address} from {from}, round trip {rtt}"));
        Ok(stream)
    }

    /// A connection as the proxy makes it, without a word of its steps.
    fn open(&self, address: SocketAddr) -> Result<Box<dyn Channel>, Finding> {
        let stream = bounded(TcpStream::connect_timeout(&address, IO_TIMEOUT), address)?;
        match self.prepared.connector(address) {
            None => Ok(Box::new(stream)),
            Some(connector) => match connector.connect_blocking(stream, address.ip()) {
                Ok(tls) => Ok(Box::new(tls)),
                Err(error) => Err(tls_cause(address, &error)),
            },
        }
    }

    fn shows_certificate(&self, address: SocketAddr) -> Result<(), Finding> {
        let Some(connector) = self.prepared.connector(address) else { return Ok(()) };
        let begun = Instant::now();
        let stream = bounded(TcpStream::connect_timeout(&address, IO_TIMEOUT), address)?;
        let tls = connector.connect_blocking(stream, address.ip());
        let tls = tls.map_err(|error| tls_cause(address, &error))?;
        let shown = tls.certificate().map(|(pin, until)| format!("certificate {pin}, valid until {until}"));
        let shown = shown.unwrap_or_else(|| "no certificate".to_owned());
        step("TLS", Some(begun), &format!("{}; {shown}", tls.agreed()));
        Ok(())
    }

    /// A request as the proxy passes it on.
    fn ask(&self, address: SocketAddr, path: &str, host: &str, more: &str) -> Result<u16, Finding> {
        let mut channel = self.open(address)?;
        let connection = if more.is_empty() { "Connection: close\r\n" } else { "" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{connection}{more}\r\n");
        let no_http =
            |seen: String| finding(Cause::NoHttp, seen, "look what listens there: is it a DCV server?");
        let told = |error: &io::Error| no_http(format!("{address} does not answer HTTP: {error}"));
        channel.write_all(request.as_bytes()).and_then(|()| channel.flush()).map_err(|error| told(&error))?;
        let head = read_head(&mut *channel).map_err(|error| told(&error))?;
        status(&head).ok_or_else(|| no_http(format!("{address} answers with what is no HTTP")))
    }

    fn answers(&self, address: SocketAddr) -> Result<(), Finding> {
        let begun = Instant::now();
        let status = self.ask(address, "/", self.host, "")?;
        step("GET /", Some(begun), &format!("Host: {}: status {status}", self.host));
        let own = address.ip().to_string();
        if status == 403 && self.ask(address, "/", &own, "")? != 403 {
            let seen = format!("the agent refuses the Host {} (403), and takes {own}", self.host);
            let remedy = "allow it in dcv.conf, [connectivity] web-host-regex, or use --host-header agent";
            return Err(finding(Cause::WrongHost, seen, remedy));
        }
        if matches!(status, 404 | 500..) {
            let seen = format!("the agent's page is not there: GET / gives {status}");
            let remedy = "look whether its DCV server has a session (`dcv list-sessions`) and the web client installed";
            return Err(finding(Cause::NoSession, seen, remedy));
        }
        Ok(())
    }

    fn upgrades(&self, address: SocketAddr) -> Result<(), Finding> {
        let upgrade = |origin: &str| {
            let more = format!(
                "Origin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: {WEBSOCKET_KEY}\r\nSec-WebSocket-Protocol: dcv\r\n"
            );
            self.ask(address, "/auth", self.host, &more)
        };
        let (begun, origin) = (Instant::now(), format!("https://{}", self.host));
        let status = upgrade(&origin)?;
        step("/auth", Some(begun), &format!("Origin: {origin}: status {status}"));
        if status == 101 {
            return Ok(());
        }
        let own = format!("https://{address}");
        if status == 403 && upgrade(&own)? == 101 {
            let seen = format!("the agent refuses the Origin {origin} (403), and takes {own}");
            let remedy = "allow it in dcv.conf, [connectivity] web-origin-regex";
            return Err(finding(Cause::WrongOrigin, seen, remedy));
        }
        let seen = format!("the agent opens no channel: /auth gives {status}");
        let remedy = "look whether its DCV server has a session: `dcv list-sessions` on it";
        Err(finding(Cause::NoSession, seen, remedy))
    }
}

/// A line of what was tried.
fn step(what: &str, begun: Option<Instant>, result: &str) {
    let took = begun.map_or_else(String::new, |begun| short(micros(begun.elapsed())));
    println!("{what:6} {took:>8}  {result}");
}

fn connect_cause(address: SocketAddr, error: &io::Error) -> Finding {
    let reason = UnreachableReason::of_connection(error);
    let is_told = matches!(reason, UnreachableReason::NoRoute | UnreachableReason::Local);
    let detail = if is_told { format!(" ({error})") } else { String::new() };
    unreachable(address, reason, &detail)
}

/// The words are those that users are given.
fn unreachable(address: SocketAddr, reason: UnreachableReason, detail: &str) -> Finding {
    let cause = match reason {
        UnreachableReason::PortClosed => Cause::PortClosed,
        UnreachableReason::NoAnswer => Cause::NoAnswer,
        UnreachableReason::NoRoute | UnreachableReason::Local => Cause::Unreachable,
        UnreachableReason::PlainHttp => Cause::PlainHttp,
        UnreachableReason::OldTls => Cause::OldTls,
        UnreachableReason::CertificateChanged => Cause::CertificateChanged,
        UnreachableReason::CertificateInvalid => Cause::CertificateInvalid,
        UnreachableReason::NoTls => Cause::NoTls,
    };
    finding(cause, format!("{address}: {reason}{detail}"), reason.remedy())
}

fn tls_cause(address: SocketAddr, error: &BlockingTlsError) -> Finding {
    let (failure, told) = match error {
        BlockingTlsError::Io(error) if is_timeout(error) => {
            let detail = " (it takes the connection, and says nothing in the TLS handshake)";
            return unreachable(address, UnreachableReason::NoAnswer, detail);
        }
        BlockingTlsError::Io(error) => (HandshakeFailure::Left, error.to_string()),
        BlockingTlsError::Handshake(failure, told) => (*failure, told.clone()),
    };
    let is_lost = matches!(
        failure,
        HandshakeFailure::NoTls | HandshakeFailure::Left | HandshakeFailure::ProtocolViolation
    );
    if is_lost && speaks_plain_http(address) {
        return unreachable(address, UnreachableReason::PlainHttp, "");
    }
    let reason = UnreachableReason::of_handshake(failure);
    let shown = (reason == UnreachableReason::CertificateChanged).then(|| shown_pin(address)).flatten();
    let shown = shown.map_or_else(String::new, |pin| format!("; it shows {pin}"));
    unreachable(address, reason, &format!(" ({told}{shown})"))
}

fn bounded(stream: io::Result<TcpStream>, address: SocketAddr) -> Result<TcpStream, Finding> {
    let bound = |stream: TcpStream| {
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(stream)
    };
    stream.and_then(bound).map_err(|error| connect_cause(address, &error))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// The head of an answer, or as much of it as comes.
fn read_head(channel: &mut dyn Channel) -> io::Result<Vec<u8>> {
    let (mut head, mut bytes) = (Vec::new(), [0; 4096]);
    while head.len() < HEAD_BYTES_MAX && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match channel.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&bytes[..read]),
            Err(_) if !head.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// The status of a head of HTTP/1.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

fn speaks_plain_http(address: SocketAddr) -> bool {
    let asked = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, IO_TIMEOUT)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        Ok(status(&read_head(&mut stream)?).is_some())
    };
    asked().unwrap_or(false)
}

fn shown_pin(address: SocketAddr) -> Option<String> {
    let stream = TcpStream::connect_timeout(&address, IO_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(IO_TIMEOUT)).ok()?;
    let tls = Connector::trusting_anybody().ok()?.connect_blocking(stream, address.ip()).ok()?;
    tls.certificate().map(|(pin, _)| pin.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_that_of_http_1_and_of_nothing_else() {
        for (head, wanted) in [
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Some(101)),
            ("HTTP/1.0 404\r\n", Some(404)),
            ("HTTP/2 200\r\n", None),
            ("HTTP/1.1\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(head.as_bytes()), wanted, "{head}");
        }
    }
}
