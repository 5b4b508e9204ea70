//! Where sessions run: on kernels with TLS, through a proxy that leaves records to the kernel or does them itself, between
//! a client and an agent that are scripts.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use harness::ports::unused_address;
use harness::process::eventually;
use harness::proxy::{self, Proxy, test_program};
use harness::virtual_machine::{Kernel, VirtualMachine};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUlp;
use tokio_rustls::rustls::SupportedCipherSuite;

use crate::peer::{Peer, is_tls13};

/// Tells a test that it runs in a virtual machine.
const IN_MACHINE: &str = "DCV_SPLICE_TEST_IN_MACHINE";

/// Whether this kernel has TLS.
fn has_kernel_tls() -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    setsockopt(&client, TcpUlp::<[u8; 3]>::default(), b"tls").is_ok()
}

/// Runs `body` where the kernel has TLS: here, or as the test of this name in virtual machines.
#[track_caller]
pub(crate) fn with_kernel_tls(test: &str, body: impl FnOnce()) {
    with_kernel_tls_of(&[Kernel::OfRelease, Kernel::Backported], test, body);
}

/// The same in machines with these kernels.
#[track_caller]
pub(crate) fn with_kernel_tls_of(kernels: &[Kernel], test: &str, body: impl FnOnce()) {
    if has_kernel_tls() {
        return body();
    }
    assert!(env::var_os(IN_MACHINE).is_none(), "the kernel of the machine has no TLS");
    // It is built here: nothing can be there.
    proxy::binary();
    let program = test_program("kernel_tls");
    for kernel in kernels {
        let script = format!(
            "export CARGO=true PATH=/usr/sbin:/usr/bin HOME=/tmp {IN_MACHINE}=1\nulimit -n 65536\n\
             {} --exact --color=never {test}\n",
            program.display()
        );
        let (code, said) = VirtualMachine::new(*kernel).run(&script);
        assert!(code == 0 && said.contains("test result: ok. 1 passed"), "{kernel:?}: {said}");
    }
}

/// A proxy before one agent.
pub(crate) struct Front {
    pub(crate) proxy: Proxy,
    agent: TcpListener,
}

/// What was written of a session.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Written {
    pub(crate) end_reason: String,
    /// Plaintext, to the agent and to the client.
    pub(crate) bytes: [u64; 2],
}

impl Front {
    /// `session_tls`: who does the records.
    pub(crate) fn new(session_tls: &str, flags: &[&str]) -> Self {
        let agent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = format!("--agent-port={}", agent.local_addr().unwrap().port());
        let by = format!("--session-tls={session_tls}");
        // An upgrade finds it again.
        let address = unused_address();
        let listen = format!("--listen={address}");
        let all = [&*listen, "--agents=127.0.0.1/32", "--access-log=stdout", "--workers=1"];
        Self { proxy: Proxy::start(&[&all[..], &[&port, &by], flags].concat()), agent }
    }

    /// Whether keys can be changed in the kernel.
    pub(crate) fn renews_keys(&self) -> bool {
        !self.proxy.log().contains("but no change of keys")
    }

    /// Connections of the proxy whose records the kernel seals and opens.
    pub(crate) fn in_kernel(&self) -> usize {
        self.sockets(&["state", "established"]).matches("rxconf: sw txconf: sw").count()
    }

    /// Connections of the proxy that are not closed altogether.
    pub(crate) fn connections(&self) -> usize {
        let open = ["state", "connected", "exclude", "time-wait"];
        self.sockets(&open).lines().filter(|line| !line.starts_with(char::is_whitespace)).count()
    }

    /// What `ss` says of the proxy's connections.
    fn sockets(&self, states: &[&str]) -> String {
        let agent = self.agent.local_addr().unwrap().port();
        let filter = format!("( sport = :{} or dport = :{agent} )", self.proxy.address().port());
        let listed = Command::new("ss").arg("-tinH").args(states).arg(&filter).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }

    /// As many as there should be of legs with these suites.
    pub(crate) fn expects_in_kernel(&self, suites: &[SupportedCipherSuite]) {
        let expected = suites.iter().filter(|suite| self.renews_keys() || !is_tls13(**suite)).count();
        eventually(&format!("{expected} legs are in the kernel"), || {
            (self.in_kernel() == expected).then_some(())
        });
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// The agent's side of the next connection.
    pub(crate) fn accept(&self, suite: SupportedCipherSuite) -> Peer {
        Peer::agent(self.agent.accept().unwrap().0, suite)
    }

    /// A session between two scripts, which begin behind the `101`; what they return, and what was written of it.
    pub(crate) fn session<C: Send, A: Send>(
        &self,
        [client_suite, agent_suite]: [SupportedCipherSuite; 2],
        client: impl FnOnce(Peer) -> C + Send,
        agent: impl FnOnce(Peer) -> A + Send,
    ) -> (C, A, Written) {
        let before = self.lines().len();
        let (client, agent) = thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let mut peer = self.accept(agent_suite);
                peer.head();
                assert!(peer.say(SWITCHING));
                agent(peer)
            });
            let mut peer = Peer::client(self.address(), client_suite);
            assert!(peer.say(UPGRADE));
            let head = peer.head();
            assert!(head.starts_with("HTTP/1.1 101"), "{head}{}", self.proxy.log());
            let client = client(peer);
            (client, agent.join().expect("the agent's script"))
        });
        let line = eventually("a line is written", || self.lines().get(before).cloned());
        (client, agent, Written::of(&line))
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.proxy.output();
        lines.lines().filter(|line| !line.ends_with("end_reason=started")).map(str::to_owned).collect()
    }
}

pub(crate) const UPGRADE: &[u8] = b"GET /127.0.0.1/ws HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub(crate) const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

impl Written {
    fn of(line: &str) -> Self {
        let value = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
        };
        let bytes = ["to_agent", "to_client"].map(|name| value(name).parse().unwrap());
        Self { end_reason: value("end_reason"), bytes }
    }
}
