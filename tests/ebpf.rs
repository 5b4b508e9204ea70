//! The kernel's own account, against what agents say they have sent and got, byte for byte, and against the proxy's own.
//! Wants root, a cgroup of version 2, and the object that `cargo xtask ebpf` builds.
//! Debian packages: iproute2 libcap2-bin nftables
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dcv_splice::observe::agent::AgentId;
use dcv_splice::observe::status::ProcessStatus;
use dcv_splice::observe::tcp_stats::TcpStats;
use harness::ports::unused_address;
use harness::process::{Process, eventually};
use harness::proxy::{self, Proxy};
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;
use tempfile::TempDir;

fn object() -> PathBuf {
    proxy::target_directory().join("ebpf/account.o")
}

/// A proxy that the kernel counts for.
struct CountingProxy {
    proxy: Proxy,
    folder: TempDir,
}

impl Drop for CountingProxy {
    /// Killed, it could not remove its cgroup.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.proxy.terminate();
        }
    }
}

impl CountingProxy {
    fn start(port: u16, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}", folder.path().join("control").display());
        let (object, port) =
            (format!("--ebpf-object={}", object().display()), format!("--agent-port={port}"));
        let mut all = vec!["--listen-plain=127.0.0.1:0", "--agent-tls=off", "--ebpf=require", "--workers=2"];
        all.extend([
            "--agent-keepalive-timeout=1s",
            "--agents=127.0.0.0/8",
            "--agents=::1/128",
            &control,
            &object,
            &port,
        ]);
        all.extend(flags);
        let mut proxy = Proxy::start(&all);
        proxy.until("is reached", |log| log.contains("control socket opened").then_some(()));
        Self { proxy, folder }
    }

    fn status(&self) -> ProcessStatus {
        let mut stream = std::os::unix::net::UnixStream::connect(self.folder.path().join("control")).unwrap();
        std::io::Write::write_all(&mut stream, b"stats\n").unwrap();
        let said = std::io::read_to_string(stream).unwrap();
        serde_json::from_str(said.strip_prefix("ok ").expect("figures")).unwrap()
    }

    fn kernel(&self, agent: impl Into<AgentId>) -> TcpStats {
        self.status().kernel.expect("an account").agents.get(&agent.into()).cloned().unwrap_or_default()
    }

    /// What the kernel says once all of so many connections to the agent have ended, and the proxy's own figures agree.
    #[track_caller]
    fn settled(&self, agent: IpAddr, connections: u64) -> TcpStats {
        eventually("all connections have ended", || {
            let kernel = self.kernel(agent);
            (kernel.closed + kernel.failed >= connections).then_some(())
        });
        // The proxy publishes its own once a second.
        let own = |status: &ProcessStatus| {
            status.stats.agents.get(&agent.into()).map(|it| it.sockets).unwrap_or_default()
        };
        let settled = eventually("both accounts are the same", || {
            let status = self.status();
            let kernel = status.kernel.as_ref()?.agents.get(&agent.into())?;
            let own = own(&status);
            let same = (kernel.received, kernel.acknowledged) == (own.received, own.sent);
            same.then(|| kernel.clone())
        });
        assert_eq!(settled.tried, settled.opened + settled.failed);
        settled
    }

    async fn session(&self, path: &str) -> RawClient {
        let mut client = RawClient::plain(self.proxy.address()).await;
        client
            .say(format!(
                "GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))
            .await;
        assert_eq!(client.answer().await.expect("an answer").status, 101);
        client
    }
}

/// What agents have got and sent, heads and all, as they saw it.
#[derive(Default)]
struct Seen {
    got: AtomicU64,
    sent: AtomicU64,
}

impl Seen {
    fn totals(&self) -> (u64, u64) {
        (self.sent.load(Ordering::SeqCst), self.got.load(Ordering::SeqCst))
    }
}

const SWITCH: &str = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// How a session comes to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Close {
    AgentFirst,
    ClientFirst,
    Both,
    /// The client goes on when the agent has ended.
    AgentHalf,
    /// The agent goes on when the client has ended.
    ClientHalf,
}

const MODES: [Close; 5] =
    [Close::AgentFirst, Close::ClientFirst, Close::Both, Close::AgentHalf, Close::ClientHalf];
/// Bytes that come when the other side has ended already.
const LATE: usize = 100_000;

/// An agent that sends so many bytes as the path says, gets so many, and closes as it says.
async fn serve(mut agent: RawClient, seen: &Seen) {
    let Some(head) = agent.head().await else { return };
    seen.got.fetch_add(head.len() as u64, Ordering::SeqCst);
    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
    let mut words = path.split('/');
    let mut number = || words.next().unwrap().parse::<usize>().unwrap();
    let (sends, gets, mode) = (number(), number(), MODES[number()]);
    agent.say(SWITCH).await;
    agent.say(vec![7; sends]).await;
    seen.sent.fetch_add((SWITCH.len() + sends) as u64, Ordering::SeqCst);
    let got = agent.bytes(gets).await.len();
    seen.got.fetch_add(got as u64, Ordering::SeqCst);
    match mode {
        Close::AgentFirst | Close::Both => agent.finish().await,
        Close::AgentHalf => {
            agent.finish().await;
            let late = agent.bytes(LATE).await.len();
            seen.got.fetch_add(late as u64, Ordering::SeqCst);
        }
        Close::ClientHalf => {
            agent.rest().await;
            agent.say(vec![3; LATE]).await;
            seen.sent.fetch_add(LATE as u64, Ordering::SeqCst);
            agent.finish().await;
            return;
        }
        Close::ClientFirst => {}
    }
    agent.rest().await;
}

async fn agent() -> (ScriptedAgent, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let counting = seen.clone();
    let agent = ScriptedAgent::plain(move |_, line| {
        let seen = counting.clone();
        async move { serve(line, &seen).await }
    });
    (agent.await, seen)
}

async fn one(proxy: &CountingProxy, prefix: &str, sends: usize, gets: usize, mode: Close) {
    let number = MODES.iter().position(|it| *it == mode).unwrap();
    let mut client = proxy.session(&format!("{prefix}/{sends}/{gets}/{number}")).await;
    client.say(vec![9; gets]).await;
    assert_eq!(client.bytes(sends).await.len(), sends);
    match mode {
        Close::ClientFirst | Close::Both => client.finish().await,
        Close::AgentHalf => {
            client.say(vec![5; LATE]).await;
            client.finish().await;
        }
        Close::ClientHalf => {
            client.finish().await;
            assert_eq!(client.bytes(LATE).await.len(), LATE);
        }
        Close::AgentFirst => {}
    }
    client.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_accounted_for_however_a_session_ends() {
    let (agent, seen) = agent().await;
    let proxy = CountingProxy::start(agent.address.port(), &[]);
    let prefix = format!("/{}", agent.address.ip());
    let mut connections = 0;
    for mode in MODES {
        for (sends, gets) in [(0, 0), (1, 1), (100_000, 3), (5, 300_000), (65_536, 65_536)] {
            one(&proxy, &prefix, sends, gets, mode).await;
            connections += 1;
            let kernel = proxy.settled(agent.address.ip(), connections);
            assert_eq!((kernel.received, kernel.acknowledged), seen.totals(), "{mode:?} {sends} {gets}");
        }
    }
    let kernel = proxy.kernel(agent.address.ip());
    assert_eq!((kernel.opened, kernel.failed, kernel.closed), (connections, 0, connections));
    assert_eq!(kernel.connect_times.iter().sum::<u64>(), connections);
    assert!(kernel.rtts.iter().sum::<u64>() > 0 && kernel.rtt_us > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_are_accounted_for() {
    let (agent, seen) = agent().await;
    let proxy = Arc::new(CountingProxy::start(agent.address.port(), &[]));
    let prefix = format!("/{}", agent.address.ip());
    let sessions = (0..200).map(|number| {
        let (proxy, prefix) = (proxy.clone(), prefix.clone());
        let (sends, gets) = (fastrand::usize(..200_000), fastrand::usize(..50_000));
        tokio::spawn(async move { one(&proxy, &prefix, sends, gets, MODES[number % MODES.len()]).await })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
    let kernel = proxy.settled(agent.address.ip(), 200);
    assert_eq!((kernel.received, kernel.acknowledged), seen.totals());
    let status = proxy.status();
    let listeners: Vec<_> = status.kernel.unwrap().listeners.into_iter().collect();
    // Port 0 was asked for, which is none that clients come to.
    assert!(listeners.is_empty(), "{listeners:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_ipv6_is_accounted_for() {
    let listener = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let counting = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = counting.clone();
            tokio::spawn(async move { serve(RawClient::new(stream), &seen).await });
        }
    });
    let proxy = CountingProxy::start(address.port(), &["--default-agent=::1"]);
    for mode in MODES {
        one(&proxy, "", 10_000, 2_000, mode).await;
    }
    let kernel = proxy.settled(address.ip(), 5);
    assert_eq!((kernel.received, kernel.acknowledged), seen.totals());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_accounted_for_by_listener() {
    let (agent, _) = agent().await;
    let at = unused_address();
    let proxy = CountingProxy::start(agent.address.port(), &[&format!("--listen={at}")]);
    let asked = 20;
    for _ in 0..asked {
        let mut client = RawClient::secure(at).await;
        client.say("GET /health HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        client.finish().await;
        client.rest().await;
    }
    let listener = eventually("all have ended", || {
        let account = proxy.status().kernel?;
        account.listeners.get(&at.port().into()).filter(|it| it.closed == asked).cloned()
    });
    assert_eq!((listener.opened, listener.failed), (asked, 0));
    eventually("both accounts are the same", || {
        let own = proxy.status().stats.clients;
        (own.received == listener.received && own.sent == listener.acknowledged).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_are_counted_as_such() {
    let free = unused_address();
    let proxy = CountingProxy::start(free.port(), &["--connect-timeout=300ms"]);
    let ask = async |agent: &str| {
        let mut client = RawClient::plain(proxy.proxy.address()).await;
        client.say(format!("GET /{agent}/ HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")).await;
        client.answer().await.unwrap().status
    };
    for _ in 0..3 {
        assert_eq!(ask("127.0.0.1").await, 502);
    }
    // Nobody was reached: clients can't fill the account with addresses.
    let refused = failures(&proxy, 3);
    assert_eq!((refused.tried, refused.opened, refused.failed, refused.closed), (3, 0, 3, 0));
    // Where the queue of a listener is full, the kernel drops what comes.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let silent = SocketAddr::from(([127, 0, 0, 2], free.port()));
    full.bind(&silent.into()).unwrap();
    full.listen(0).unwrap();
    let waiting: Vec<_> =
        (0..4).map(|_| TcpStream::connect_timeout(&silent, Duration::from_millis(200))).collect();
    assert!(waiting.iter().any(Result::is_err));
    assert_eq!(ask("127.0.0.2").await, 504);
    let all = failures(&proxy, 4);
    assert_eq!((all.tried, all.opened, all.failed, all.closed), (4, 0, 4, 0));
    assert_eq!(proxy.status().kernel.unwrap().agents.len(), 1);
}

fn failures(proxy: &CountingProxy, count: u64) -> TcpStats {
    eventually("they are counted", || {
        let others = proxy.kernel(AgentId::OTHERS);
        (others.failed == count).then_some(others)
    })
}

/// What comes right before a reset is acknowledged by nobody: the account says so, and what the two differ by is shown.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_reset_has_left_unacknowledged_is_shown() {
    let agent = ScriptedAgent::plain(|_, mut agent| async move {
        agent.head().await;
        agent.say(SWITCH).await;
        agent.bytes(4).await;
        agent.reset();
    })
    .await;
    let proxy = CountingProxy::start(agent.address.port(), &[]);
    let mut client = proxy.session(&format!("/{}/", agent.address.ip())).await;
    client.say("word").await;
    client.rest().await;
    let kernel = eventually("it has ended", || {
        let kernel = proxy.kernel(agent.address.ip());
        (kernel.closed == 1).then_some(kernel)
    });
    let own = eventually("the proxy's own is published", || {
        let own = proxy.status().stats.agents.get(&agent.address.ip().into())?.sockets;
        (own.received > 0).then_some(own)
    });
    assert_eq!(kernel.received, own.received);
    assert!([0, 4].contains(&(own.sent - kernel.acknowledged)), "{own:?} {kernel:?}");
}

/// What is known to be off: an end and a reset look alike if bytes came since this side's own end was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_our_end_and_then_a_reset_may_be_one_byte_short() {
    let seen = Arc::new(Seen::default());
    let counting = seen.clone();
    let agent = ScriptedAgent::plain(move |_, mut agent| {
        let seen = counting.clone();
        async move {
            let head = agent.head().await.unwrap();
            seen.got.fetch_add(head.len() as u64, Ordering::SeqCst);
            agent.say(SWITCH).await;
            // The client ends, and so does the proxy, whose end is acknowledged.
            agent.rest().await;
            agent.say(vec![7; 10_000]).await;
            seen.sent.fetch_add(SWITCH.len() as u64 + 10_000, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            agent.reset();
        }
    })
    .await;
    let proxy = CountingProxy::start(agent.address.port(), &[]);
    let mut client = proxy.session(&format!("/{}/", agent.address.ip())).await;
    client.finish().await;
    client.rest().await;
    let kernel = eventually("it has ended", || {
        let kernel = proxy.kernel(agent.address.ip());
        (kernel.closed == 1).then_some(kernel)
    });
    let (sent, got) = seen.totals();
    assert_eq!(kernel.acknowledged, got);
    assert!([sent, sent - 1].contains(&kernel.received), "{} of {sent}", kernel.received);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_counts_nothing_twice_and_leaves_nothing_behind() {
    let (agent, seen) = agent().await;
    let at = unused_address();
    let mut proxy = CountingProxy::start(agent.address.port(), &[&format!("--listen-plain={at}")]);
    let ip = agent.address.ip();
    let cgroup = proxy.proxy.until("says where", |log| {
        let (_, after) = log.split_once("eBPF statistics enabled cgroup=")?;
        Some(PathBuf::from(after.lines().next()?))
    });
    assert!(cgroup.exists());
    one(&proxy, &format!("/{ip}"), 1000, 10, Close::AgentFirst).await;
    proxy.settled(ip, 1);
    let before = seen.totals();
    let control = format!("--control={}", proxy.folder.path().join("control").display());
    let mut upgrade = Process::start(proxy::command(&["upgrade", &control]));
    assert_eq!(upgrade.wait().code(), Some(0), "{}", upgrade.log());
    eventually("the old process has gone, and its cgroup", || (!cgroup.exists()).then_some(()));
    let mut client = RawClient::plain(at).await;
    let path = format!("/{ip}/5000/5/0");
    client
        .say(format!(
            "GET {path} HTTP/1.1\r\nHost: p\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nhello"
        ))
        .await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    client.rest().await;
    drop(client);
    let kernel = proxy.settled(ip, 1);
    let (sent, got) = seen.totals();
    assert_eq!((kernel.received, kernel.acknowledged), (sent - before.0, got - before.1));
    assert_eq!((kernel.opened, kernel.closed), (1, 1));
    let serving = proxy.status().pid;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(serving.try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let name = format!("dcv-splice.{serving}");
    let left = cgroup.parent().unwrap().join(name);
    eventually("nothing is left", || (!left.exists()).then_some(()));
}

/// The supervisor asks it one thing at a time, and whoever looks does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_hangs_keeps_nobody_from_the_other_figures() {
    let (agent, _) = agent().await;
    let admin = unused_address();
    let proxy = CountingProxy::start(agent.address.port(), &[&format!("--admin={admin}")]);
    let pid = proxy.proxy.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let helper = nix::unistd::Pid::from_raw(children.trim().parse().expect("one child"));
    let look = async || {
        let mut client = RawClient::plain(admin).await;
        client.say("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        client.answer().await.expect("an answer").text()
    };
    one(&proxy, &format!("/{}", agent.address.ip()), 10, 10, Close::AgentFirst).await;
    proxy.settled(agent.address.ip(), 1);
    assert!(look().await.contains("dcv_splice_tcp_agent_"));
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let looks: Vec<_> = futures_util::future::join_all((0..10).map(|_| look())).await;
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGCONT).unwrap();
    for text in looks {
        assert!(text.contains("dcv_splice_agent_received_bytes_total"), "{text}");
        assert!(!text.contains("dcv_splice_tcp_agent_received_bytes_total{"), "{text}");
    }
    assert!(look().await.contains("dcv_splice_tcp_agent_received_bytes_total{"));
}

/// Where something is missing it says what, and serves without.
#[test]
fn what_is_missing_is_said_and_only_where_it_is_required_is_it_unusable() {
    let object = object().display().to_string();
    let run = |mode: &str, object: &str| {
        let flags = ["--listen-plain=127.0.0.1:0", "--admin=off", mode, object];
        Process::start(proxy::command(&flags)).without_grace()
    };
    let absent = "--ebpf-object=/nowhere/account.o";
    let mut refused = run("--ebpf=require", absent);
    assert_eq!(refused.wait().code(), Some(2));
    assert!(refused.log().contains("/nowhere/account.o"), "{}", refused.log());
    let mut serves = run("--ebpf=auto", absent);
    serves.until("says what is missing", |process| {
        process.log().contains("eBPF statistics disabled reason=\"/nowhere/account.o").then_some(())
    });
    drop(serves);
    // It is all that a service has to be given (capabilities(7)).
    let flag = format!("--ebpf-object={object}");
    let with = |dropped: &str| {
        let program = proxy::binary().display();
        let script = format!("exec {program} --listen-plain=127.0.0.1:0 --admin=off --ebpf=require {flag}");
        let mut command = Command::new("capsh");
        command.arg(format!("--drop={dropped}")).args(["--", "-c", &script]);
        Process::start(command)
    };
    let mut enough = with("cap_perfmon,cap_sys_admin");
    enough.until("counts", |process| process.log().contains("eBPF statistics enabled").then_some(()));
    enough.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(enough.wait().code(), Some(0));
    for capability in ["cap_bpf,cap_sys_admin", "cap_net_admin,cap_sys_admin"] {
        let mut process = with(capability);
        assert_eq!(process.wait().code(), Some(2), "{capability}: {}", process.log());
        assert!(
            process.log().contains("it takes CAP_BPF and CAP_NET_ADMIN"),
            "{capability}: {}",
            process.log()
        );
    }
}

/// Segments that are lost are sent again, and no byte of them counts twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_on_the_way_is_counted_once() {
    let (agent, seen) = agent().await;
    let port = agent.address.port();
    // One in eight segments to and from the agent; the table goes with the test.
    let table = Table::new(port);
    let proxy = CountingProxy::start(port, &["--connect-timeout=20000ms"]);
    for mode in [Close::AgentFirst, Close::ClientFirst, Close::Both] {
        one(&proxy, &format!("/{}", agent.address.ip()), 400_000, 300_000, mode).await;
    }
    drop(table);
    let kernel = proxy.settled(agent.address.ip(), 3);
    assert_eq!((kernel.received, kernel.acknowledged), seen.totals());
    assert!(kernel.retransmitted_segments > 0, "nothing was lost");
}

/// Rules that drop segments of one port.
struct Table(String);

impl Table {
    fn new(port: u16) -> Self {
        let table = Self(format!("dcv_splice_{port}"));
        let name = &table.0;
        let lossy = "meta length > 500 numgen inc mod 8 == 0 drop";
        let rules = format!(
            "table inet {name} {{\nchain lossy {{\ntype filter hook input priority 0\n\
             tcp dport {port} {lossy}\ntcp sport {port} {lossy}\n}}\n}}\n"
        );
        let mut process = Process::start({
            let mut command = Command::new("nft");
            command.arg(rules);
            command
        });
        assert!(process.wait().success(), "{}", process.log());
        table
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let mut command = Command::new("nft");
        command.args(["delete", "table", "inet", &self.0]);
        Process::start(command).wait();
    }
}
