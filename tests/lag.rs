//! Where a desktop's time goes: a delay at each of the four places is told of that place, and of no other.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::{Duration, Instant};

use harness::channel::{Channel, EchoAgent};
use harness::delayed_link::DelayedLink;
use harness::network::runs_in_a_network_of_its_own;
use harness::process::eventually;
use harness::proxy::{self, Proxy};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The delay of a place: far more than a busy machine adds to the others in the mean.
const DELAY: Duration = Duration::from_millis(120);
/// Half of it tells the place that has it from those that have not.
const MUCH_US: u64 = 60_000;

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

/// For the documents: what people are shown, where a folder is named for it.
fn keep(control: &str, what: &str) {
    let Ok(folder) = std::env::var("DCV_SPLICE_SCREENS") else { return };
    let output = Command::new(proxy::binary()).args(["sessions", "--control", control]).output().unwrap();
    std::fs::write(format!("{folder}/sessions-{}.txt", what.replace(' ', "-")), output.stdout).unwrap();
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
    let agent = EchoAgent::start(to_agent.listens_at());
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
    let _channel = Channel::open((to_client.reached_at(), proxy.address().port()).into(), "/ws");
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
        keep(&control, what);
    };
    until("no delay", None);
    to_client.delay(DELAY);
    until("the client's network", Some(0));
    to_client.delay(Duration::ZERO);
    until("no delay again", None);
    interrupt(&proxy, || is_told(Some(1)));
    eprintln!("the proxy: {:?} us", session().unwrap_or_default());
    keep(&control, "the proxy");
    until("no delay after that", None);
    to_agent.delay(DELAY);
    until("the agent's network", Some(2));
    to_agent.delay(Duration::ZERO);
    until("no delay once more", None);
    agent.answers_after(DELAY);
    until("the agent", Some(3));
    agent.answers_after(Duration::ZERO);
    until("no delay at the end", None);
    eventually("the sessions' table shows it", || {
        let output =
            Command::new(proxy::binary()).args(["sessions", "--control", &control]).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        table.contains("client net + proxy + agent net + agent").then_some(())
    });
}
