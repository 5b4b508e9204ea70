//! The stats: what a request or session was, how it ended and what it moved, and the access log's line of it.
//! An entry is written once, when it is over. No secret of a URL ever gets into a line.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::observe::agent::Agent;
use crate::observe::client::ConnectionId;
use crate::observe::histogram::micros;
use crate::observe::lag::Lag;
use crate::observe::request_id::RequestId;
use crate::observe::session_stats::SessionSample;
use crate::observe::side::Side;
use crate::os::log::Log;

/// Why a request or session ended, and which side did it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndReason {
    /// The exchange was completed.
    Complete,
    /// The proxy answered itself, and rejected nothing: `/health`, a redirect.
    Answered,
    /// The proxy rejected the request.
    Rejected,
    /// The side ended the session in order.
    Ended(Side),
    /// The side's TLS stream was cut: FIN without `close_notify`.
    Truncated(Side),
    /// The side's socket failed, mostly by a reset.
    Reset(Side),
    /// The side took no bytes for too long.
    Stalled(Side),
    /// The side did not send what was due in time.
    TimedOut(Side),
    /// The side broke the rules of TLS.
    BrokeTls(Side),
    /// The side broke the rules of HTTP.
    BrokeHttp(Side),
    /// The TLS key of the side has sealed all it may.
    KeyExhausted(Side),
    /// Nothing was moved for the idle limit.
    Idle,
    /// The proxy was stopped.
    Drained,
    /// An operator has ended it (`dcv-splice end`).
    EndedByOperator,
    /// Its user, or its client's network, is no longer let in.
    Revoked,
    /// It has lasted as long as a session may.
    MaxDuration,
}

impl Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Answered => f.write_str("answered"),
            Self::Rejected => f.write_str("rejected"),
            Self::Ended(side) => write!(f, "{side}-ended"),
            Self::Truncated(side) => write!(f, "{side}-truncated"),
            Self::Reset(side) => write!(f, "{side}-reset"),
            Self::Stalled(side) => write!(f, "{side}-stalled"),
            Self::TimedOut(side) => write!(f, "{side}-timed-out"),
            Self::BrokeTls(side) => write!(f, "{side}-broke-tls"),
            Self::BrokeHttp(side) => write!(f, "{side}-broke-http"),
            Self::KeyExhausted(side) => write!(f, "{side}-key-exhausted"),
            Self::Idle => f.write_str("idle"),
            Self::Drained => f.write_str("drained"),
            Self::EndedByOperator => f.write_str("ended-by-operator"),
            Self::Revoked => f.write_str("revoked"),
            Self::MaxDuration => f.write_str("max-duration"),
        }
    }
}

/// The record of one request, or of the session that it became.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// The id of the request, as the agent has seen it.
    pub id: RequestId,
    /// The connection that the request came on.
    pub conn: ConnectionId,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port on this connection: a balancer's, where the client is known by a header alone.
    pub port: u16,
    /// The version of TLS to the client, `1.2` or `1.3`; empty without it.
    pub tls: &'static str,
    /// The agent's connection was there before.
    pub is_reused: bool,
    /// The name that it showed the password of.
    pub user: String,
    /// The request line as far as it is known, secrets included.
    pub request: String,
    /// The `Referer`, secrets included.
    pub referer: String,
    /// The `User-Agent`.
    pub user_agent: String,
    /// The status that the client was given; 0 where it was given none.
    pub status: u16,
    /// Which agent was asked.
    pub agent: Option<Agent>,
    /// Body and session bytes from the client to the agent.
    pub to_agent: u64,
    /// Body and session bytes from the agent to the client.
    pub to_client: u64,
    /// From the request's head to its end.
    pub duration: Duration,
    /// From the request's head to the first byte of the agent's response.
    pub first_byte: Option<Duration>,
    /// Why it ended.
    pub end_reason: EndReason,
    /// What a session was like at its end.
    pub session: Option<SessionSample>,
}

impl AccessRecord {
    /// The access log's line: the combined format, then what a desktop's operator asks for.
    ///
    /// `is_start`: of a session that begins.
    pub fn line(&self, now: OffsetDateTime, is_start: bool) -> String {
        let stamp = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
        let now = now.format(stamp).unwrap_or_default();
        let agent = self.agent.map_or_else(|| "-".to_owned(), |agent| agent.to_string());
        let end_reason = if is_start { "started".to_owned() } else { self.end_reason.to_string() };
        format!(
            "{} - {} [{now}] \"{}\" {} {} \"{}\" \"{}\" conn={} agent={agent} to_agent={} to_client={} ms={} id={} end_reason={end_reason}\n",
            self.client,
            escape(dash(&self.user)).replace(' ', "\\x20"),
            escape(&redact(&self.request)),
            self.status,
            self.to_client,
            escape(&redact(dash(&self.referer))),
            escape(dash(&self.user_agent)),
            self.conn,
            self.to_agent,
            self.to_client,
            self.duration.as_millis(),
            self.id,
        )
    }
}

/// Without control characters, which a terminal would obey.
fn printable(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        return Cow::Owned(text.replace(char::is_control, "\u{fffd}"));
    }
    text
}

/// A line of the log as JSON. Strings have no control characters in them, and no secrets.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    event: &'a str,
    id: &'a str,
    conn: u64,
    client: IpAddr,
    client_port: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: Cow<'a, str>,
    request: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    referer: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    tls: &'a str,
    status: u16,
    agent: Option<String>,
    agent_connection_reused: bool,
    to_agent: u64,
    to_client: u64,
    duration_us: u64,
    first_byte_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_reason: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    session: Option<JsonSession>,
}

/// What a session was like at its end.
#[derive(Serialize)]
struct JsonSession {
    client_rtt_us: Option<u32>,
    agent_rtt_us: Option<u32>,
    client_retransmitted_segments: Option<u32>,
    queue_to_agent: u64,
    queue_to_client: u64,
    residence_p99_us: u64,
    lag: Lag,
}

impl AccessRecord {
    /// The line as JSON. `is_start`: of a session that begins.
    pub fn json_line(&self, now: OffsetDateTime, is_start: bool) -> String {
        let stamp =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        let event = match (is_start, self.status) {
            (true, _) => "session_started",
            (false, 101) => "session_ended",
            (false, _) => "request",
        };
        let session = self.session.as_ref().map(|it| JsonSession {
            client_rtt_us: it.client_tcp.map(|tcp| tcp.rtt_us),
            agent_rtt_us: it.agent_tcp.map(|tcp| tcp.rtt_us),
            client_retransmitted_segments: it.client_tcp.map(|tcp| tcp.retransmitted_segments),
            queue_to_agent: it.queue_to_agent,
            queue_to_client: it.queue_to_client,
            residence_p99_us: it.residence_p99_us,
            lag: it.lag,
        });
        let line = JsonLine {
            time: now.format(stamp).unwrap_or_default(),
            event,
            id: self.id.as_str(),
            conn: self.conn.number(),
            client: self.client,
            client_port: self.port,
            user: printable(Cow::Borrowed(&self.user)),
            request: printable(redact(&self.request)),
            referer: printable(redact(&self.referer)),
            user_agent: printable(Cow::Borrowed(&self.user_agent)),
            tls: self.tls,
            status: self.status,
            agent: self.agent.map(|agent| agent.to_string()),
            agent_connection_reused: self.is_reused,
            to_agent: self.to_agent,
            to_client: self.to_client,
            duration_us: micros(self.duration),
            first_byte_us: self.first_byte.map(micros),
            end_reason: (!is_start).then(|| self.end_reason.to_string()),
            session,
        };
        // Numbers and strings can always be written.
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        text
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Query parameters whose values are never written down.
const SECRETS: [&str; 3] = ["authtoken", "token", "password"];

/// Replaces the values of secret query parameters.
pub fn redact(text: &str) -> Cow<'_, str> {
    let Some(query) = text.find('?') else { return Cow::Borrowed(text) };
    let mut out = text[..=query].to_owned();
    let mut rest = &text[query + 1..];
    loop {
        let end = rest.find(['&', ';', '?', ' ', '#']).unwrap_or(rest.len());
        let (parameter, after) = rest.split_at(end);
        match parameter.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                out.push_str(name);
                out.push_str("=***");
            }
            _ => out.push_str(parameter),
        }
        let Some(separator) = after.chars().next() else { return Cow::Owned(out) };
        out.push(separator);
        rest = &after[separator.len_utf8()..];
    }
}

/// A name may be percent-encoded: `%74oken` is a token too.
fn is_secret(name: &str) -> bool {
    let mut decoded = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let hex = name.get(name.len() - bytes.len()..).and_then(|rest| rest.get(..2));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(plain) if byte == b'%' => {
                decoded.push(plain);
                bytes.nth(1);
            }
            _ => decoded.push(byte),
        }
    }
    SECRETS.iter().any(|secret| decoded.eq_ignore_ascii_case(secret.as_bytes()))
}

/// Quotes, backslashes and everything that is not printable ASCII as `\xHH`, so that a line stays one line.
fn escape(text: &str) -> Cow<'_, str> {
    let clean = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
    if text.bytes().all(clean) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.bytes().fold(String::with_capacity(text.len() + 8), |mut out, byte| {
        if clean(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to memory does not fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
        out
    }))
}

/// The access log. A worker never waits for the disk.
#[derive(Clone, Debug, Default)]
pub struct AccessLog {
    log: Option<Log>,
    is_json: bool,
}

impl AccessLog {
    /// The log whose lines go to `log`, as JSON or in the combined format.
    pub fn to(log: Log, is_json: bool) -> Self {
        Self { log: Some(log), is_json }
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Writes the line of `record`.
    pub fn write(&self, record: &AccessRecord) {
        self.write_line(record, false);
    }

    /// Writes that the session of `record` begins.
    pub fn write_start(&self, record: &AccessRecord) {
        self.write_line(record, true);
    }

    fn write_line(&self, record: &AccessRecord, is_start: bool) {
        let Some(log) = &self.log else { return };
        let now = OffsetDateTime::now_utc();
        let line = if self.is_json { record.json_line(now, is_start) } else { record.line(now, is_start) };
        log.write(line.as_bytes());
        if let Some(dropped) = log.untold() {
            tracing::warn!(dropped, "access log lines dropped: the output does not take them in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::observe::client::ConnectionIds;

    #[test]
    fn secrets_of_a_query_are_replaced() {
        let cases = [
            ("GET /x?token=a%2Fb HTTP/1.1", "GET /x?token=*** HTTP/1.1"),
            ("/?authToken=abc&x=1#s", "/?authToken=***&x=1#s"),
            ("/?a=1&PASSWORD=p;token=q", "/?a=1&PASSWORD=***;token=***"),
            ("/?%74oken=abc&tokens=1", "/?%74oken=***&tokens=1"),
            ("/?a?token=x", "/?a?token=***"),
            ("/?token&token=", "/?token&token=***"),
            ("/?%", "/?%"),
            ("/?%é=1", "/?%é=1"),
            ("/token=x", "/token=x"),
        ];
        for (text, redacted) in cases {
            assert_eq!(redact(text), redacted);
        }
    }

    fn record() -> AccessRecord {
        AccessRecord {
            id: RequestId::given(b"abc").expect("an id"),
            conn: ConnectionIds::default().next(),
            user: "ann b".to_owned(),
            client: IpAddr::from([192, 0, 2, 1]),
            request: "GET /\"\n HTTP/1.1".to_owned(),
            referer: "https://p/?token=secret".to_owned(),
            user_agent: String::new(),
            status: 200,
            agent: Some(Agent::at(SocketAddr::from(([10, 0, 0, 5], 8443)))),
            to_agent: 1,
            to_client: 22,
            duration: Duration::from_millis(333),
            first_byte: None,
            session: None,
            port: 50_000,
            tls: "1.3",
            is_reused: true,
            end_reason: EndReason::Ended(Side::Client),
        }
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(
            record().line(OffsetDateTime::UNIX_EPOCH, false),
            "192.0.2.1 - ann\\x20b [01/Jan/1970:00:00:00 +0000] \"GET /\\x22\\x0a HTTP/1.1\" 200 22 \"https://p/?token=***\" \"-\" \
             conn=1 agent=10.0.0.5:8443 to_agent=1 to_client=22 ms=333 id=abc end_reason=client-ended\n"
        );
    }

    #[test]
    fn a_line_of_json_has_what_the_other_has_and_more() {
        let line = record().json_line(OffsetDateTime::UNIX_EPOCH, false);
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        for (key, value) in [
            ("time", "1970-01-01T00:00:00.000000Z"),
            ("event", "request"),
            ("id", "abc"),
            ("client", "192.0.2.1"),
            ("user", "ann b"),
            ("request", "GET /\"\u{fffd} HTTP/1.1"),
            ("referer", "https://p/?token=***"),
            ("agent", "10.0.0.5:8443"),
            ("tls", "1.3"),
            ("end_reason", "client-ended"),
        ] {
            assert_eq!(json[key], value);
        }
        for (key, value) in
            [("client_port", 50_000), ("status", 200), ("duration_us", 333_000), ("to_client", 22)]
        {
            assert_eq!(json[key], value);
        }
        assert!(json.get("lag").is_none() && json.get("user_agent").is_none(), "{line}");
    }

    #[test]
    fn a_session_has_a_line_when_it_begins_and_one_when_it_ends() {
        let tcp = crate::observe::lag::TcpSample { rtt_us: 700, ..Default::default() };
        let session =
            SessionSample { client_tcp: Some(tcp), residence_p99_us: 64, ..SessionSample::default() };
        let record = AccessRecord { status: 101, session: Some(session), ..record() };
        let json = |record: &AccessRecord, is_start| -> serde_json::Value {
            serde_json::from_str(&record.json_line(OffsetDateTime::UNIX_EPOCH, is_start)).expect("JSON")
        };
        let start = json(&AccessRecord { session: None, ..record.clone() }, true);
        assert_eq!(start["event"], "session_started");
        assert!(start.get("end_reason").is_none());
        let end = json(&record, false);
        assert_eq!((&end["event"], &end["client_rtt_us"]), (&"session_ended".into(), &700.into()));
        assert_eq!(end["residence_p99_us"], 64);
        let line = |is_start| record.line(OffsetDateTime::UNIX_EPOCH, is_start);
        assert!(line(true).contains(" id=abc end_reason=started\n"), "{}", line(true));
        assert!(line(false).contains(" id=abc end_reason=client-ended\n"), "{}", line(false));
    }
}
