//! Whether agents live: what users of a dead one see, how it comes back, and that nobody else notices.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use harness::process::eventually;
use harness::proxy::{self, Proxy};
use harness::raw_client::{Answer, RawClient, soon};
use harness::scripted_agent::ScriptedAgent;
use harness::stand_in::{Death, StandIn};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// Of tests that wait for nothing but probes.
const FAST: [&str; 4] =
    ["--probe=http", "--probe-interval=200ms", "--probe-jitter=20ms", "--probe-timeout=2s"];

/// A proxy in front of agents, whose addresses are in one network and whose port is the same.
struct Fleet {
    proxy: Proxy,
    agents: Vec<StandIn>,
    folder: TempDir,
}

impl Fleet {
    /// Of so many agents in 127.`network`.0.0/16.
    async fn new(network: u8, count: u8, flags: &[&str]) -> Self {
        let mut agents = Vec::new();
        let mut port = 0;
        for number in 1..=count {
            let address = SocketAddr::from(([127, network, 0, number], port));
            agents.push(StandIn::start(format!("desk{number}"), address).await);
            port = agents[0].address.port();
        }
        let folder = tempfile::tempdir().unwrap();
        let text: String = agents.iter().map(|agent| agent.entry("")).collect();
        fs::write(folder.path().join("agents.toml"), text).unwrap();
        let file = format!("--agents-file={}", folder.path().join("agents.toml").display());
        let control = format!("--control={}", folder.path().join("control").display());
        let (network, port) = (format!("--agents=127.{network}.0.0/16"), format!("--agent-port={port}"));
        let fixed = ["--listen-plain=127.0.0.1:0", "--agent-tls=off", &*file, &*control, &*network, &*port];
        let mut proxy = Proxy::start(&[&fixed[..], flags].concat());
        // It listens before it serves.
        proxy.until("can be reached", |log| log.contains("control socket opened").then_some(()));
        Self { proxy, agents, folder }
    }

    async fn ask(&self, path: &str) -> Answer {
        ask(self.proxy.address(), path).await
    }

    /// Waits until it is answered so.
    async fn becomes(&self, path: &str, status: u16) -> Answer {
        for _ in 0..1200 {
            let answer = self.ask(path).await;
            if answer.status == status {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{path} is never answered with {status}:\n{}", self.proxy.log());
    }

    fn admin(&self) -> SocketAddr {
        let log = self.proxy.log();
        let at = log.split("admin page at http://").nth(1).and_then(|rest| rest.split('/').next());
        at.unwrap().parse().unwrap()
    }

    fn operate(&self, words: &[&str]) -> String {
        let mut command = Command::new(proxy::binary());
        let output = command.args(words).arg("--control").arg(self.folder.path().join("control")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `dcv-splice agents` says of an agent.
    fn report(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.operate(&["agents", "--json"])).unwrap();
        all["agent"].as_array().unwrap().iter().find(|agent| agent["name"] == name).unwrap().clone()
    }

    /// Waits until every agent was probed.
    fn probed(&self) {
        eventually("all agents are probed", || {
            let all: Value = serde_json::from_str(&self.operate(&["agents", "--json"])).unwrap();
            all["agent"].as_array().unwrap().iter().all(|agent| agent["health"] != "unknown").then_some(())
        });
    }
}

async fn ask(proxy: SocketAddr, path: &str) -> Answer {
    let mut client = RawClient::plain(proxy).await;
    client.say(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
    client.answer().await.unwrap()
}

async fn session(proxy: SocketAddr, path: &str) -> RawClient {
    let mut client = RawClient::plain(proxy).await;
    client
        .say(format!(
            "GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_is_answered_for_at_once_and_is_back_by_itself() {
    for death in [Death::Refuses, Death::Hangs] {
        let flags = ["--admin=127.0.0.1:0", "--probe-timeout=300ms", "--response-timeout=1s"];
        let mut fleet = Fleet::new(81, 2, &[&FAST[..3], &flags[..]].concat()).await;
        fleet.probed();
        assert_eq!(fleet.ask("/desk1/x").await.text(), "desk1 /x");
        fleet.agents[0].die(death).await;
        let answer = fleet.becomes("/desk1/x", 503).await;
        let tried = if death == Death::Hangs { "HTTP: no answer within 300ms" } else { "connection refused" };
        assert!(answer.text().starts_with("The desktop desk1 is down since 20"), "{}", answer.text());
        assert!(answer.text().contains(tried), "{}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("1"));
        // By its address it is the same agent, and the other one is as before.
        assert_eq!(fleet.ask("/127.81.0.1/").await.status, 503);
        assert_eq!(fleet.ask("/desk2/x").await.text(), "desk2 /x");
        let report = fleet.report("desk1");
        assert_eq!(report["health"], "down");
        assert!(report["down_reason"].as_str().unwrap().contains(tried), "{report}");
        assert!(report["down_since"].as_u64().unwrap() > 1_700_000_000, "{report}");
        assert_eq!(fleet.report("desk2")["health"], "up");
        assert!(fleet.operate(&["agents"]).contains("down since 20"));
        let (admin, at) = (fleet.admin(), &fleet.agents[0].address);
        let metrics = ask(admin, "/metrics").await.text();
        assert!(metrics.contains(&format!(",agent=\"{at}\",name=\"desk1\"}} 0\n")), "{metrics}");
        let kind = if death == Death::Hangs { "timeout" } else { "refused" };
        assert!(metrics.contains(&format!("name=\"desk1\",reason=\"{kind}\"}} ")), "{metrics}");
        let page = ask(admin, "/").await.text();
        assert!(page.contains(">1 up, 1 down, ") && page.contains("desk1 is down since 20"), "{page}");
        fleet.agents[0].revive().await;
        assert_eq!(fleet.becomes("/desk1/x", 200).await.text(), "desk1 /x");
        let log = fleet.proxy.log();
        assert!(log.contains("agent is down") && log.contains("agent is up again"), "{log}");
    }
}

/// What each kind of probe finds of agents that do something else, in the order of their numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_asks_for_no_more_than_it_is_told_to() {
    let silent = ScriptedAgent::plain(|_, line| async move {
        let _line = line;
        std::future::pending::<()>().await;
    })
    .await;
    let secure = ScriptedAgent::secure(|_, mut line| async move {
        let head = line.head().await;
        // By the probe it knows no desktop; any status is an answer.
        if head.is_some_and(|head| head.starts_with("GET / HTTP/1.1\r\n")) {
            line.say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let no_http = ScriptedAgent::secure(|_, mut line| async move {
        line.head().await;
        line.say("SSH-2.0-x\r\n\r\n").await;
    })
    .await;
    let agents = [("silent", silent), ("secure", secure), ("nohttp", no_http)];
    let entry = |(name, agent): &(&str, ScriptedAgent)| {
        let port = agent.address.port();
        format!("[[agent]]\nname = \"{name}\"\naddress = \"127.0.0.1\"\nport = {port}\n")
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("agents.toml"), agents.iter().map(entry).collect::<String>()).unwrap();
    let file = format!("--agents-file={}", folder.path().join("agents.toml").display());
    let control = format!("--control={}", folder.path().join("control").display());
    let ports =
        agents.iter().map(|(_, agent)| agent.address.port().to_string()).collect::<Vec<_>>().join(",");
    let ports = format!("--agent-ports={ports}");
    for (probe, found) in [
        ("tcp", ["up", "up", "up"]),
        ("tls", ["down", "up", "up"]),
        ("http", ["down", "up", "down"]),
        ("off", ["unknown"; 3]),
    ] {
        let probe = format!("--probe={probe}");
        let fixed = ["--listen-plain=127.0.0.1:0", "--agents=127.0.0.1/32", &*file, &*control, &*ports];
        let proxy =
            Proxy::start(&[&fixed[..], &[&*probe, "--probe-timeout=1s", "--probe-jitter=0s"]].concat());
        let fleet = Fleet { proxy, agents: Vec::new(), folder: tempfile::tempdir().unwrap() };
        let health = || {
            let words = ["agents", "--json", "--control"];
            let output =
                Command::new(proxy::binary()).args(words).arg(folder.path().join("control")).output();
            let all: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
            all["agent"].as_array().unwrap().iter().map(|agent| agent["health"].clone()).collect::<Vec<_>>()
        };
        eventually("each is found as it is", || (health() == found).then_some(()));
        drop(fleet);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_probes_each_request_finds_out_for_itself() {
    let mut fleet = Fleet::new(82, 1, &[]).await;
    fleet.agents[0].die(Death::Refuses).await;
    for _ in 0..8 {
        assert_eq!(fleet.ask("/desk1/x").await.status, 502);
    }
    assert_eq!(fleet.report("desk1")["health"], "unknown");
    fleet.agents[0].revive().await;
    assert_eq!(fleet.ask("/desk1/x").await.status, 200);
    assert!(!fleet.proxy.log().contains("network helper"), "{}", fleet.proxy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_has_the_agent_probed_at_once() {
    let flags = ["--probe=tcp", "--probe-interval=1h", "--probe-jitter=0s", "--probe-fall=2"];
    let mut fleet = Fleet::new(83, 1, &flags).await;
    fleet.probed();
    fleet.agents[0].die(Death::Refuses).await;
    // The next probe is an hour away. Of those that wait for nothing more than this, all but the first ones are spared.
    assert_eq!(fleet.ask("/desk1/x").await.status, 502);
    fleet.becomes("/desk1/x", 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_name_is_followed_from_its_first_failure_until_it_is_up() {
    let mut fleet = Fleet::new(84, 1, &FAST).await;
    let port = fleet.agents[0].address.port();
    let address = SocketAddr::from(([127, 84, 0, 9], port));
    let mut unnamed = StandIn::start("unnamed", address).await;
    assert_eq!(fleet.ask("/127.84.0.9/x").await.text(), "unnamed /x");
    unnamed.die(Death::Refuses).await;
    let answer = fleet.becomes("/127.84.0.9/x", 503).await;
    assert!(answer.text().starts_with("The desktop at 127.84.0.9 is down since"), "{}", answer.text());
    assert!(fleet.operate(&["agents"]).contains("127.84.0.9"));
    unnamed.revive().await;
    assert_eq!(fleet.becomes("/127.84.0.9/x", 200).await.text(), "unnamed /x");
    assert!(!fleet.operate(&["agents"]).contains("127.84.0.9"));
    fleet.agents.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_a_wrong_certificate_is_no_dead_one() {
    let agent = ScriptedAgent::secure(|_, mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let pin = format!("--agent-pin=sha256:{}", "00".repeat(32));
    let port = format!("--agent-port={}", agent.address.port());
    let flags = ["--listen-plain=127.0.0.1:0", "--agents=127.0.0.1/32", "--default-agent=127.0.0.1", &*port];
    let verified = ["--agent-tls=verify", &*pin, "--probe-fall=1"];
    let proxy = Proxy::start(&[&flags[..], &FAST, &verified].concat());
    let before = agent.accepted();
    for _ in 0..8 {
        assert_eq!(ask(proxy.address(), "/x").await.status, 502);
    }
    eventually("it is probed meanwhile", || (agent.accepted() > before + 10).then_some(()));
    let answer = ask(proxy.address(), "/x").await;
    assert_eq!((answer.status, answer.text().contains("certificate")), (502, true), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_probes_have_found_is_forgotten_when_they_are_switched_off() {
    let config = tempfile::tempdir().unwrap();
    let path = config.path().join("c.toml");
    fs::write(&path, "probe = \"tcp\"\nprobe-interval = \"200ms\"\n").unwrap();
    let flag = format!("--config={}", path.display());
    let mut fleet = Fleet::new(85, 2, &[&*flag]).await;
    fleet.agents[0].die(Death::Refuses).await;
    fleet.becomes("/desk1/x", 503).await;
    // Other rules: all is found out anew.
    fs::write(&path, "probe = \"http\"\nprobe-interval = \"200ms\"\n").unwrap();
    fleet.operate(&["reload"]);
    assert_eq!(fleet.becomes("/desk1/x", 503).await.status, 503);
    // An agent that is no longer listed is no longer probed.
    fs::write(fleet.folder.path().join("agents.toml"), fleet.agents[1].entry("")).unwrap();
    fleet.operate(&["reload"]);
    let answer = fleet.becomes("/127.85.0.1/x", 502).await;
    assert!(answer.text().contains("nobody listens"), "{}", answer.text());
    fs::write(&path, "").unwrap();
    fleet.operate(&["reload"]);
    assert_eq!(fleet.report("desk2")["health"], "unknown");
    assert_eq!(fleet.ask("/127.85.0.1/x").await.status, 502);
}

/// The processes that a process has started.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap().split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// The network helper of a proxy: it is the helper's child.
fn network_helper(proxy: &Proxy) -> u32 {
    eventually("a network helper", || {
        let mut all = children(proxy.pid()).into_iter().flat_map(children);
        all.find(|child| {
            let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"network-helper")
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_helper_is_confined_and_is_started_again_when_it_ends() {
    let mut fleet = Fleet::new(86, 1, &FAST).await;
    fleet.agents[0].die(Death::Refuses).await;
    fleet.becomes("/desk1/x", 503).await;
    let pid = network_helper(&fleet.proxy);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    // It knows nothing of the configuration, and nothing but its sockets is open.
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(
        words.ends_with("\0network-helper\0") && fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty()
    );
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let Ok(target) = fs::read_link(descriptor.unwrap().path()) else { continue };
        let target = target.display().to_string();
        let is_known =
            ["socket:", "anon_inode:", "pipe:", "/dev/null"].iter().any(|it| target.starts_with(it));
        assert!(is_known, "{target}");
    }
    let kill = |pid: u32| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    };
    kill(pid);
    // Nobody is shut out for want of it.
    assert_eq!(fleet.becomes("/desk1/x", 502).await.status, 502);
    assert_ne!(network_helper(&fleet.proxy), pid);
    fleet.becomes("/desk1/x", 503).await;
    // With the proxy it goes too.
    let pid = network_helper(&fleet.proxy);
    fleet.proxy.terminate();
    eventually("it ends", || (!fs::exists(format!("/proc/{pid}/fd/0")).unwrap()).then_some(()));
}

/// Of one request: when it began, what became of it, and how long that took.
struct Seen {
    begun: Instant,
    status: u16,
    took: Duration,
    text: String,
}

/// What users have seen of each agent, by its number.
type AllSeen = Arc<Mutex<HashMap<usize, Vec<Seen>>>>;

/// Asks for agents at random, one after the other.
async fn use_agents(proxy: SocketAddr, agents: usize, end: Instant, seen: AllSeen) {
    while Instant::now() < end {
        let number = fastrand::usize(1..=agents);
        let begun = Instant::now();
        let answer = ask(proxy, &format!("/desk{number}/x")).await;
        let (status, took, text) = (answer.status, begun.elapsed(), answer.text());
        seen.lock().unwrap().entry(number).or_default().push(Seen { begun, status, took, text });
    }
}

/// Uses a desktop all the time; how often.
async fn use_desktop(proxy: SocketAddr, number: usize, end: Instant) -> usize {
    let mut session = session(proxy, &format!("/desk{number}/ws")).await;
    let mut count = 0;
    while Instant::now() < end {
        let text = format!("{number} {count}");
        session.say(&text).await;
        assert_eq!(soon(session.bytes(text.len())).await, text.as_bytes(), "desk{number}");
        count += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

/// When agents were dead, by their number: from, until.
type Deaths = Vec<(usize, Instant, Instant)>;

/// Has agents of these numbers die and come back at random; all live at the end.
async fn kill_and_revive(agents: &mut [StandIn], numbers: Range<usize>, end: Instant) -> Deaths {
    const DEAD_MAX: usize = 40;
    /// How long one stays dead at the least: the second in which it was found out is told, and has to be another one.
    const DEAD_MIN: Duration = Duration::from_secs(3);
    let mut deaths = Vec::new();
    let mut dead: Vec<(usize, Instant)> = Vec::new();
    loop {
        let is_over = Instant::now() >= end;
        if !is_over && dead.len() < DEAD_MAX && fastrand::bool() {
            let number = fastrand::usize(numbers.clone());
            if dead.iter().all(|(other, _)| *other != number) {
                let death = if fastrand::bool() { Death::Refuses } else { Death::Hangs };
                agents[number - 1].die(death).await;
                dead.push((number, Instant::now()));
            }
        } else if let Some(place) = dead.iter().position(|(_, since)| is_over || since.elapsed() >= DEAD_MIN)
        {
            let (number, since) = dead.swap_remove(place);
            deaths.push((number, since, Instant::now()));
            agents[number - 1].revive().await;
        } else if is_over {
            return deaths;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Since when an agent is down, as a user is told: a second of the day.
fn down_since(text: &str) -> Option<u64> {
    let time = text.split("is down since ").nth(1)?.split('T').nth(1)?.split('Z').next()?;
    time.split(':').map(|part| part.parse::<u64>().ok()).try_fold(0, |all, part| Some(60 * all + part?))
}

fn second_of_day(at: Instant) -> u64 {
    let at = SystemTime::now() - at.elapsed();
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 86_400
}

/// From the first user on who was told at once that an agent is down, all are, until it is revived. How many, and the slowest.
fn told_at_once(deaths: &Deaths, seen: &HashMap<usize, Vec<Seen>>) -> (usize, Duration) {
    let (mut at_once, mut slowest) = (0, Duration::ZERO);
    for (number, from, until) in deaths {
        let during = seen.get(number).into_iter().flatten();
        let mut during: Vec<_> =
            during.filter(|it| it.begun >= *from && it.begun + it.took < *until).collect();
        during.sort_by_key(|it| it.begun);
        // What was found out of a death before this one may be taken back.
        let is_found = |it: &&&Seen| down_since(&it.text).is_some_and(|since| since > second_of_day(*from));
        let Some(first) = during.iter().find(is_found) else { continue };
        let told = first.begun + first.took;
        for it in during.iter().filter(|it| it.begun > told) {
            assert_eq!(it.status, 503, "desk{number}: {}", it.text);
            at_once += 1;
            slowest = slowest.max(it.took);
        }
    }
    (at_once, slowest)
}

/// 200 agents under load, of which some die and come back all the time.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_fleet_whose_agents_die_and_come_back_nobody_else_notices() {
    const AGENTS: usize = 200;
    /// They never die: sessions are open there.
    const STEADY: usize = 10;
    /// It is drained at the start, and gets nobody.
    const DRAINED: usize = 11;
    const TIME: Duration = Duration::from_secs(10);
    let flags = ["--probe-timeout=1s", "--probe-fall=2", "--response-timeout=1s", "--client-rate=1000000"];
    let mut fleet = Fleet::new(87, u8::try_from(AGENTS).unwrap(), &[&FAST[..3], &flags[..]].concat()).await;
    fleet.probed();
    fleet.operate(&["drain", &format!("desk{DRAINED}")]);
    let proxy = fleet.proxy.address();
    let end = Instant::now() + TIME;
    let seen = AllSeen::default();
    let users = (0..24).map(|_| tokio::spawn(use_agents(proxy, AGENTS, end, seen.clone())));
    let users: Vec<_> = users.collect();
    let desktops = (1..=STEADY).map(|number| tokio::spawn(use_desktop(proxy, number, end)));
    let desktops: Vec<_> = desktops.collect();
    let deaths = kill_and_revive(&mut fleet.agents, DRAINED + 1..AGENTS + 1, end).await;
    for user in users {
        user.await.unwrap();
    }
    for desktop in desktops {
        assert!(desktop.await.unwrap() > 10);
    }
    assert_eq!(fleet.agents[DRAINED - 1].served(), 0);
    {
        let seen = seen.lock().unwrap();
        let (at_once, slowest) = told_at_once(&deaths, &seen);
        eprintln!("{} deaths, {at_once} users told at once, the slowest in {slowest:?}", deaths.len());
        assert!(at_once > 5, "{at_once}");
        // To connect to one that hangs, or to wait for its answer, takes longer on the most idle machine.
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        let steady = (1..=STEADY).flat_map(|number| seen.get(&number).into_iter().flatten());
        let failed: Vec<_> = steady.filter(|it| it.status != 200).map(|it| &it.text).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
    for number in 1..=AGENTS {
        fleet.becomes(&format!("/desk{number}/x"), if number == DRAINED { 503 } else { 200 }).await;
    }
}
