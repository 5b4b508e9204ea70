//! The bare wire: an agent that records what it is sent and answers with given bytes, and a client that sends
//! given bytes in given pieces. Neither knows more of HTTP than where a request ends.
//! The agent serves one connection at a time, so what it recorded belongs to what was just asked.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a side may take for what it is to do at once: long, but shorter than any limit of the proxy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for a piece to be read before the next is sent. Only the strength of a test depends on it.
const PAUSE: Duration = Duration::from_millis(1);
/// What the agent is sent to mark a place in the order of its connections.
const KNOCK: &[u8] = b"knock";

/// An agent that records each connection's bytes to their end, and answers each request with the same bytes.
#[derive(Debug)]
pub struct RawAgent {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<Vec<u8>>>>,
    seen: Receiver<Vec<u8>>,
}

impl RawAgent {
    /// Listens, and takes connections one after the other.
    pub fn start(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let answer = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let (sender, seen) = mpsc::channel();
        let given = Arc::clone(&answer);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = || given.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if sender.send(serve(stream, answer)).is_err() {
                    return;
                }
            }
        });
        Self { address, answer, seen }
    }

    /// From now on this is the answer, in these pieces; after it the agent says nothing more.
    pub fn answer_with(&self, pieces: &[&[u8]]) {
        let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = pieces;
    }

    /// What each connection made since the last call has brought, also one that brought nothing.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let mut knock = TcpStream::connect(self.address).expect("the agent listens");
        knock.write_all(KNOCK).expect("the agent listens");
        drop(knock);
        let records = std::iter::from_fn(|| self.seen.recv_timeout(2 * PATIENCE).ok());
        records.take_while(|record| record != KNOCK).map(|record| with_id_masked(&record)).collect()
    }
}

fn serve(mut stream: TcpStream, answer: impl Fn() -> Vec<Vec<u8>>) -> Vec<u8> {
    prepare(&stream);
    let mut bytes = Vec::new();
    while !is_whole(&bytes) && receive(&mut stream, &mut bytes) {}
    if is_whole(&bytes) {
        send(&mut stream, answer().iter().map(Vec::as_slice));
        // A proxy that has hung up already is no concern of the agent's.
        let _ = stream.shutdown(Shutdown::Write);
        while receive(&mut stream, &mut bytes) {}
    }
    bytes
}

fn prepare(stream: &TcpStream) {
    stream.set_nodelay(true).expect("a connected socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a connected socket");
}

/// Whether more may come.
fn receive(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut part = [0; 16 * 1024];
    let got = stream.read(&mut part).unwrap_or(0);
    bytes.extend_from_slice(&part[..got]);
    got > 0
}

/// Sends until the other side hangs up, which it may.
fn send<'a>(stream: &mut impl Write, pieces: impl Iterator<Item = &'a [u8]>) {
    for (number, piece) in pieces.enumerate() {
        if number > 0 && piece.len() > 1 {
            thread::sleep(PAUSE);
        }
        if stream.write_all(piece).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// The request with `*` in place of the id that the proxy has made for it; one of another form stays.
fn with_id_masked(request: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"\r\nX-Request-Id: ";
    const ID_BYTES: usize = 32;
    let found = request.windows(NAME.len()).position(|bytes| bytes == NAME).map(|at| at + NAME.len());
    let id = |at: usize| request.get(at..at + ID_BYTES).filter(|id| id.iter().all(u8::is_ascii_hexdigit));
    match found.filter(|at| id(*at).is_some()) {
        None => request.to_vec(),
        Some(at) => [&request[..at], b"*", &request[at + ID_BYTES..]].concat(),
    }
}

/// Whether `bytes` are a whole request as the proxy writes it.
fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, body)) = split_head(bytes) else { return false };
    match field(&head, "content-length").map(str::parse) {
        Some(Ok(length)) => body.len() >= length,
        Some(Err(_)) => false,
        None if field(&head, "transfer-encoding").is_some() => unchunked(body).is_some(),
        None => true,
    }
}

fn split_head(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    Some((String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase(), &bytes[end..]))
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The data of a chunked body, then its trailers; `None` where it is not whole.
fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).ok()?, 16).ok()?;
        body = &body[line + 2..];
        if size == 0 {
            let whole = body.starts_with(b"\r\n") || body.windows(4).any(|four| four == b"\r\n\r\n");
            return whole.then(|| [data, body.to_vec()].concat());
        }
        data.extend_from_slice(body.get(..size)?);
        body = body.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// The message without its chunks: how a body that arrives in pieces is cut into chunks means nothing.
pub fn without_chunks(message: &[u8]) -> Vec<u8> {
    let whole = split_head(message).filter(|(head, _)| field(head, "transfer-encoding").is_some());
    let body = whole.and_then(|(head, body)| Some((head.len(), unchunked(body)?)));
    body.map_or_else(|| message.to_vec(), |(head, body)| [&message[..head], &body].concat())
}

/// A connection to `address` that waits for an answer only so long.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    prepare(&stream);
    stream
}

/// Sends the pieces and reads the answers until the other side ends the connection; an error where it does not.
pub fn ask(mut stream: impl Read + Write, pieces: &[&[u8]]) -> Result<Vec<u8>, String> {
    send(&mut stream, pieces.iter().copied());
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => Ok(answer),
        Err(error) => Err(format!("{error} after {:?}", String::from_utf8_lossy(&answer))),
    }
}

/// Ways to cut a message: whole, after each CR, at places that the seed chooses, and after each byte if it is short.
pub fn cuts(message: &[u8], seed: u64) -> Vec<Vec<&[u8]>> {
    let mut state = seed;
    let places: Vec<usize> = (0..3).map(|_| random(&mut state) % message.len().max(1)).collect();
    let mut ways = vec![
        vec![message],
        message.split_inclusive(|byte| *byte == b'\r').collect(),
        cut_at(message, places),
    ];
    if message.len() <= 1024 {
        ways.push(message.chunks(1).collect());
    }
    ways
}

fn cut_at(message: &[u8], mut places: Vec<usize>) -> Vec<&[u8]> {
    places.sort_unstable();
    let ends = places.iter().copied().chain([message.len()]);
    let starts = std::iter::once(0).chain(places.iter().copied());
    starts.zip(ends).map(|(start, end)| &message[start..end]).filter(|piece| !piece.is_empty()).collect()
}

/// The next number of a linear congruential generator.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).unwrap_or(0)
}
