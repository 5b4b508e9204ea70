//! Two ends of one TLS 1.3 connection, the handshake behind them, without a socket between.

use std::net::IpAddr;

use dcv_splice::runtime::buffer::Buffer;
use dcv_splice::tls::{Acceptor, AgentTrust, Connector, PARTIAL_RECORD_MAX, TlsEnd, TlsState};

/// The end that connected and the one that accepted, with the cipher suite that both prefer.
pub(crate) fn connected() -> (TlsEnd, TlsEnd) {
    let connector = Connector::new(&AgentTrust::Anything).expect("a connector");
    let mut client = connector.connect(IpAddr::from([10, 0, 0, 5])).expect("an end");
    let mut server = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
    let (_, mut to_server) = open(&mut client, &[]);
    for _ in 0..4 {
        let (_, to_client) = open(&mut server, to_server.filled());
        to_server = open(&mut client, to_client.filled()).1;
    }
    (client, server)
}

/// The plaintext in `ciphertext`, and what the end answers.
pub(crate) fn open(end: &mut TlsEnd, ciphertext: &[u8]) -> (Vec<u8>, Buffer) {
    let mut incoming = vec![0; PARTIAL_RECORD_MAX + ciphertext.len()];
    let held = end.put_back(&mut incoming);
    incoming[held..held + ciphertext.len()].copy_from_slice(ciphertext);
    let (mut plain, mut outgoing) = (Vec::new(), Buffer::default());
    let state = end.open(
        &mut incoming[..held + ciphertext.len()],
        &mut |bytes: &[u8]| plain.extend_from_slice(bytes),
        &mut outgoing,
    );
    assert!(matches!(state, Ok(TlsState::Open | TlsState::Handshaking)), "{state:?}");
    (plain, outgoing)
}
