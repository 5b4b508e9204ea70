//! Asks a session resolver which host has a session (Amazon DCV Connection Gateway Administrator Guide, "Session Resolver"):
//! `POST /resolveSession`, answered by JSON, or by 404.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::discovery::addresses_of;
use super::messages::FoundSession;
use crate::agents::session_resolver::web_url_path as web_url_path_of;
use crate::config::ResolverUrl;
use crate::tls::AsyncClient;

/// For one question: less than a client waits (3 s).
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Characters of a host that are shown.
const HOST_CHARS_MAX: usize = 256;

/// A session resolver. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub(super) struct ResolverClient {
    url: ResolverUrl,
    tls: Option<AsyncClient>,
    names: Result<TokioResolver, String>,
}

/// Its answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    dcv_server_endpoint: String,
    port: Port,
    #[serde(default)]
    web_url_path: Option<String>,
}

/// It is written as a number, and by some as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

impl ResolverClient {
    pub(super) fn new(
        url: ResolverUrl,
        authorities: Option<&str>,
        names: Result<TokioResolver, String>,
    ) -> Result<Self, String> {
        let authorities = authorities.unwrap_or_default();
        let tls = url.is_secure.then(|| AsyncClient::trusting(authorities.as_bytes(), &url.host));
        Ok(Self { tls: tls.transpose().map_err(|error| error.to_string())?, url, names })
    }

    /// Where a session is; nothing where there is none, or why that can't be said.
    pub(super) async fn ask(&self, session: &str, client: IpAddr) -> Result<Option<FoundSession>, String> {
        let asked = tokio::time::timeout(ASK_TIMEOUT, self.steps(session, client)).await;
        asked.unwrap_or_else(|_| Err("it does not answer in time".to_owned()))
    }

    async fn steps(&self, session: &str, client: IpAddr) -> Result<Option<FoundSession>, String> {
        let ResolverUrl { host, port, path, .. } = &self.url;
        let address = self.addresses(host).await?.first().copied();
        let address = address.ok_or_else(|| format!("{host} has no address"))?;
        let stream = TcpStream::connect(SocketAddr::new(address, *port));
        let stream = stream.await.map_err(|error| format!("it can't be reached: {}", error.kind()))?;
        let query = format!("sessionId={session}&transport=HTTP&clientIpAddress={}", escaped(client));
        let request = Request::post(format!("{path}/resolveSession?{query}"))
            .header(HOST, authority(host, *port))
            .header(ACCEPT, "application/json")
            .header(CONTENT_LENGTH, "0")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let stream = tls.connect(stream, address).await;
                exchange(stream.map_err(|error| format!("TLS to it fails: {error}"))?, request).await
            }
        };
        let Some(answer) = answer? else { return Ok(None) };
        self.place(&answer).await.map(Some)
    }

    async fn place(&self, answer: &[u8]) -> Result<FoundSession, String> {
        let Answer { dcv_server_endpoint: endpoint, port, web_url_path } =
            serde_json::from_slice(answer).map_err(|error| format!("its answer can't be used: {error}"))?;
        let port = match port {
            Port::Number(port) => Some(port),
            Port::Text(text) => text.parse().ok(),
        };
        let port = port.filter(|port| *port > 0).ok_or("its answer names no port")?;
        let web_url_path = web_url_path_of(&web_url_path.unwrap_or_default())?;
        let addresses = self.addresses(&endpoint).await?;
        Ok(FoundSession { addresses, port, web_url_path })
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let names = self.names.as_ref().map_err(String::clone)?;
        let shown: String = host.chars().take(HOST_CHARS_MAX).flat_map(char::escape_debug).collect();
        addresses_of(names, host).await.map_err(|error| format!("{shown} is not found: {error}"))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// As a value of a query (RFC 3986 3.4): colons may stand there, and some servers think otherwise.
fn escaped(client: IpAddr) -> String {
    client.to_canonical().to_string().replace(':', "%3A")
}

/// The body of a good answer; nothing where there is no such session.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Option<Vec<u8>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP with it fails: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {
                let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
                let body = body.map_err(|error| format!("its answer does not come whole: {error}"))?;
                Ok(Some(body.to_bytes().to_vec()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(format!("it answers with {status}")),
        }
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // By then it has brought the answer, or has none.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(failed(error)),
        },
    }
}
