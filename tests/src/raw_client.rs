//! One end of a connection that says exactly what a test wants, as a client or as an agent, plain or over TLS,
//! and that tells how the other end answered and how it ended. It never repairs anything: what is cut short
//! is called so.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf,
    split,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion,
};

/// How long one step of a conversation may take: far longer than it needs, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A TLS stream of either side.
pub type Secure = tokio_rustls::TlsStream<TcpStream>;

/// A stream whose TCP socket can be reached.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket under it.
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Wire for Secure {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct RawClient<S = TcpStream> {
    stream: BufReader<S>,
}

/// How the other end stopped sending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// With `close_notify`, or FIN where there is no TLS.
    Clean,
    /// With FIN alone where there is TLS, or with a reset.
    Cut,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head, up to and with the empty line.
    pub head: String,
    /// The body without its chunks.
    pub body: Vec<u8>,
    /// Whether the body came to the end that its framing promises.
    pub whole: bool,
}

impl Answer {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The value of the first header of this name in a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Waits for something that must happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it happens in time")
}

impl RawClient {
    /// Connects without TLS.
    pub async fn plain(to: SocketAddr) -> Self {
        Self::new(soon(TcpStream::connect(to)).await.expect("it listens"))
    }
}

impl RawClient<Secure> {
    /// Connects with TLS of any version, whatever the certificate.
    pub async fn secure(to: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(to)).await.expect("it listens");
        let stream = soon(trusting(&[&TLS12, &TLS13]).connect(ServerName::from(to.ip()), stream)).await;
        Self::new(Secure::Client(stream.expect("it speaks TLS")))
    }
}

impl<S: Wire> RawClient<S> {
    /// An end that is connected.
    pub fn new(stream: S) -> Self {
        // Without it the connection only gets slower.
        let _ = stream.tcp().set_nodelay(true);
        Self { stream: BufReader::new(stream) }
    }

    /// The stream; what was read ahead is lost.
    pub fn into_stream(self) -> S {
        self.stream.into_inner()
    }

    /// The TCP socket.
    pub fn tcp(&self) -> &TcpStream {
        self.stream.get_ref().tcp()
    }

    /// To hear and to say at the same time.
    pub fn split(self) -> (RawClient<ReadHalf<S>>, WriteHalf<S>) {
        let (heard, said) = split(self.stream.into_inner());
        (RawClient { stream: BufReader::new(heard) }, said)
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.get_ref().tcp().set_zero_linger().expect("an open socket");
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawClient<S> {
    /// Sends bytes; panics where the other end does not take them.
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_say(bytes).await, "the other end takes no bytes");
    }

    /// Sends bytes; false where the other end has gone.
    pub async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        soon(sent).await.is_ok()
    }

    /// Says that no more will be sent: `close_notify` where there is TLS, and FIN.
    pub async fn finish(&mut self) {
        // The other end may have gone altogether.
        let _ = soon(self.stream.shutdown()).await;
    }
}

impl<S: AsyncRead + Unpin> RawClient<S> {
    /// A whole head; none where the other end stopped before.
    pub async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if soon(self.stream.read_until(b'\n', &mut head)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    /// Exactly so many bytes; fewer where the other end stopped before.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = (&mut self.stream).take(count as u64);
        // What came before a reset is what is asked for.
        let _ = soon(rest.read_to_end(&mut bytes)).await;
        bytes
    }

    /// What comes next, as much as has come; nothing at the end.
    pub async fn some_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = soon(self.stream.read_buf(&mut bytes)).await;
        bytes
    }

    /// A response with its body; none where the other end stopped before its head was whole.
    pub async fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET").await
    }

    /// The same for a method such as `HEAD`.
    pub async fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let head = self.head().await?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let (body, whole) = match header(&head, "content-length") {
            _ if method == "HEAD" || status < 200 || status == 204 || status == 304 => (Vec::new(), true),
            Some(length) => {
                let length = length.parse().expect("a length");
                let body = self.bytes(length).await;
                let whole = body.len() == length;
                (body, whole)
            }
            None if header(&head, "transfer-encoding") == Some("chunked") => self.chunks().await,
            None => {
                let (body, end) = self.rest().await;
                (body, end == End::Clean)
            }
        };
        Some(Answer { status, head, body, whole })
    }

    async fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            let _ = soon(self.stream.read_line(&mut line)).await;
            let Ok(size) = usize::from_str_radix(line.trim_end(), 16) else { return (body, false) };
            let chunk = self.bytes(size + 2).await;
            if chunk.len() < size + 2 {
                body.extend(chunk);
                return (body, false);
            }
            body.extend(&chunk[..size]);
            if size == 0 {
                return (body, true);
            }
        }
    }

    /// Everything up to the end, and how it ended.
    pub async fn rest(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        let ended = soon(self.stream.read_to_end(&mut bytes)).await;
        (bytes, if ended.is_ok() { End::Clean } else { End::Cut })
    }
}

/// Speaks TLS of these versions and takes any certificate.
pub fn trusting(versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
    TlsConnector::from(Arc::new(trusting_config(versions)))
}

/// The configuration of [`trusting`], to be changed.
pub fn trusting_config(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("versions that the provider knows")
        .dangerous()
        .with_custom_certificate_verifier(trusting_verifier())
        .with_no_client_auth()
}

/// Takes any certificate.
pub fn trusting_verifier() -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyCertificate)
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
