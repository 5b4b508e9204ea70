//! A reload of a directory of 10,000 agents while a session echoes: how long the reload takes, and how late the slowest frame is,
//! in turn with as much time without a reload. Runs the program as a user would; ends within a minute.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const AGENTS: u32 = 10_000;
/// Rounds of each kind.
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
/// From one frame to the next, as at 240 Hz.
const PAUSE: Duration = Duration::from_millis(4);
const FRAME: [u8; 1000] = [7; 1000];
/// The sample of RFC 6455 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The first agent; the others are listed behind it.
const AGENT: [u8; 4] = [127, 2, 0, 1];

/// Ends with its guard.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    // `cargo test --benches` wants to know whether it starts.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let agent = TcpListener::bind((std::net::Ipv4Addr::from(AGENT), 0)).expect("a port");
    let port = agent.local_addr().expect("it is bound").port();
    std::thread::spawn(move || echo(&agent));
    write_directory(folder.path(), 0);
    let (_proxy, at) = start(folder.path(), port);
    let mut session = open(at);
    let (mut quiet, mut busy, mut reloads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        quiet.push(frames(&mut session, || {}));
        busy.push(frames(&mut session, || reloads.push(reload(folder.path(), round))));
    }
    println!(
        "echo of {} bytes every {PAUSE:?}, {ROUNDS} rounds of {ROUND:?} each, median (min-max)",
        FRAME.len()
    );
    for (name, rounds) in [("without", &quiet), ("with a reload", &busy)] {
        let of = |pick: fn(&Vec<Duration>) -> Duration| spread(rounds.iter().map(pick).collect());
        let p99 = |times: &Vec<Duration>| times[times.len() * 99 / 100];
        let max = |times: &Vec<Duration>| times[times.len() - 1];
        println!("{name}: p99 {}, slowest {}", of(p99), of(max));
    }
    println!("dcv-splice reload: {}", spread(reloads));
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("{:.2?} ({:.2?}-{:.2?})", times[times.len() / 2], times[0], times[times.len() - 1])
}

/// Answers one WebSocket, and gives back what it gets.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("the proxy connects");
    head(&mut stream);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).expect("the proxy reads");
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// Reads a head, byte by byte: what follows is the session's.
fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("text")
}

fn write_directory(folder: &Path, round: usize) {
    let mut text = String::new();
    for number in 0..AGENTS {
        let address = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::from(AGENT)) + number);
        writeln!(
            text,
            "[[agent]]\nname = \"gpu-{number:05}\"\naddress = \"{address}\"\npools = [\"cad\"]\ntags = {{ round = \"{round}\" }}\n"
        )
        .expect("memory");
    }
    fs::write(folder.join("fresh"), text).expect("room");
    fs::rename(folder.join("fresh"), folder.join("agents.toml")).expect("a folder");
}

fn start(folder: &Path, port: u16) -> (Proxy, SocketAddr) {
    let at = |name: &str| folder.join(name).display().to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_dcv-splice"))
        .args(["--listen-plain=127.0.0.1:0", "--agents=127.2.0.0/16", "--agent-tls=off", "--workers=1"])
        .args(["--admin=off", "--ebpf=off", &format!("--agent-port={port}")])
        .args([format!("--agents-file={}", at("agents.toml")), format!("--control={}", at("control"))])
        .stderr(Stdio::piped())
        .spawn();
    let mut proxy = Proxy(child.expect("it starts"));
    let mut log = BufReader::new(proxy.0.stderr.take().expect("a pipe"));
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert!(log.read_line(&mut line).expect("a log") > 0, "it ended before it listens");
        if let Some(url) = line.split("listening on http://").nth(1) {
            break url.trim_end().parse().expect("an address");
        }
    };
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (proxy, address)
}

fn open(proxy: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    let request = format!(
        "GET /gpu-00000/ HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the proxy reads");
    assert!(head(&mut stream).starts_with("HTTP/1.1 101"));
    stream
}

/// The times of the frames of a round, the shortest first, while something else happens.
fn frames(session: &mut TcpStream, meanwhile: impl FnOnce() + Send) -> Vec<Duration> {
    let begun = Instant::now();
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(meanwhile);
        while begun.elapsed() < ROUND {
            let sent = Instant::now();
            session.write_all(&FRAME).expect("the proxy reads");
            session.read_exact(&mut [0; FRAME.len()]).expect("an echo");
            times.push(sent.elapsed());
            std::thread::sleep(PAUSE);
        }
    });
    times.sort_unstable();
    times
}

/// Has it read another text; how long that takes.
fn reload(folder: &Path, round: usize) -> Duration {
    write_directory(folder, round);
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dcv-splice"));
    let done = command.arg("reload").arg("--control").arg(folder.join("control")).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    begun.elapsed()
}
