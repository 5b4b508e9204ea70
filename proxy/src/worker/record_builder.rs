//! The access record of a request while it runs: what is known is noted, and at the end it is counted and written once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::message::{self, RequestHead, Version};
use crate::observe::access_log::{AccessRecord, EndReason};
use crate::observe::client::ClientConnection;
use crate::observe::request_id::RequestId;
use crate::session::open_sessions::Desktop;
use crate::transport::net::Runtime;
use crate::worker::context::Generation;

/// Bytes of a request line that the access log keeps.
const LOGGED_LINE_BYTES: usize = 1024;

/// An access record that is being built.
pub(crate) struct RecordBuilder {
    pub(crate) record: AccessRecord,
    /// Whether the client came by HTTPS.
    pub(crate) secure: bool,
    /// What the client is told by the proxy itself.
    pub(crate) told: String,
    started: Instant,
}

impl RecordBuilder {
    /// The connection and the client that the request came from.
    pub(crate) fn client(&self) -> ClientConnection {
        ClientConnection { id: self.record.conn, address: self.record.client, port: self.record.port }
    }

    /// The desktop that a session of this client at `agent` belongs to.
    pub(crate) fn desktop(&self, agent: SocketAddr) -> Desktop {
        Desktop { agent, client: self.record.client, user: self.record.user.clone() }
    }

    /// Of a request that begins.
    pub(crate) fn new(id: RequestId, client: ClientConnection, secure: bool, started: Instant) -> Self {
        let record = AccessRecord {
            id,
            conn: client.id,
            client: client.address,
            port: client.port,
            tls: "",
            is_reused: false,
            user: String::new(),
            request: String::new(),
            referer: String::new(),
            user_agent: String::new(),
            status: 0,
            agent: None,
            to_agent: 0,
            to_client: 0,
            duration: Duration::ZERO,
            first_byte: None,
            session: None,
            end_reason: EndReason::Rejected,
        };
        Self { record, secure, told: String::new(), started }
    }

    /// Writes that the session begins, where the log has room for that.
    pub(crate) fn log_session_start<N: Runtime>(&mut self, generation: &Generation<N>) {
        self.record.status = 101;
        self.record.duration = generation.net.now() - self.started;
        generation.shared.log.write_start(&self.record);
    }

    /// Of a head that is understood.
    pub(crate) fn note(&mut self, head: &RequestHead<'_>) {
        let version = match head.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2.0",
        };
        let path: String = head.path.chars().take(LOGGED_LINE_BYTES).collect();
        self.record.request = format!("{} {path} {version}", head.method);
        self.record.referer = first_value(head, "referer");
        self.record.user_agent = first_value(head, "user-agent");
    }

    /// Of a head that can't be parsed, what stands in its first line. `is_stream`: it stands for a head of HTTP/2.
    pub(crate) fn note_bytes(&mut self, bytes: &[u8], is_stream: bool) {
        let line = bytes.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
        let line = &line[..line.len().min(LOGGED_LINE_BYTES)];
        self.record.request = String::from_utf8_lossy(line).into_owned();
        if is_stream && let Some(asked) = self.record.request.strip_suffix("HTTP/1.1") {
            self.record.request = format!("{asked}HTTP/2.0");
        }
    }

    /// When the agent was heard first.
    pub(crate) fn note_first_byte(&mut self, heard: Option<Instant>) {
        self.record.first_byte = heard.map(|heard| heard.saturating_duration_since(self.started));
    }

    /// Ends the record: counts it, and writes it to the access log.
    pub(crate) fn close<N: Runtime>(
        mut self,
        generation: &Generation<N>,
        status: u16,
        end_reason: EndReason,
    ) {
        self.record.status = status;
        self.record.end_reason = end_reason;
        self.record.duration = generation.net.now() - self.started;
        let AccessRecord { conn, client, agent, .. } = &self.record;
        let agent = agent.map(tracing::field::display);
        tracing::debug!(conn = conn.number(), %client, agent, status, %end_reason, "request ended");
        generation.worker.stats.close(&self.record);
        generation.shared.process.recent_ends.ended(&self.record, &self.told);
        generation.shared.log.write(&self.record);
    }
}

fn first_value(head: &RequestHead<'_>, name: &str) -> String {
    let value = message::values(&head.headers, name).next().unwrap_or_default();
    String::from_utf8_lossy(&value[..value.len().min(LOGGED_LINE_BYTES)]).into_owned()
}
