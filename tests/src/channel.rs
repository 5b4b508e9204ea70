//! A channel of a desktop on which somebody asks and the agent answers, by plain HTTP: for what the proxy tells of sessions.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const UPGRADE: &str = "Host: desktop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";
/// An agent on one side of a channel: it says again what it hears, after a time.
pub struct EchoAgent {
    /// Where it listens.
    pub address: SocketAddr,
    delay_us: Arc<AtomicU64>,
}

impl EchoAgent {
    /// One that answers at once.
    pub fn start(at: IpAddr) -> Self {
        let listener = TcpListener::bind((at, 0)).expect("a connection");
        let address = listener.local_addr().expect("a connection");
        let delay_us = Arc::<AtomicU64>::default();
        let delay = delay_us.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let delay = delay.clone();
                std::thread::spawn(move || serve(stream.expect("a connection"), &delay));
            }
        });
        Self { address, delay_us }
    }

    /// From now on it answers after a time.
    pub fn answers_after(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).expect("a short time");
        self.delay_us.store(us, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream, delay: &AtomicU64) {
    stream.set_nodelay(true).expect("a connection");
    read_head(&mut stream);
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: BACScCJPNqyz+UBoqMH89VmURoA=\r\n\r\n";
    stream.write_all(accepted.as_bytes()).expect("a connection");
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
        stream.read_exact(&mut byte).expect("a connection");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a connection")
}

/// Opens a channel, and asks and hears again and again, until it is dropped.
pub struct Channel {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Channel {
    /// Opens it by plain HTTP.
    pub fn open(proxy: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(proxy).expect("a connection");
        stream.set_nodelay(true).expect("a connection");
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{UPGRADE}").as_bytes()).expect("a connection");
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let is_over = Arc::<AtomicBool>::default();
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [7; 100];
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&bytes).expect("a connection");
                stream.read_exact(&mut bytes).expect("a connection");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().expect("a connection").join().expect("a connection");
    }
}
