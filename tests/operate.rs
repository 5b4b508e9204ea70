//! What an operator does to a proxy that serves: reload, upgrade, rotate logs, under systemd or not. None of it may be
//! felt by a desktop. No systemd runs where these tests do: they speak its protocols as `sd_notify(3)`,
//! `sd_listen_fds(3)` and `sd_watchdog_enabled(3)` describe them.
#![allow(clippy::unwrap_used)]

#[path = "operate/accounts.rs"]
mod accounts;
#[path = "operate/logs.rs"]
mod logs;
#[path = "operate/metrics.rs"]
mod metrics;
#[path = "operate/reload.rs"]
mod reload;
#[path = "operate/systemd.rs"]
mod systemd;
#[path = "operate/upgrade.rs"]
mod upgrade;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::certificates::{Identity, KeyKind};
use harness::ports::unused_address;
use harness::process::Process;
use harness::proxy::{self, Proxy};
use harness::raw_client::{Answer, End, RawClient, Secure};
use harness::scripted_agent::ScriptedAgent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A proxy with a configuration file, a certificate, an access log and a control socket in a folder of their own.
struct Service {
    proxy: Proxy,
    files: Files,
}

/// As a disk that does not answer keeps the process that reads the files.
#[test]
fn one_whose_files_do_not_come_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    // Enough to be read for longer than it takes to be found here.
    let line = "user:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABCDE\n";
    fs::write(&users, line.repeat(200_000)).unwrap();
    let users = format!("--htpasswd={}", users.display());
    let mut process = Process::start(proxy::command(&["--listen=127.0.0.1:0", &users]));
    let children = format!("/proc/{0}/task/{0}/children", process.pid());
    let reader = process.until("it reads its files in a process of their own", |_| {
        fs::read_to_string(&children).ok()?.trim().parse().ok().map(Pid::from_raw)
    });
    kill(reader, Signal::SIGSTOP).unwrap();
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    // Who has ended needs no more of it.
    let _ = kill(reader, Signal::SIGKILL);
    assert_eq!(ended.code(), Some(0), "{}", process.log());
    assert!(!process.log().contains("listening"), "{}", process.log());
}

/// What a proxy is started from.
struct Files {
    folder: TempDir,
    /// Where it listens with TLS.
    address: SocketAddr,
    agent: SocketAddr,
}

impl Files {
    fn new(agent: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = unused_address();
        let files = Self { folder, address, agent };
        files.certify();
        files.configure("");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.path(name).display())
    }

    /// A certificate and key that were not there before; gives the certificate.
    fn certify(&self) -> Identity {
        let identity = Identity::self_signed(KeyKind::Ecdsa, &["localhost"]);
        replace(&self.path("proxy.key"), &identity.key_pem);
        replace(&self.path("proxy.crt"), &identity.cert_pem);
        identity
    }

    /// Writes the configuration: what is said in `more` is not said otherwise.
    fn configure(&self, more: &str) {
        let path = |name: &str| format!("\"{}\"", self.path(name).display());
        let usual = [
            ("listen", format!("\"{}\"", self.address)),
            ("agents", format!("\"{}/32\"", self.agent.ip())),
            ("agent-port", self.agent.port().to_string()),
            ("cert", path("proxy.crt")),
            ("key", path("proxy.key")),
            ("access-log", path("access.log")),
            ("control", path("control")),
            ("workers", "2".to_owned()),
            ("admin", "\"off\"".to_owned()),
        ];
        let is_said = |key: &str| more.lines().any(|line| line.starts_with(&format!("{key} =")));
        let usual = usual.iter().filter(|(key, _)| !is_said(key));
        let usual: Vec<_> = usual.map(|(key, value)| format!("{key} = {value}\n")).collect();
        replace(&self.path("proxy.toml"), &format!("{}{more}", usual.concat()));
    }

    /// The program, to be started as an operator would.
    fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.arg(self.flag("config", "proxy.toml"));
        command
    }

    fn log_lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Service {
    fn start(agent: SocketAddr, more: &str) -> Self {
        let files = Files::new(agent);
        files.configure(more);
        Self::start_from(files, proxy::binary())
    }

    fn start_from(files: Files, binary: &Path) -> Self {
        let command = files.command(binary);
        Self::start_by(files, command)
    }

    fn start_by(files: Files, command: Command) -> Self {
        let mut proxy = Proxy::start_by(command, &[]);
        proxy.until("takes commands", |log| log.contains("control socket opened").then_some(()));
        Self { proxy, files }
    }

    /// Gives a command to it: the exit code, stdout and stderr.
    fn tell(&self, word: &str) -> (i32, String, String) {
        let flag = self.files.flag("control", "control");
        let mut process = Process::start(proxy::command(&[word, &flag])).without_grace();
        let status = process.wait();
        (status.code().expect("it exits by itself"), process.output(), process.log())
    }

    /// Gives a command that comes to something.
    #[track_caller]
    fn does(&self, word: &str) -> String {
        let (code, output, log) = self.tell(word);
        assert_eq!((code, log.as_str()), (0, ""), "{}", self.proxy.log());
        output
    }

    /// Gives a command that comes to nothing, and says why.
    #[track_caller]
    fn refuses(&self, word: &str) -> String {
        let (code, output, log) = self.tell(word);
        assert_eq!((code, output.as_str()), (1, ""), "{log}");
        log
    }

    /// The process that serves now.
    fn serving(&self) -> u32 {
        let status = self.does("status");
        let words: Vec<&str> = status.split([' ', ',']).collect();
        words[1].parse().unwrap_or_else(|_| panic!("no process in {status}"))
    }

    async fn client(&self) -> RawClient<Secure> {
        RawClient::secure(self.files.address).await
    }

    fn request(&self, path: &str) -> String {
        format!("GET /{}{path} HTTP/1.1\r\nHost: proxy\r\n\r\n", self.files.agent.ip())
    }

    /// Asks the agent once, on a connection of its own.
    async fn ask(&self, path: &str) -> Answer {
        let mut client = self.client().await;
        client.say(self.request(path)).await;
        client.answer().await.expect("an answer")
    }

    async fn session(&self, path: &str) -> RawClient<Secure> {
        let mut client = self.client().await;
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.say(self.request(path).replace("\r\n\r\n", &format!("\r\n{upgrade}"))).await;
        assert_eq!(client.answer().await.expect("an answer").status, 101);
        client
    }

    /// A session of frames; what it gives in the end is how many came, each the one after the one before.
    async fn stream(&self) -> (oneshot::Sender<()>, JoinHandle<usize>) {
        let mut client = self.session("/stream").await;
        let (stop, mut stopped) = oneshot::channel();
        let frames = tokio::spawn(async move {
            let mut count = 0;
            while stopped.try_recv().is_err() {
                let frame = client.bytes(FRAME_BYTES).await;
                assert_eq!(frame.len(), FRAME_BYTES, "the session has ended after {count} frames");
                assert!(frame == self::frame(count), "frame {count} is another one");
                count += 1;
            }
            client.finish().await;
            assert_eq!(client.rest().await.1, End::Clean);
            count
        });
        (stop, frames)
    }
}

const FRAME_BYTES: usize = 20_000;
const FRAME_TIME: Duration = Duration::from_micros(16_667);

fn frame(number: usize) -> Vec<u8> {
    number.to_be_bytes().into_iter().cycle().take(FRAME_BYTES).collect()
}

/// An agent whose `/stream` sends sixty frames a second, whose other sessions echo, and which answers other requests.
async fn agent() -> ScriptedAgent {
    ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        while let Some(head) = agent.head().await {
            if !head.contains("websocket") {
                agent.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                continue;
            }
            agent.say("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            let (mut heard, mut said) = agent.split();
            if head.starts_with("GET /stream ") {
                let frames = async {
                    let mut time = tokio::time::interval(FRAME_TIME);
                    for number in 0.. {
                        time.tick().await;
                        if tokio::io::AsyncWriteExt::write_all(&mut said, &frame(number)).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = frames => {}
                    // The client has had enough.
                    _ = heard.bytes(1) => {}
                }
            } else {
                loop {
                    let bytes = heard.bytes(4).await;
                    if bytes.is_empty()
                        || tokio::io::AsyncWriteExt::write_all(&mut said, &bytes).await.is_err()
                    {
                        break;
                    }
                }
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut said).await;
            return;
        }
    })
    .await
}

async fn echoes(client: &mut RawClient<Secure>) {
    client.say("ping").await;
    assert_eq!(client.bytes(4).await, b"ping");
}

/// In one step, as tools that renew certificates do.
fn replace(file: &Path, text: &str) {
    let fresh = file.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, file).unwrap();
}

/// Runs a command as `sh` would after `exec`, with its own process id in `LISTEN_PID`.
fn with_own_id(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    shell.process_group(0);
    shell
}
