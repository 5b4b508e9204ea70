//! A side of a session that says exactly the records that a test wants, by rustls or by keys taken from it.

use std::io::{self, Read, Write};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use harness::certificates::{Identity, KeyKind};
use harness::raw_client::trusting_verifier;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, Error,
    ProtocolVersion, ServerConfig, ServerConnection, SupportedCipherSuite,
};

/// How long a step may take: far longer than it needs in an emulated machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// The kernel takes twice as much.
const SMALL_BUFFER_BYTES: usize = 32 * 1024;
/// What a record is, besides its content (RFC 8446 5.1).
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const DATA: u8 = 23;

/// Suites, each with the version in which it is the only one.
pub(crate) const SUITES: [SupportedCipherSuite; 6] = [
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];
pub(crate) const TLS12: SupportedCipherSuite = SUITES[1];
pub(crate) const TLS13: SupportedCipherSuite = SUITES[4];

pub(crate) fn is_tls13(suite: SupportedCipherSuite) -> bool {
    suite.tls13().is_some()
}

/// What a side gets to hear.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    Bytes(Vec<u8>),
    /// `close_notify`.
    Goodbye,
    Alert(AlertDescription),
    /// A FIN or a reset without one of them.
    Cut,
}

/// A side of a session.
pub(crate) struct Peer {
    socket: TcpStream,
    tls: Connection,
    /// Heard and not asked for yet.
    ahead: Vec<u8>,
}

fn provider(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() })
}

impl Peer {
    /// A client of the proxy.
    pub(crate) fn client(to: SocketAddr, suite: SupportedCipherSuite) -> Self {
        let mut config = ClientConfig::builder_with_provider(provider(suite))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(trusting_verifier())
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Self::new(TcpStream::connect(to).unwrap(), tls.into())
    }

    /// The agent, at a connection of the proxy's.
    pub(crate) fn agent(socket: TcpStream, suite: SupportedCipherSuite) -> Self {
        let identity = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
        let mut config = ServerConfig::builder_with_provider(provider(suite))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain().unwrap(), identity.key().unwrap())
            .unwrap();
        config.enable_secret_extraction = true;
        Self::new(socket, ServerConnection::new(Arc::new(config)).unwrap().into())
    }

    fn new(mut socket: TcpStream, mut tls: Connection) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).expect("a handshake");
        }
        tls.complete_io_of_writes(&mut socket);
        Self { socket, tls, ahead: Vec::new() }
    }

    /// The same, with sockets that hold little of what it says and is to hear.
    pub(crate) fn with_small_buffers(self) -> Self {
        let socket = socket2::SockRef::from(&self.socket);
        socket.set_recv_buffer_size(SMALL_BUFFER_BYTES).unwrap();
        socket.set_send_buffer_size(SMALL_BUFFER_BYTES).unwrap();
        self
    }

    /// Says bytes; false where nobody takes them.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> bool {
        bytes.chunks(1 << 16).all(|piece| {
            let flight = self.sealed(piece);
            self.socket.write_all(&flight).is_ok()
        })
    }

    /// The records of bytes, which somebody has to send.
    pub(crate) fn sealed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(bytes).unwrap();
        self.flight()
    }

    fn flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut flight).unwrap();
        }
        flight
    }

    /// Sends what is no record of rustls's, or not as it has made it.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The other side may have gone.
        let _ = self.socket.write_all(bytes);
    }

    /// Changes its key, and asks the other side for the same.
    pub(crate) fn renew_keys(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
        let flight = self.flight();
        self.send(&flight);
    }

    /// Hears what comes next.
    pub(crate) fn hear(&mut self) -> Heard {
        if !self.ahead.is_empty() {
            return Heard::Bytes(mem::take(&mut self.ahead));
        }
        let mut bytes = vec![0; 1 << 16];
        loop {
            match self.tls.reader().read(&mut bytes) {
                Ok(0) => return Heard::Goodbye,
                Ok(read) => return Heard::Bytes(bytes[..read].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Heard::Cut,
            }
            match self.tls.read_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("nothing comes"),
                Err(_) => return Heard::Cut,
            }
            if let Err(error) = self.tls.process_new_packets() {
                let Error::AlertReceived(alert) = error else { panic!("{error}") };
                return Heard::Alert(alert);
            }
            // An answer to a new key.
            let flight = self.flight();
            self.send(&flight);
        }
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            match self.hear() {
                Heard::Bytes(more) => bytes.extend(more),
                other => panic!("{other:?} after {} of {count} bytes", bytes.len()),
            }
        }
        self.ahead = bytes.split_off(count);
        bytes
    }

    /// At least so many bytes, if the other side says as many; how many they were.
    pub(crate) fn bytes_of(&mut self, least: usize) -> usize {
        let mut count = 0;
        while count < least {
            match self.hear() {
                Heard::Bytes(more) => count += more.len(),
                other => panic!("{other:?} after {count} of {least} bytes"),
            }
        }
        count
    }

    /// All up to the end, and what that was.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, Heard) {
        let mut bytes = Vec::new();
        loop {
            match self.hear() {
                Heard::Bytes(more) => bytes.extend(more),
                end => return (bytes, end),
            }
        }
    }

    /// A head of HTTP.
    pub(crate) fn head(&mut self) -> String {
        let mut head = Vec::new();
        loop {
            if let Some(end) = head.windows(4).position(|it| it == b"\r\n\r\n") {
                self.ahead = head.split_off(end + 4);
                return String::from_utf8(head).unwrap();
            }
            match self.hear() {
                Heard::Bytes(more) => head.extend(more),
                other => panic!("{other:?}"),
            }
        }
    }

    /// `close_notify` without a FIN.
    pub(crate) fn say_goodbye(&mut self) {
        self.tls.send_close_notify();
        let flight = self.flight();
        self.send(&flight);
    }

    /// A FIN.
    pub(crate) fn cut(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The end of its bytes in order.
    pub(crate) fn finish(&mut self) {
        self.say_goodbye();
        self.cut();
    }

    /// The other side is told nothing but that the connection is gone.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Goes on without rustls, with AES-256-GCM of either version.
    pub(crate) fn into_records(self) -> RawPeer {
        let is_tls13 = self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let secrets = match self.tls {
            Connection::Client(tls) => tls.dangerous_extract_secrets(),
            Connection::Server(tls) => tls.dangerous_extract_secrets(),
        };
        let secrets = secrets.unwrap();
        let [sealer, opener] = [secrets.tx, secrets.rx].map(|(sequence, secrets)| {
            let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
            let aead = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
            Records { is_tls13, aead, iv: iv.as_ref().try_into().unwrap(), sequence }
        });
        RawPeer { socket: self.socket, sealer, opener, has_failed: false, heard: 0 }
    }
}

/// Only what waits to be written.
trait Writes {
    fn complete_io_of_writes(&mut self, socket: &mut TcpStream);
}

impl Writes for Connection {
    fn complete_io_of_writes(&mut self, socket: &mut TcpStream) {
        while self.wants_write() {
            self.write_tls(socket).expect("a handshake");
        }
    }
}

/// A side that seals what it likes.
pub(crate) struct RawPeer {
    socket: TcpStream,
    sealer: Records,
    opener: Records,
    /// A call has failed by the other side's doing.
    has_failed: bool,
    /// Bytes of data that were heard.
    pub(crate) heard: u64,
}

impl RawPeer {
    /// A record, which somebody has to send.
    pub(crate) fn sealed(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.sealer.sealed(kind, content)
    }

    pub(crate) fn send(&mut self, kind: u8, content: &[u8]) {
        let record = self.sealed(kind, content);
        self.send_bytes(&record);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        // The other side may have gone.
        self.has_failed |= self.socket.write_all(bytes).is_err();
    }

    /// A FIN.
    pub(crate) fn cut(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether the other side is gone, and has not only ended.
    pub(crate) fn is_reset(&self) -> bool {
        self.has_failed || self.socket.take_error().unwrap().is_some()
    }

    /// The last alert that comes until the other side has ended.
    pub(crate) fn last_alert(&mut self) -> Option<[u8; 2]> {
        let mut last = None;
        let mut header = [0; 5];
        loop {
            if let Err(error) = self.socket.read_exact(&mut header) {
                assert!(error.kind() != io::ErrorKind::WouldBlock, "the other side does not end");
                self.has_failed |= error.kind() != io::ErrorKind::UnexpectedEof;
                return last;
            }
            let mut body = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
            self.socket.read_exact(&mut body).ok()?;
            let (kind, content) = self.opener.opened(header, body);
            match kind {
                DATA => self.heard += content.len() as u64,
                ALERT => last = content.try_into().ok(),
                _ => {}
            }
        }
    }
}

/// Records of one way.
struct Records {
    is_tls13: bool,
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Records {
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(to, it)| *to ^= it);
        nonce
    }

    /// RFC 8446 5.2, or RFC 5246 6.2.3.3.
    fn authenticated(&self, header: [u8; 5], content_bytes: usize) -> Vec<u8> {
        if self.is_tls13 {
            return header.to_vec();
        }
        let length = u16::try_from(content_bytes).unwrap().to_be_bytes();
        [&self.sequence.to_be_bytes()[..], &header[..3], &length].concat()
    }

    fn sealed(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let nonce = self.nonce();
        let explicit = if self.is_tls13 { &[][..] } else { &nonce[4..] };
        let mut sealed = content.to_vec();
        if self.is_tls13 {
            sealed.push(kind);
        }
        let body = u16::try_from(explicit.len() + sealed.len() + 16).unwrap().to_be_bytes();
        let header = [if self.is_tls13 { DATA } else { kind }, 3, 3, body[0], body[1]];
        let aad = Aad::from(self.authenticated(header, content.len()));
        self.aead.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).unwrap();
        self.sequence += 1;
        [&header[..], explicit, &sealed].concat()
    }

    fn opened(&mut self, header: [u8; 5], mut body: Vec<u8>) -> (u8, Vec<u8>) {
        let mut nonce = self.nonce();
        if !self.is_tls13 {
            nonce[4..].copy_from_slice(&body[..8]);
            body.drain(..8);
        }
        let aad = Aad::from(self.authenticated(header, body.len() - 16));
        let opened = self.aead.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut body);
        let mut content = opened.expect("a record of the proxy's").to_vec();
        self.sequence += 1;
        let kind = if self.is_tls13 { content.pop().unwrap() } else { header[0] };
        (kind, content)
    }
}
