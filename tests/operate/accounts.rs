//! What is counted equals what was done, to the byte, while sessions come and go and processes take over from each other.

use std::net::{IpAddr, SocketAddr};

use harness::agent::{Agent, AgentConfig};
use harness::ports::unused_address;
use harness::process::eventually;
use harness::raw_client::{RawClient, Secure};

use super::Service;
use super::metrics::{metrics, shown_with};

/// Users that do something at the same time, how often each does between two upgrades, and how often it is upgraded.
const USERS: usize = 8;
const TIMES: usize = 24;
const UPGRADES: usize = 3;
/// A frame of a client (RFC 6455 5.2), what comes back of it, and how many a session has at the most.
const ASKED: &[u8] = b"\x81\x84\0\0\0\0ping";
const ECHOED: &[u8] = b"\x81\x04ping";
const FRAMES_MAX: usize = 20;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Account {
    sessions: u64,
    requests: u64,
    to_agent: u64,
    to_client: u64,
}

impl Account {
    fn plus(self, other: Self) -> Self {
        Self {
            sessions: self.sessions + other.sessions,
            requests: self.requests + other.requests,
            to_agent: self.to_agent + other.to_agent,
            to_client: self.to_client + other.to_client,
        }
    }
}

async fn begin(proxy: SocketAddr, agent: IpAddr, path: &str, more: &str) -> RawClient<Secure> {
    let mut client = RawClient::secure(proxy).await;
    client.say(format!("GET /{agent}{path} HTTP/1.1\r\nHost: proxy\r\n{more}\r\n")).await;
    client
}

async fn session(proxy: SocketAddr, agent: IpAddr) -> RawClient<Secure> {
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut client = begin(proxy, agent, "/echo", upgrade).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    client
}

/// Sessions that echo, each as much as its number says and each with an end of another kind, and requests in between.
async fn come_and_go(proxy: SocketAddr, agent: IpAddr, user: usize) -> Account {
    let mut done = Account::default();
    for number in 0..TIMES {
        if number % 4 == 3 {
            let mut client = begin(proxy, agent, "/x", "").await;
            let answer = client.answer().await.unwrap();
            assert_eq!((answer.status, answer.whole), (200, true));
            let to_client = answer.body.len() as u64;
            done = done.plus(Account { requests: 1, to_client, ..Account::default() });
            continue;
        }
        let mut client = session(proxy, agent).await;
        let frames = 1 + (user * 31 + number * 17) % FRAMES_MAX;
        for _ in 0..frames {
            client.say(ASKED).await;
            assert_eq!(client.bytes(ECHOED.len()).await, ECHOED);
        }
        match number % 3 {
            0 => {
                client.finish().await;
                client.rest().await;
            }
            1 => client.reset(),
            _ => drop(client),
        }
        let moved = |frame: &[u8]| (frames * frame.len()) as u64;
        done =
            done.plus(Account { sessions: 1, to_agent: moved(ASKED), to_client: moved(ECHOED), requests: 0 });
    }
    done
}

/// The sum of a metric's samples, of all processes, that have this in their labels.
fn sum(text: &str, name: &str, label: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(&format!("dcv_splice_{name}{{")));
    let values = lines.filter(|line| line.contains(label)).map(|line| line.rsplit(' ').next().unwrap());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// The same by the access log, and how many sessions it has seen begin.
fn logged(lines: &[String]) -> (Account, u64) {
    let field = |line: &str, name: &str| -> u64 {
        let value = line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap();
        value.parse().unwrap()
    };
    let (begun, over): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.ends_with("end_reason=started"));
    let account = |line: &&String| {
        let is_session = line.contains("\" 101 ");
        Account {
            sessions: u64::from(is_session),
            requests: u64::from(!is_session),
            to_agent: field(line, "to_agent="),
            to_client: field(line, "to_client="),
        }
    };
    (over.iter().map(account).fold(Account::default(), Account::plus), begun.len() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn under_churn_and_upgrades_every_byte_and_session_is_counted_once() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let admin = unused_address();
    let service = Service::start(agent.address, &format!("admin = \"{admin}\"\n"));
    let (proxy, ip) = (service.files.address, agent.address.ip());
    // One session without a byte in each process: what has ended shows nothing any more.
    let mut kept = vec![session(proxy, ip).await];
    let mut done = Account::default();
    for upgrade in 0..=UPGRADES {
        let users: Vec<_> = (0..USERS).map(|user| tokio::spawn(come_and_go(proxy, ip, user))).collect();
        if upgrade < UPGRADES {
            tokio::task::block_in_place(|| service.does("upgrade"));
            kept.push(session(proxy, ip).await);
        }
        for user in users {
            done = done.plus(user.await.unwrap());
        }
    }
    let open = kept.len() as u64;
    assert_eq!(done.sessions, (USERS * TIMES * 3 / 4 * (UPGRADES + 1)) as u64);
    let mut counted = (Account::default(), 0);
    for _ in 0..600 {
        let text = metrics(admin).await;
        counted.0 = Account {
            sessions: sum(&text, "agent_sessions_opened_total", ""),
            requests: sum(&text, "agent_requests_total", "status=\"2xx\""),
            to_agent: sum(&text, "agent_body_sent_bytes_total", ""),
            to_client: sum(&text, "agent_body_received_bytes_total", ""),
        };
        counted.1 = sum(&text, "agent_sessions", "");
        if counted == (Account { sessions: done.sessions + open, ..done }, open) {
            // And none is counted later on.
            tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
            let later = metrics(admin).await;
            assert_eq!(sum(&later, "agent_body_sent_bytes_total", ""), done.to_agent);
            assert_eq!(sum(&later, "sessions_ended_total", ""), done.sessions);
            assert_eq!(sum(&later, "failures_total", ""), 0, "{later}");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(counted, (Account { sessions: done.sessions + open, ..done }, open), "what is counted");
    eventually("the access log has the same", || {
        (logged(&service.files.log_lines("access.log")) == (done, done.sessions + open)).then_some(())
    });
    for mut session in kept {
        session.finish().await;
        session.rest().await;
    }
    eventually("those that were kept have their lines too", || {
        let all = Account { sessions: done.sessions + open, ..done };
        (logged(&service.files.log_lines("access.log")).0 == all).then_some(())
    });
}

/// What a client can do before there is a request, and what the proxy says itself.
#[tokio::test(flavor = "multi_thread")]
async fn every_way_out_before_an_answer_is_counted() {
    let (_agent, service, admin) = shown_with("header-timeout = \"1s\"\n").await;
    let mut clients = Vec::new();
    for said in ["", "GET /x HT"] {
        let mut client = service.client().await;
        client.say(said).await;
        clients.push(client);
    }
    let mut leaving = service.client().await;
    leaving.say("GET /x HT").await;
    drop(leaving);
    assert_eq!(clients[1].answer().await.unwrap().status, 408);
    clients[0].rest().await;
    let mut stranger = service.client().await;
    stranger.say("GET /x HTTP/1.1\r\nHost: proxy\r\n\r\n").await;
    assert_eq!(stranger.answer().await.unwrap().status, 404);
    let wanted = [
        ("rejected_total", "reason=\"no_request\""),
        ("rejected_total", "reason=\"request_timeout\""),
        ("rejected_total", "reason=\"request_aborted\""),
        ("own_responses_total", "status=\"408\""),
        ("own_responses_total", "status=\"404\""),
    ];
    let mut text = String::new();
    for _ in 0..600 {
        text = metrics(admin).await;
        if wanted.iter().all(|(name, label)| sum(&text, name, label) == 1) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("each of {wanted:?} is due once in\n{text}");
}
