//! Debian's nginx as an agent. What comes through the proxy is what nginx itself gives.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use harness::agent::Noise;
use harness::certificates::{Identity, KeyKind};
use harness::ports::unused_port;
use harness::process::Process;
use harness::proxy_under_test::ProxyUnderTest;
use tempfile::TempDir;

use crate::tools::{Curl, Received, run};

const ADDRESS: &str = "127.0.0.77";
/// More than one connection carries by the defaults of some servers.
const REQUESTS: usize = 500;

/// A running nginx that serves a folder over HTTPS.
struct Nginx {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::self_signed(KeyKind::Rsa, &[ADDRESS]);
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        put("cert.pem", identity.cert_pem.as_bytes());
        put("key.pem", identity.key_pem.as_bytes());
        fs::create_dir(folder.path().join("files")).unwrap();
        put("files/noise.bin", &Noise::new(3_000_001).bytes());
        put("files/empty.bin", b"");
        put("files/small.txt", b"small");
        put("files/text.txt", "one line of many, all the same\n".repeat(20_000).as_bytes());
        let address = SocketAddr::new(ADDRESS.parse().unwrap(), unused_port());
        put("nginx.conf", config(&folder.path().display().to_string(), address).as_bytes());
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-p").arg(folder.path());
        let mut process = Process::start(command);
        process.until("listens", |_| TcpStream::connect(address).ok());
        Self { process, address, folder }
    }

    fn stored(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }
}

fn config(folder: &str, address: SocketAddr) -> String {
    format!(
        "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
         events {{ worker_connections 256; }}
         http {{
           access_log off; default_type application/octet-stream; types {{ text/plain txt; }}
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
           uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
           client_max_body_size 0; server_tokens off;
           server {{
             listen {address} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
             root {folder}/files; gzip on; gzip_types text/plain; gzip_proxied any;
             location /put/ {{ alias {folder}/files/; dav_methods PUT DELETE; }}
             location /ssi/ {{ alias {folder}/files/; ssi on; ssi_types *; }}
             location /small/ {{ alias {folder}/files/; client_max_body_size 1k; dav_methods PUT; }}
             location = /moved {{ return 301 /text.txt?a=1; }}
             location = /moved-whole {{ return 302 https://$host:$server_port/text.txt; }}
             location = /none {{ return 204; }}
           }}
         }}"
    )
}

/// The same request to nginx itself and through the proxy.
struct Both {
    curl: Curl,
    front: ProxyUnderTest,
    nginx: Nginx,
}

impl Both {
    async fn start() -> Self {
        let nginx = Nginx::start();
        let front = ProxyUnderTest::start(nginx.address, &[]).await;
        Self { curl: Curl::new(), front, nginx }
    }

    fn proxied(&self, path: &str) -> String {
        format!("https://{}/{ADDRESS}{path}", self.front.secure())
    }

    fn ask(&self, args: &[&str], path: &str) -> (Received, Received) {
        let direct = format!("https://{}{path}", self.nginx.address);
        let proxied = self.proxied(path);
        (self.curl.get(&[args, &[&direct]].concat()), self.curl.get(&[args, &[&proxied]].concat()))
    }

    /// Status, body, and what describes the body are equal.
    #[track_caller]
    fn same(&self, args: &[&str], path: &str, status: u16) -> Received {
        let (direct, proxied) = self.ask(args, path);
        assert_eq!((direct.status, proxied.status), (status, status), "{args:?} {path}");
        // Of a HEAD curl calls the head the body.
        assert!(
            direct.body == proxied.body || args.contains(&"--head"),
            "{args:?} {path}: the bodies differ"
        );
        for name in [
            "accept-ranges",
            "content-encoding",
            "content-length",
            "content-range",
            "content-type",
            "etag",
            "last-modified",
            "location",
            "server",
            "transfer-encoding",
            "vary",
        ] {
            assert_eq!(direct.header(name), proxied.header(name), "{args:?} {path}: {name}");
        }
        proxied
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_ranges_of_them_are_the_same() {
    let both = Both::start().await;
    let whole = both.same(&[], "/noise.bin", 200);
    assert_eq!(whole.body.len(), 3_000_001);
    assert_eq!(both.same(&["-r", "1000-1999"], "/noise.bin", 206).body, whole.body[1000..2000]);
    assert_eq!(both.same(&["-r", "-1"], "/noise.bin", 206).body, whole.body[3_000_000..]);
    both.same(&["-r", "9000000-"], "/noise.bin", 416);
    let (_, parts) = both.ask(&["-r", "0-9,2000000-2000009"], "/noise.bin");
    assert!(parts.status == 206 && parts.header("content-type").unwrap().starts_with("multipart/byteranges"));
    both.same(&[], "/empty.bin", 200);
    both.same(&["-0"], "/noise.bin", 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_and_chunked_bodies_are_the_same() {
    let both = Both::start().await;
    let plain = both.same(&[], "/text.txt", 200);
    let packed = both.same(&["-H", "Accept-Encoding: gzip"], "/text.txt", 200);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("transfer-encoding"), Some("chunked"));
    assert!(packed.body.len() < plain.body.len() / 10);
    assert_eq!(both.same(&["--compressed"], "/text.txt", 200).body, plain.body);
    let parsed = both.same(&[], "/ssi/noise.bin", 200);
    assert_eq!(parsed.header("transfer-encoding"), Some("chunked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_are_the_same() {
    let both = Both::start().await;
    both.same(&["--head"], "/noise.bin", 200);
    both.same(&["--head"], "/absent.bin", 404);
    both.same(&[], "/none", 204);
    let file = both.same(&[], "/noise.bin", 200);
    let since = format!("If-Modified-Since: {}", file.header("last-modified").unwrap());
    assert!(both.same(&["-H", &since], "/noise.bin", 304).body.is_empty());
    let tag = format!("If-None-Match: {}", file.header("etag").unwrap());
    both.same(&["-H", &tag], "/noise.bin", 304);
    both.same(&[], "/absent.bin", 404);
    both.same(&["-X", "POST", "-d", "x=1"], "/noise.bin", 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_stored_byte_for_byte() {
    let both = Both::start().await;
    let bytes = Noise::new(20_000_003).bytes();
    let file = both.curl.file("upload", &bytes);
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    for (name, framing) in [("length.bin", &[][..]), ("chunked.bin", &chunked)] {
        let url = both.proxied(&format!("/put/{name}"));
        let stored = both.curl.get(&[framing, &["-T", &file, &url]].concat());
        assert_eq!(stored.status, 201, "{}", stored.text());
        assert!(fs::read(both.nginx.stored(name)).unwrap() == bytes, "{name}");
        assert_eq!(both.curl.get(&["-X", "DELETE", &url]).status, 204);
        assert!(!both.nginx.stored(name).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nginx_refuses_is_answered_with_its_413() {
    let both = Both::start().await;
    let file = both.curl.file("upload", &vec![b'x'; 3_000_000]);
    for args in [&["-H", "Expect:"][..], &[], &["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]] {
        let url = both.proxied("/small/upload.bin");
        let (_, answer) = both.curl.attempt(&[args, &["-T", &file, &url]].concat());
        assert_eq!(answer.status, 413, "{args:?}: {}", answer.log);
        assert_eq!(answer.header("server"), Some("nginx"), "{}", answer.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_lead_to_the_same_file_under_the_prefix() {
    let both = Both::start().await;
    let file = both.same(&[], "/text.txt", 200);
    for path in ["/moved", "/moved-whole"] {
        let moved = both.curl.get(&[&both.proxied(path)]);
        let to = moved.header("location").unwrap();
        assert!(to.starts_with("/127.0.0.77/text.txt"), "{to}");
        let followed = both.curl.get(&["-L", &both.proxied(path)]);
        assert!(followed.status == 200 && followed.body == file.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_connection() {
    let mut both = Both::start().await;
    let url = both.proxied("/small.txt");
    let always = ["-sSk", "--http1.1", "--max-time", "100", "-w", " %{http_code} %{num_connects}\n"];
    let ran = run("curl", &[&always[..], &[url.as_str(); REQUESTS]].concat());
    let again = ran.output.lines().filter(|line| *line == "small 200 0").count();
    assert_eq!((ran.output.lines().next(), again), (Some("small 200 1"), REQUESTS - 1), "{}", ran.log);
    assert_eq!(both.nginx.process.ended(), None);
}
