//! TLS as a stranger sends it: to an end that expects a handshake, and to one whose session is open. Whatever comes,
//! the plaintext is the beginning of what was sealed.

use std::net::IpAddr;
use std::sync::OnceLock;

use dcv_splice::runtime::buffer::Buffer;
use dcv_splice::tls::{Acceptor, AgentTrust, Connector, PARTIAL_RECORD_MAX, TlsEnd, TlsState};

use super::choice;

/// What is sealed, and then tampered with.
const SAID: &[u8] = &[b'x'; 300];
/// Records of it.
const RECORDS: usize = 3;

/// Making a certificate takes longer than using it.
fn ends() -> (TlsEnd, TlsEnd) {
    static MADE: OnceLock<(Acceptor, Connector)> = OnceLock::new();
    let (acceptor, connector) = MADE.get_or_init(|| {
        let connector = Connector::new(&AgentTrust::Anything).expect("a connector");
        (Acceptor::new(&[]).expect("an acceptor"), connector)
    });
    let client = connector.connect(IpAddr::from([192, 0, 2, 9])).expect("a client");
    (client, acceptor.accept().expect("a server"))
}

/// An end, and what it has received.
struct Side {
    end: TlsEnd,
    incoming: Vec<u8>,
    plain: Vec<u8>,
    answer: Buffer,
    over: bool,
}

impl Side {
    fn new(end: TlsEnd) -> Self {
        let incoming = vec![0; PARTIAL_RECORD_MAX + (1 << 17)];
        Self { end, incoming, plain: Vec::new(), answer: Buffer::default(), over: false }
    }

    /// Gives it the bytes; whether it wants more.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        let held = self.end.put_back(&mut self.incoming);
        let incoming = &mut self.incoming[..held + bytes.len()];
        incoming[held..].copy_from_slice(bytes);
        let plain = &mut self.plain;
        let opened = self.end.open(incoming, &mut |bytes| plain.extend_from_slice(bytes), &mut self.answer);
        self.over = !matches!(opened, Ok(TlsState::Open | TlsState::Handshaking));
        !self.over
    }

    fn take(&mut self) -> Vec<u8> {
        let said = self.answer.filled().to_vec();
        self.answer.clear();
        said
    }
}

/// An end that expects a handshake, or one whose session is open and whose records are changed on the way: each triple
/// of the bytes names a place and what is done to it.
pub fn tls_records(data: &[u8]) {
    let (options, data) = choice(data);
    let (client, server) = ends();
    let mut server = Side::new(server);
    if options & 1 == 0 {
        let pieces = data.chunks(usize::from(options >> 1).max(1));
        let _all_or_some =
            pieces.map(|piece| server.receive(piece)).take_while(|wants_more| *wants_more).count();
        assert!(server.plain.is_empty(), "plaintext without a key");
        return;
    }
    let mut client = shake_hands(Side::new(client), &mut server);
    let mut sealed = Buffer::default();
    for _ in 0..RECORDS {
        client.end.seal(SAID, &mut sealed).expect("a session");
    }
    let mut wire = sealed.filled().to_vec();
    tamper(&mut wire, data);
    for piece in wire.chunks(usize::from(options >> 1).max(1) * 16) {
        if !server.receive(piece) {
            break;
        }
    }
    let all = SAID.repeat(RECORDS);
    assert!(all.starts_with(&server.plain), "{} bytes that nobody sealed", server.plain.len());
    if server.over {
        // Nothing can be said after an end, and saying so is no panic.
        let _ = server.end.close(&mut server.answer);
    }
}

fn shake_hands(mut client: Side, server: &mut Side) -> Side {
    client.receive(&[]);
    for _ in 0..6 {
        let hello = client.take();
        server.receive(&hello);
        let answer = server.take();
        client.receive(&answer);
    }
    let mut probe = Buffer::default();
    assert!(client.end.seal(b"", &mut probe).is_ok() && server.end.seal(b"", &mut probe).is_ok());
    client
}

fn tamper(wire: &mut Vec<u8>, how: &[u8]) {
    for change in how.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % wire.len().max(1);
        match change[2] {
            0 => wire.truncate(at),
            1..64 => wire.insert(at, change[2]),
            64..128 => drop(wire.drain(at..wire.len().min(at + usize::from(change[2]) - 63))),
            mask if at < wire.len() => wire[at] ^= mask,
            _ => {}
        }
    }
}
