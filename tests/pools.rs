//! Pools: which desktop a user gets, how a browser and a native client come back to it, and who is sent nowhere.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use harness::process::eventually;
use harness::proxy::{self, Proxy};
use harness::raw_client::{Answer, RawClient, soon};
use harness::stand_in::{Death, StandIn};
use tempfile::TempDir;
use tokio::net::TcpSocket;

const BROWSER: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n";

/// A proxy in front of a pool, `cad`, of agents `desk1`, `desk2`, ...
struct Pool {
    proxy: Proxy,
    agents: Vec<StandIn>,
    folder: TempDir,
}

impl Pool {
    async fn new(network: u8, count: u8, flags: &[&str]) -> Self {
        let mut agents = Vec::new();
        let mut port = 0;
        for number in 1..=count {
            let address = SocketAddr::from(([127, network, 0, number], port));
            agents.push(StandIn::start(format!("desk{number}"), address).await);
            port = agents[0].address.port();
        }
        let folder = tempfile::tempdir().unwrap();
        let text: String = agents.iter().map(|agent| agent.entry("pools = [\"cad\"]")).collect();
        fs::write(folder.path().join("agents.toml"), text).unwrap();
        let proxy = Self::proxy(&folder, network, port, flags);
        Self { proxy, agents, folder }
    }

    fn proxy(folder: &TempDir, network: u8, port: u16, flags: &[&str]) -> Proxy {
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (file, control) =
            (format!("--agents-file={}", at("agents.toml")), format!("--control={}", at("control")));
        let (network, port) = (format!("--agents=127.{network}.0.0/16"), format!("--agent-port={port}"));
        let fixed = ["--listen-plain=127.0.0.1:0", "--agent-tls=off", &*file, &*control, &*network, &*port];
        let mut proxy = Proxy::start(&[&fixed[..], flags].concat());
        // It listens before it serves.
        proxy.until("can be reached", |log| log.contains("control socket opened").then_some(()));
        proxy
    }

    async fn ask(&self, client: u8, path: &str, lines: &str) -> Answer {
        ask(self.proxy.address(), client, path, lines).await
    }

    fn operate(&self, words: &[&str]) {
        let mut command = Command::new(proxy::binary());
        let output = command.args(words).arg("--control").arg(self.folder.path().join("control")).output();
        assert!(output.unwrap().status.success());
    }
}

async fn client(proxy: SocketAddr, number: u8) -> RawClient {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 1, number], 0))).unwrap();
    RawClient::new(socket.connect(proxy).await.unwrap())
}

async fn ask(proxy: SocketAddr, number: u8, path: &str, lines: &str) -> Answer {
    let mut client = client(proxy, number).await;
    client.say(format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n{lines}\r\n")).await;
    client.answer().await.unwrap()
}

async fn session(proxy: SocketAddr, number: u8, path: &str) -> Result<RawClient, u16> {
    let mut client = client(proxy, number).await;
    client
        .say(format!(
            "GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
    let head = client.head().await.unwrap();
    match head.split(' ').nth(1).unwrap().parse().unwrap() {
        101 => Ok(client),
        status => Err(status),
    }
}

/// The cookie that an answer sets, as it is sent back.
fn cookie(answer: &Answer) -> String {
    let line = answer.header("set-cookie").unwrap();
    assert!(
        line.contains("HttpOnly") && line.contains("Path=/pool/cad") && !line.contains("Secure"),
        "{line}"
    );
    format!("Cookie: x=y; {}\r\n", line.split(';').next().unwrap())
}

/// The agent that an answer sends to.
fn agent(answer: &Answer) -> String {
    assert_eq!(answer.status, 307, "{}", answer.text());
    answer.header("location").unwrap().split('/').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_users_spreads_evenly() {
    let pool = Pool::new(101, 8, &["--workers=4"]).await;
    let proxy = pool.proxy.address();
    // Browsers, some of them at one address, and native clients, which are known by theirs.
    let users = (0..100_u8).map(|number| {
        let (client, lines) = if number < 60 { (number / 3, BROWSER) } else { (number, "") };
        tokio::spawn(async move { agent(&ask(proxy, client, "/pool/cad/", lines).await) })
    });
    let users: Vec<_> = users.collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for user in users {
        *counts.entry(user.await.unwrap()).or_default() += 1;
    }
    let (min, max) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(counts.len() == 8 && max - min <= 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_comes_back_to_the_same_desktop_with_path_and_query_kept() {
    let pool = Pool::new(102, 3, &[]).await;
    let first = pool.ask(1, "/pool/cad/a%2Fb?x=1&y", BROWSER).await;
    let mine = agent(&first);
    assert_eq!(first.header("location"), Some(&*format!("/{mine}/a%2Fb?x=1&y")));
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let cookies = format!("{BROWSER}{}", cookie(&first));
    for (path, to) in
        [("/pool/cad", "/"), ("/pool/cad?q", "/?q"), ("/pool/cad/", "/"), ("/pool/cad//x", "//x")]
    {
        let again = pool.ask(2, path, &cookies).await;
        assert_eq!(again.header("location"), Some(&*format!("/{mine}{to}")), "{path}");
    }
    // A cookie that somebody has made up says nothing.
    let other = ["desk1", "desk2", "desk3"].into_iter().find(|name| *name != mine).unwrap();
    let made_up = format!("{BROWSER}{}", cookie(&first).replace(&mine, other));
    assert_ne!(agent(&pool.ask(1, "/pool/cad/", &made_up).await), mine);
    // Native clients keep no cookies.
    let native = agent(&pool.ask(7, "/pool/cad/", "User-Agent: dcvviewer\r\n").await);
    for _ in 0..5 {
        assert_eq!(agent(&pool.ask(7, "/pool/cad/", "").await), native);
    }
    for (path, status) in [("/pool/other/", 404), ("/pool/", 404), ("/pool//x", 404), ("/pool", 404)] {
        assert_eq!(pool.ask(1, path, BROWSER).await.status, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_gets_its_desktop_without_a_redirect() {
    let pool = Pool::new(103, 2, &[]).await;
    let proxy = pool.proxy.address();
    let mut one = session(proxy, 1, "/pool/cad/ws").await.unwrap();
    let mut other = session(proxy, 2, "/pool/cad").await.unwrap();
    for session in [&mut one, &mut other] {
        session.say("hello").await;
        assert_eq!(soon(session.bytes(5)).await, b"hello");
    }
    assert_eq!(pool.agents.iter().map(StandIn::served).collect::<Vec<_>>().iter().sum::<usize>(), 1);
    // The same client's next channel is on its desktop, and a third client's on either.
    let _channel = session(proxy, 1, "/pool/cad/ws").await.unwrap();
    let served: Vec<_> = pool.agents.iter().map(StandIn::served).collect();
    assert_eq!(served.iter().max(), Some(&2), "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_a_desktop_that_is_dead_or_takes_no_users() {
    let probes = ["--probe=http", "--probe-interval=200ms", "--probe-jitter=20ms"];
    let mut pool = Pool::new(104, 3, &probes).await;
    let first = pool.ask(1, "/pool/cad/", BROWSER).await;
    let mine = agent(&first);
    let cookies = format!("{BROWSER}{}", cookie(&first));
    pool.operate(&["drain", &mine]);
    let next = agent(&pool.ask(1, "/pool/cad/", &cookies).await);
    assert_ne!(next, mine);
    let index = pool.agents.iter().position(|agent| agent.name == next).unwrap();
    pool.agents[index].die(Death::Refuses).await;
    let last =
        pool.agents.iter().find(|agent| agent.name != mine && agent.name != next).unwrap().name.clone();
    let mut client = 10;
    while pool.ask(9, &format!("/{next}/"), "").await.status != 503 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..5 {
        client += 1;
        assert_eq!(agent(&pool.ask(client, "/pool/cad/", "").await), last);
    }
    pool.operate(&["off", &last]);
    let answer = pool.ask(1, "/pool/cad/", BROWSER).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("10")));
    assert!(answer.text().contains("cad are down or take no new users"), "{}", answer.text());
    assert_eq!(session(pool.proxy.address(), 1, "/pool/cad/ws").await.err(), Some(503));
    pool.operate(&["undrain", &mine]);
    assert_eq!(agent(&pool.ask(1, "/pool/cad/", &cookies).await), mine);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_with_one_key_send_a_user_to_the_same_desktop() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    let flag = format!("--cookie-key={}", key.display());
    let pool = Pool::new(105, 4, &[&*flag]).await;
    let port = pool.agents[0].address.port();
    let other_folder = tempfile::tempdir().unwrap();
    fs::copy(pool.folder.path().join("agents.toml"), other_folder.path().join("agents.toml")).unwrap();
    let with_key = Pool::proxy(&other_folder, 105, port, &[&*flag]);
    let third_folder = tempfile::tempdir().unwrap();
    fs::copy(pool.folder.path().join("agents.toml"), third_folder.path().join("agents.toml")).unwrap();
    let without = Pool::proxy(&third_folder, 105, port, &[]);
    // Each proxy by itself begins with the first.
    agent(&pool.ask(1, "/pool/cad/", BROWSER).await);
    let second = pool.ask(2, "/pool/cad/", BROWSER).await;
    let cookies = format!("{BROWSER}{}", cookie(&second));
    assert_eq!(agent(&ask(with_key.address(), 3, "/pool/cad/", &cookies).await), agent(&second));
    assert_ne!(agent(&ask(without.address(), 3, "/pool/cad/", &cookies).await), agent(&second));
    fs::write(&key, "short\n").unwrap();
    let output = Command::new(proxy::binary()).args(["check", &*flag]).output().unwrap();
    let says = String::from_utf8(output.stderr).unwrap();
    assert!(says.contains("has fewer than 64 bytes: `openssl rand -hex 64` makes a key"), "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_tell_of_their_desktops_counts() {
    let probes = ["--probe=http", "--probe-interval=200ms", "--probe-jitter=20ms"];
    let mut pool = Pool::new(106, 2, &probes).await;
    pool.agents[0].headers = "dcv-splice-desktops: 3\r\n".to_owned();
    pool.agents[0].die(Death::Refuses).await;
    pool.agents[0].revive().await;
    eventually("it was probed", || pool.proxy.log().contains("network helper started").then_some(()));
    // Once that is known, the other one gets users until it has as many.
    let mut client = 0;
    loop {
        client += 1;
        let proxy = pool.proxy.address();
        let placed = [
            agent(&ask(proxy, client, "/pool/cad/", "").await),
            agent(&ask(proxy, client + 100, "/pool/cad/", "").await),
        ];
        if placed == ["desk2", "desk2"] {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(client < 100, "{placed:?}");
    }
}

/// Where no agent is part of a pool, the paths are the default agent's as ever.
#[tokio::test(flavor = "multi_thread")]
async fn without_pools_the_paths_are_an_agents_own() {
    let agent = StandIn::start("only", SocketAddr::from(([127, 107, 0, 1], 0))).await;
    let port = format!("--agent-port={}", agent.address.port());
    let flags = [
        "--listen-plain=127.0.0.1:0",
        "--agent-tls=off",
        "--agents=127.107.0.0/16",
        "--default-agent=127.107.0.1",
        &*port,
    ];
    let proxy = Proxy::start(&flags);
    assert_eq!(ask(proxy.address(), 1, "/pool/cad/x", BROWSER).await.text(), "only /pool/cad/x");
}
