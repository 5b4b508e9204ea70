//! Where a desktop's time goes: a delay at each of the four places is told of that place, and of no other.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::delayed_link::DelayedLink;
use harness::network::runs_in_a_network_of_its_own;
use harness::process::eventually;
use harness::proxy::{self, Proxy};
use nix::sys::signal::Signal;
use serde_json::Value;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: desktop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";
/// The delay of a place: far more than a busy machine adds to the others in the mean.
const DELAY: Duration = Duration::from_millis(120);
/// Half of it tells the place that has it from those that have not.
const MUCH_US: u64 = 60_000;

/// An agent on one side of a channel: it says again what it hears, after a time.
struct Agent {
    address: SocketAddr,
    delay_us: Arc<AtomicU64>,
}

impl Agent {
    fn start(at: IpAddr) -> Self {
        let listener = TcpListener::bind((at, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let delay_us = Arc::<AtomicU64>::default();
        let delay = delay_us.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let delay = delay.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &delay));
            }
        });
        Self { address, delay_us }
    }
}

fn serve(mut stream: TcpStream, delay: &AtomicU64) {
    stream.set_nodelay(true).unwrap();
    read_head(&mut stream);
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: BACScCJPNqyz+UBoqMH89VmURoA=\r\n\r\n";
    stream.write_all(accepted.as_bytes()).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        std::thread::sleep(Duration::from_micros(delay.load(Ordering::Relaxed)));
        if stream.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Opens a channel, and asks and hears again and again, until it is dropped.
struct Channel {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Channel {
    fn open(proxy: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(UPGRADE.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let is_over = Arc::<AtomicBool>::default();
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [7; 100];
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&bytes).unwrap();
                stream.read_exact(&mut bytes).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The proxy is stopped and goes on again and again, as on a machine without a free core.
fn interrupt(proxy: &Proxy, mut is_enough: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_enough() {
        assert!(start.elapsed() < Duration::from_mins(1), "it is not told of the proxy");
        proxy.signal(Signal::SIGSTOP);
        std::thread::sleep(2 * DELAY);
        proxy.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Runs an operator's command, and gives the one session, or the one agent, of its answer.
fn told(control: &str, words: &[&str], member: Option<&str>) -> Value {
    let output = Command::new(proxy::binary()).args(words).args(["--json", "--control", control]).output();
    let output = output.unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let all = member.map_or(&answer, |member| &answer[member]);
    all[0].clone()
}

const PLACES: [&str; 4] = ["client_network_us", "proxy_us", "agent_network_us", "agent_us"];

/// The four places of a session or an agent.
fn places(of: &Value) -> Option<[u64; 4]> {
    let places = PLACES.map(|place| of["lag"][place].as_u64());
    places.iter().all(Option::is_some).then(|| places.map(Option::unwrap_or_default))
}

#[test]
fn a_delay_is_told_of_its_own_place_and_of_no_other() {
    if runs_in_a_network_of_its_own("a_delay_is_told_of_its_own_place_and_of_no_other") {
        return;
    }
    let (to_client, to_agent) = (DelayedLink::new(1), DelayedLink::new(2));
    let agent = Agent::start(to_agent.listens_at());
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control").display().to_string();
    let reached_at = to_agent.reached_at().to_string();
    let flags = [
        format!("--listen-plain={}:0", to_client.listens_at()),
        format!("--agents={reached_at}/32"),
        format!("--default-agent={reached_at}"),
        format!("--agent-port={}", agent.address.port()),
        "--agent-tls=off".to_owned(),
        "--workers=1".to_owned(),
        format!("--control={control}"),
    ];
    let mut proxy = Proxy::start(&flags.each_ref().map(String::as_str));
    proxy.until("serves", |log| log.contains("control socket opened").then_some(()));
    let _channel = Channel::open((to_client.reached_at(), proxy.address().port()).into());
    let session = || places(&told(&control, &["sessions"], None));
    let agents = || places(&told(&control, &["agents"], Some("agent")));

    let is_at = |place: Option<usize>, places: Option<[u64; 4]>| {
        places.is_some_and(|us| (0..4).all(|it| (us[it] >= MUCH_US) == (place == Some(it))))
    };
    let is_told = |place: Option<usize>| is_at(place, session()) && is_at(place, agents());
    let until = |what: &str, place: Option<usize>| {
        let mut last = None;
        let start = Instant::now();
        while !is_told(place) {
            last = session().or(last);
            assert!(start.elapsed() < Duration::from_mins(1), "{what}: {last:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!("{what}: {:?} us", session().unwrap_or_default());
    };
    until("no delay", None);
    to_client.delay(DELAY);
    until("the client's network", Some(0));
    to_client.delay(Duration::ZERO);
    until("no delay again", None);
    interrupt(&proxy, || is_told(Some(1)));
    eprintln!("the proxy: {:?} us", session().unwrap_or_default());
    until("no delay after that", None);
    to_agent.delay(DELAY);
    until("the agent's network", Some(2));
    to_agent.delay(Duration::ZERO);
    until("no delay once more", None);
    agent.delay_us.store(u64::try_from(DELAY.as_micros()).unwrap(), Ordering::Relaxed);
    until("the agent", Some(3));
    agent.delay_us.store(0, Ordering::Relaxed);
    until("no delay at the end", None);
    eventually("the sessions' table shows it", || {
        let output =
            Command::new(proxy::binary()).args(["sessions", "--control", &control]).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        table.contains("client net + proxy + agent net + agent").then_some(())
    });
}
