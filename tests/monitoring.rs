//! A real Prometheus scrapes a proxy under load: every query of the dashboard has an answer, and each alert of the package fires when
//! its fault is there, and not before.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::ports::unused_address;
use harness::process::Process;
use harness::proxy;
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long an alert may take.
const LIMIT: Duration = Duration::from_mins(2);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a program and gives what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Work of a thread again and again, until it is dropped.
struct Repeated {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Repeated {
    fn start(mut work: impl FnMut() + Send + 'static) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// An agent: `/slow` is answered late, `/flood` says more than any client takes, `/echo` says again what it hears.
fn serve(mut stream: TcpStream) -> Option<()> {
    while let Some(head) = read_head(&mut stream) {
        if head.contains("Upgrade: websocket") {
            stream.write_all(harness::websocket::accepted(&head, "").as_bytes()).ok()?;
            let mut bytes = vec![0; 16 << 10];
            loop {
                let length =
                    if head.contains("/flood") { bytes.len() } else { stream.read(&mut bytes).ok()? };
                stream.write_all(&bytes[..length]).ok().filter(|()| length > 0)?;
            }
        }
        if head.starts_with("GET /slow") {
            std::thread::sleep(Duration::from_secs(3));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
    None
}

fn start_agent(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// The proxy, an agent, and Prometheus.
struct Scene {
    folder: tempfile::TempDir,
    listen: SocketAddr,
    secure: SocketAddr,
    prometheus: SocketAddr,
    settings: Vec<(&'static str, String)>,
    proxy: Process,
    _scraper: Process,
    /// What takes no line of the access log.
    _pipe: fs::File,
}

impl Scene {
    fn new(agent: SocketAddr, other: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let quoted = |name: &str| format!("{:?}", path(name).display().to_string());
        let (listen, secure, admin) = (unused_address(), unused_address(), unused_address());
        let pipe = path("access.log");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let pipe = fs::File::options().read(true).write(true).open(pipe).unwrap();
        let ports = format!("[{}, {}]", agent.port(), other.port());
        let agents = format!("[[agent]]\nname = \"one\"\naddress = \"127.0.0.1\"\nport = {}\n", agent.port());
        fs::write(path("agents.toml"), agents).unwrap();
        let list =
            format!(r#"{{"agent": [{{"name": "two", "address": "127.0.0.2", "port": {}}}]}}"#, other.port());
        fs::write(path("list"), list).unwrap();
        certify(folder.path(), 365);
        let settings = vec![
            ("listen-plain", format!("\"{listen}\"")),
            ("listen", format!("\"{secure}\"")),
            ("cert", quoted("proxy.crt")),
            ("key", quoted("proxy.key")),
            ("agents", "\"127.0.0.0/8\"".to_owned()),
            ("agents-file", quoted("agents.toml")),
            ("agents-command", format!("\"/bin/cat {}\"", path("list").display())),
            ("agents-command-interval", "\"1s\"".to_owned()),
            ("default-agent", "\"127.0.0.1\"".to_owned()),
            ("agent-port", agent.port().to_string()),
            ("agent-ports", ports),
            ("agent-tls", "\"off\"".to_owned()),
            ("probe", "\"tcp\"".to_owned()),
            ("probe-interval", "\"1s\"".to_owned()),
            ("connections-max", "30".to_owned()),
            ("client-rate", "100000".to_owned()),
            ("workers", "2".to_owned()),
            ("control", quoted("control")),
            ("access-log", "\"off\"".to_owned()),
            ("admin", format!("\"{admin}\"")),
        ];
        configure(folder.path(), &settings, "");
        let mut command = Command::new(proxy::binary());
        command.arg(format!("--config={}", path("proxy.toml").display()));
        let mut proxy = Process::start(command).without_grace();
        proxy.until("serves", |process| process.log().contains("control socket opened").then_some(()));
        let prometheus = unused_address();
        let scraper = start_prometheus(folder.path(), admin, prometheus);
        Self { folder, listen, secure, prometheus, settings, proxy, _scraper: scraper, _pipe: pipe }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, more: &str) {
        configure(self.folder.path(), &self.settings, more);
    }

    /// Whether the command succeeds.
    fn does(&self, command: &str) -> bool {
        let control = format!("--control={}", self.path("control").display());
        Command::new(proxy::binary()).args([command, &control]).output().unwrap().status.success()
    }

    fn asks(&self, path: &'static str) -> Repeated {
        let listen = self.listen;
        Repeated::start(move || drop(ask(listen, &format!("GET {path} HTTP/1.1"))))
    }

    fn api(&self, what: &str, query: Option<&str>) -> Value {
        let url = format!("http://{}/api/v1/{what}", self.prometheus);
        let query = query.map(|query| format!("query={query}"));
        let mut arguments = vec!["-s", "--get", &url];
        if let Some(query) = &query {
            arguments.extend(["--data-urlencode", query]);
        }
        serde_json::from_str(&run("curl", &arguments)).unwrap()
    }

    /// The alerts that fire.
    fn firing(&self) -> Vec<String> {
        let answer = self.api("alerts", None);
        let alerts = answer["data"]["alerts"].as_array().unwrap().iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    fn until_fires(&self, alert: &str) {
        let start = Instant::now();
        while !self.firing().iter().any(|it| it == alert) {
            let answer = self.api("alerts", None);
            assert!(start.elapsed() < LIMIT, "{alert} does not fire: {answer}");
            std::thread::sleep(Duration::from_millis(300));
        }
        eprintln!("{alert} fires after {:?}", start.elapsed());
    }
}

/// A certificate that is good for so many days, and its key.
fn certify(folder: &Path, days: u32) {
    let (key, certificate, days) = (folder.join("new.key"), folder.join("new.crt"), days.to_string());
    let (key_text, certificate_text) = (key.display().to_string(), certificate.display().to_string());
    let subject = ["-subj", "/CN=desk", "-addext", "subjectAltName=DNS:desk.example"];
    let files = ["-keyout", &*key_text, "-out", &*certificate_text, "-days", &*days];
    run("openssl", &[&["req", "-x509", "-newkey", "rsa:2048", "-nodes"], &subject[..], &files[..]].concat());
    fs::rename(certificate, folder.join("proxy.crt")).unwrap();
    // As a renewal does that replaces one after the other.
    std::thread::sleep(Duration::from_secs(1));
    fs::rename(key, folder.join("proxy.key")).unwrap();
}

/// Writes the configuration: what is said in `more` is not said otherwise.
fn configure(folder: &Path, settings: &[(&str, String)], more: &str) {
    let is_said = |key: &str| more.lines().any(|line| line.starts_with(&format!("{key} =")));
    let usual = settings.iter().filter(|(key, _)| !is_said(key));
    let lines: Vec<_> = usual.map(|(key, value)| format!("{key} = {value}\n")).collect();
    fs::write(folder.join("proxy.toml"), lines.concat() + more).unwrap();
}

/// With the rules of the package, for which a minute is a second here.
fn start_prometheus(folder: &Path, scraped: SocketAddr, listen: SocketAddr) -> Process {
    for name in ["rules.yml", "alerts.yml"] {
        let text = fs::read_to_string(root().join("packaging/prometheus").join(name)).unwrap();
        let text = text.replace("[5m]", "[10s]");
        let lines = text.lines().map(|line| match line.trim().strip_prefix("for: ") {
            Some(time) => line.replace(time, &time.replace('m', "s")),
            None => line.to_owned(),
        });
        fs::write(folder.join(name), lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let text = fs::read_to_string(root().join("packaging/prometheus/prometheus.yml")).unwrap();
    let text = text.replace("15s", "1s").replace("127.0.0.1:9443", &scraped.to_string());
    fs::write(folder.join("prometheus.yml"), text).unwrap();
    let mut command = Command::new("prometheus");
    command.args([
        format!("--config.file={}", folder.join("prometheus.yml").display()),
        format!("--storage.tsdb.path={}", folder.join("tsdb").display()),
        format!("--web.listen-address={listen}"),
    ]);
    let mut process = Process::start(command).without_grace();
    process.until("is ready", |process| process.log().contains("ready to receive").then_some(()));
    process
}

/// Asks, and gives the answer's first bytes.
fn ask(listen: SocketAddr, line: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(listen)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{line}\r\nHost: desk\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = [0; 100];
    let read = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

fn session(listen: SocketAddr, path: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(listen).ok()?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: desk\r\n{upgrade}").as_bytes()).ok()?;
    read_head(&mut stream).filter(|head| head.contains(" 101 ")).map(|_| stream)
}

fn queries_of_the_dashboard() -> Vec<String> {
    let text = fs::read_to_string(root().join("packaging/grafana/dcv-splice.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let filled = |target: &Value| {
        let query = target["expr"].as_str().unwrap();
        let query = query.replace("$__rate_interval", "10s").replace("$job", "dcv-splice");
        query.replace("$instance", ".*").replace("$agent", ".*")
    };
    targets.map(filled).collect()
}

#[test]
fn the_packages_rules_are_understood() {
    let file = |name: &str| root().join("packaging/prometheus").join(name).display().to_string();
    run("promtool", &["check", "rules", &file("rules.yml"), &file("alerts.yml")]);
    run("promtool", &["check", "config", &file("prometheus.yml")]);
}

#[test]
fn each_panel_shows_something_and_each_alert_fires_with_its_fault() {
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = TcpListener::bind("127.0.0.2:0").unwrap();
    let (agent, other) = (here.local_addr().unwrap(), there.local_addr().unwrap());
    start_agent(here);
    there.set_nonblocking(true).unwrap();
    let probed = Repeated::start(move || {
        drop(there.accept());
        std::thread::sleep(Duration::from_millis(20));
    });
    let scene = Scene::new(agent, other);
    let load = scene.asks("/x");
    nothing_fires_while_all_is_well(&scene);
    a_busy_machine_is_told_of(&scene);
    drop(probed);
    scene.until_fires("DcvSpliceAgentDown");
    drop(load);
    faults_of_agents_and_clients_are_told_of(&scene);
    faults_of_the_configuration_are_told_of(&scene);
    scene.proxy.signal(Signal::SIGKILL);
    scene.until_fires("DcvSpliceDown");
}

/// With a load, a session, and a renewal in two steps; every panel shows something then.
fn nothing_fires_while_all_is_well(scene: &Scene) {
    let url = format!("https://{}/health", scene.secure);
    let _handshakes = Repeated::start(move || {
        run("curl", &["-sk", &url]);
        std::thread::sleep(Duration::from_millis(200));
    });
    let mut echo = session(scene.listen, "/echo").unwrap();
    let _echoes = Repeated::start(move || {
        let mut bytes = [1; 100];
        echo.write_all(&bytes).unwrap();
        echo.read_exact(&mut bytes).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    });
    std::thread::sleep(Duration::from_secs(10));
    certify(scene.folder.path(), 365);
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(scene.firing(), Vec::<String>::new());
    run("sh", &["-c", &format!("curl -s http://{}/metrics | promtool check metrics", admin(scene))]);
    let _flood = session(scene.listen, "/flood").unwrap();
    std::thread::sleep(Duration::from_secs(5));
    for query in queries_of_the_dashboard() {
        let answer = scene.api("query", Some(&query));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        assert!(!answer["data"]["result"].as_array().unwrap().is_empty(), "{query} has no answer");
    }
}

fn a_busy_machine_is_told_of(scene: &Scene) {
    let _session = session(scene.listen, "/echo").unwrap();
    let pid = scene.proxy.pid();
    let _busy = Repeated::start(move || {
        for (signal, ms) in [("-STOP", 150), ("-CONT", 50)] {
            run("kill", &[signal, &pid.to_string()]);
            std::thread::sleep(Duration::from_millis(ms));
        }
    });
    scene.until_fires("DcvSpliceProxySlow");
}

fn faults_of_agents_and_clients_are_told_of(scene: &Scene) {
    // An agent that is known to be down is not connected to.
    scene.configure("probe = \"off\"\n");
    assert!(scene.does("reload"), "{}", scene.proxy.log());
    let failing = scene.asks("/127.0.0.9/");
    scene.until_fires("DcvSpliceConnectFailures");
    drop(failing);
    let slow: Vec<_> = (0..4).map(|_| scene.asks("/slow")).collect();
    scene.until_fires("DcvSpliceAgentSlow");
    drop(slow);
    let listen = scene.listen;
    let scan = ["GET\t/ HTTP/1.1", "GET /192.0.2.1/ HTTP/1.1"]
        .map(|line| Repeated::start(move || drop(ask(listen, line))));
    scene.until_fires("DcvSpliceScanned");
    scene.until_fires("DcvSpliceSecurityEvent");
    drop(scan);
    let sessions: Vec<_> = (0..30).filter_map(|_| session(listen, "/echo")).collect();
    let others = scene.asks("/x");
    scene.until_fires("DcvSpliceFull");
    drop((sessions, others));
}

fn faults_of_the_configuration_are_told_of(scene: &Scene) {
    fs::write(scene.path("list"), "this is no list").unwrap();
    scene.until_fires("DcvSpliceSourceFailed");
    scene.configure("htpasswd = \"/nowhere\"\n");
    assert!(!scene.does("reload"));
    scene.until_fires("DcvSpliceReloadFailed");
    certify(scene.folder.path(), 10);
    let users = "ann:$2y$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui\n";
    fs::write(scene.path("users"), users).unwrap();
    let path = |name: &str| scene.path(name).display().to_string();
    scene.configure(&format!("htpasswd = {:?}\naccess-log = {:?}\n", path("users"), path("access.log")));
    assert!(scene.does("reload"), "{}", scene.proxy.log());
    scene.until_fires("DcvSpliceCertificateExpires");
    let listen = scene.listen;
    let guesses = Repeated::start(move || {
        drop(ask(listen, "GET /x HTTP/1.1\r\nAuthorization: Basic YW5uOnh4eA=="));
    });
    scene.until_fires("DcvSpliceWrongPasswords");
    drop(guesses);
    let request = format!("GET /health?{} HTTP/1.1\r\nReferer: {}", "x".repeat(1100), "\"".repeat(1100));
    let _lines =
        [request.clone(), request].map(|request| Repeated::start(move || drop(ask(listen, &request))));
    scene.until_fires("DcvSpliceLogLost");
}

fn admin(scene: &Scene) -> String {
    let admin = scene.settings.iter().find(|(key, _)| *key == "admin").unwrap();
    admin.1.trim_matches('"').to_owned()
}
