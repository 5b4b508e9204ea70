//! What systemd tells a service, and is told.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use harness::agent::{Agent, AgentConfig};
use harness::process::{PATIENCE, Process, eventually};
use harness::proxy::{self, Proxy};
use nix::sys::signal::Signal;

use super::{Files, Service, agent, with_own_id};

/// Where a service's notifications go.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Waits for a notification that says `line`.
    fn hears(&self, line: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            let length = self.0.recv(&mut bytes).unwrap_or_else(|error| panic!("{line}: {error}"));
            let said = String::from_utf8(bytes[..length].to_vec()).unwrap();
            if said.lines().any(|it| it == line) {
                return said;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_of_every_turn() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let manager = Manager::new(&files.path("notify"));
    let mut command = files.command(proxy::binary());
    command.env("NOTIFY_SOCKET", files.path("notify")).env("WATCHDOG_USEC", "1000000");
    let mut service = Service::start_by(files, command);
    let main = |process: u32| format!("MAINPID={process}");
    assert!(manager.hears("READY=1").contains(&main(service.proxy.pid())));
    manager.hears("WATCHDOG=1");
    service.proxy.signal(Signal::SIGHUP);
    assert!(manager.hears("RELOADING=1").contains("MONOTONIC_USEC="));
    manager.hears("READY=1");
    service.files.configure("agnts = []\n");
    service.refuses("reload");
    manager.hears("RELOADING=1");
    assert!(manager.hears("READY=1").contains("STATUS=reload failed"));
    service.files.configure("");
    service.does("upgrade");
    let serving = service.serving();
    assert!(manager.hears("READY=1").contains(&main(serving)));
    assert_eq!(service.proxy.wait().code(), Some(0));
    // That one is watched as well.
    for _ in 0..2 {
        manager.hears("WATCHDOG=1");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(serving.try_into().unwrap()), Signal::SIGTERM).unwrap();
    manager.hears("STOPPING=1");
}

/// Starts a program with sockets that systemd would have opened for it.
fn with_sockets(command: &Command, sockets: Vec<TcpListener>) -> Command {
    let mut command = with_own_id(command);
    command.env("LISTEN_FDS", sockets.len().to_string());
    let mapping = |(child_fd, socket)| FdMapping { parent_fd: OwnedFd::from(socket), child_fd };
    command.fd_mappings((3..).zip(sockets).map(mapping).collect()).unwrap();
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_on_sockets_that_were_opened_for_it() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let socket = TcpListener::bind(files.address).unwrap();
    // Who comes before it runs waits for it.
    let early = tokio::spawn(harness::raw_client::RawClient::secure(files.address));
    let command = with_sockets(&files.command(proxy::binary()), vec![socket]);
    let service = Service::start_by(files, command);
    early.await.unwrap();
    assert_eq!(service.ask("/x").await.status, 200);
    // They are handed on.
    service.does("upgrade");
    assert_eq!(service.ask("/x").await.status, 200);
    let serving = service.serving();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(serving.try_into().unwrap()), Signal::SIGTERM).unwrap();
}

/// A proxy for `agent` at a socket of both families, as `ListenStream=8443` makes one; where IPv4 clients find it.
fn at_both_families(agent: SocketAddr, flags: &[&str]) -> (Proxy, SocketAddr) {
    let agents = [format!("--agents={}/32", agent.ip()), format!("--agent-port={}", agent.port())];
    let socket = TcpListener::bind("[::]:0").unwrap();
    at_socket(socket, &[&[&*agents[0], &agents[1]], flags].concat())
}

/// A proxy that listens at `socket`, which is handed over to it; where IPv4 clients find it.
fn at_socket(socket: TcpListener, flags: &[&str]) -> (Proxy, SocketAddr) {
    let address = socket.local_addr().unwrap();
    let listen = format!("--listen-plain={address}");
    let flags = [&[&*listen, "--access-log=stdout"], flags].concat();
    let proxy = Proxy::start_by(with_sockets(&proxy::command(&flags), vec![socket]), &flags);
    (proxy, SocketAddr::from(([127, 0, 0, 1], address.port())))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_ask_itself_by_a_socket_of_both_families() {
    for at in ["[::]:0", "[::ffff:127.0.0.1]:0"] {
        let socket = TcpListener::bind(at).unwrap();
        let port = format!("--agent-port={}", socket.local_addr().unwrap().port());
        let flags = [&*port, "--agents=127.0.0.0/8", "--agent-tls=off"];
        let (proxy, address) = at_socket(socket, &flags);
        let mut client = harness::raw_client::RawClient::plain(address).await;
        let path = "/127.0.0.1".repeat(1_000);
        client.say(format!("GET {path}/x HTTP/1.1\r\nHost: p\r\n\r\n")).await;
        assert_eq!(client.answer().await.unwrap().status, 502, "{at}");
        eventually("there is a line of it", || (!proxy.output().is_empty()).then_some(()));
        assert_eq!(proxy.output().lines().count(), 1, "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv4_client_at_a_socket_of_both_families_is_an_ipv4_client() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), format!("ann:{}\n", bcrypt::hash("one", 4).unwrap())).unwrap();
    let users = format!("--htpasswd={}", users.path().display());
    let (mut proxy, at) = at_both_families(agent.address, &["--htpasswd-agents=127.0.0.9/32", &users]);
    let ask = |path: &str, credentials: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: p\r\n{credentials}Connection: close\r\n\r\n");
        async move {
            let mut client = harness::raw_client::RawClient::plain(at).await;
            client.say(head).await;
            client.answer().await.unwrap().status
        }
    };
    assert_eq!(ask("/127.0.0.1/x", "").await, 200);
    let seen = agent.seen.requests();
    let told =
        ["x-real-ip", "x-forwarded-for"].map(|name| seen.last().unwrap().header(name).map(str::to_owned));
    assert_eq!(told, [Some("127.0.0.1".to_owned()), Some("127.0.0.1".to_owned())]);
    eventually("the access log tells of it", || {
        let line = proxy.output().lines().find(|line| line.contains("/127.0.0.1/x"))?.to_owned();
        line.starts_with("127.0.0.1 - ").then_some(())
    });
    // Those that are turned away too.
    assert_eq!(ask("/127.0.0.9/x", "Authorization: Basic YW5uOnR3bw==\r\n").await, 401);
    proxy.until("tells who shows a wrong password", |log| {
        log.contains("client=127.0.0.1 reason=auth_failed").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_not_named_is_unusable() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut process = Process::start(with_sockets(&files.command(proxy::binary()), vec![socket]));
    assert_eq!(process.wait().code(), Some(2));
    let told = format!("a socket on {address} was handed over that no --listen names");
    assert!(process.log().contains(&told), "{}", process.log());
}
