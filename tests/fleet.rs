//! Agents by name: an operator's directory of them, and what becomes of users when one is taken out of service.
//! Each agent stands at a port of its own, as all of them are on this host.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use harness::ports::unused_port;
use harness::process::{Process, eventually};
use harness::proxy;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{Answer, End, RawClient, soon};
use harness::scripted_agent::ScriptedAgent;
use harness::websocket::accepted;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// An agent that says its name and the path that it sees, and echoes in sessions.
async fn agent(name: &'static str) -> ScriptedAgent {
    ScriptedAgent::plain(move |_, mut line| async move {
        while let Some(head) = line.head().await {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if head.contains("Upgrade: websocket") {
                line.say(accepted(&head, "")).await;
                loop {
                    let bytes = line.some_bytes().await;
                    if bytes.is_empty() || !line.try_say(bytes).await {
                        return;
                    }
                }
            }
            let text = format!("{name} {path}");
            let length = text.len();
            let cookie = "Set-Cookie: a=b; Path=/\r\nLocation: /login";
            line.say(format!("HTTP/1.1 200 OK\r\n{cookie}\r\nContent-Length: {length}\r\n\r\n{text}")).await;
        }
    })
    .await
}

/// A proxy in front of two agents with names.
struct Fleet {
    front: ProxyUnderTest,
    agents: [(&'static str, ScriptedAgent); 2],
    folder: TempDir,
}

impl Fleet {
    async fn new(flags: &[&str]) -> Self {
        let agents = [("alpha", agent("alpha").await), ("beta", agent("beta").await)];
        let folder = tempfile::tempdir().unwrap();
        let ports = format!("--agent-ports={},1", agents[1].1.address.port());
        let file = format!("--agents-file={}", folder.path().join("agents.toml").display());
        fs::write(folder.path().join("agents.toml"), directory(&agents, ["active"; 2])).unwrap();
        let fixed = ["--agent-tls=off", &*ports, &*file];
        let front = ProxyUnderTest::start(agents[0].1.address, &[&fixed[..], flags].concat()).await;
        Self { front, agents, folder }
    }

    fn write(&self, text: &str) {
        let fresh = self.folder.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("agents.toml")
    }

    fn set(&self, states: [&str; 2]) {
        self.write(&directory(&self.agents, states));
    }

    /// Asks from an address of this host.
    async fn ask_from(&self, client: &str, path: &str, host: &str) -> Answer {
        let mut client = self.client(client).await;
        client.say(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        client.answer().await.unwrap()
    }

    async fn ask(&self, path: &str) -> Answer {
        self.ask_from("127.0.0.1", path, "proxy").await
    }

    async fn client(&self, address: &str) -> RawClient {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        // The next process listens there too.
        let to = *self.front.proxy.addresses().last().unwrap();
        RawClient::new(socket.connect(to).await.unwrap())
    }

    /// Opens a session, or is told why not.
    async fn session(&self, client: &str, path: &str) -> Result<RawClient, u16> {
        self.session_with(client, path, "").await
    }

    /// The same with further lines in the head.
    async fn session_with(&self, client: &str, path: &str, lines: &str) -> Result<RawClient, u16> {
        let mut client = self.client(client).await;
        client
            .say(format!(
                "GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
            ))
            .await;
        let head = client.head().await.unwrap();
        match head.split(' ').nth(1).unwrap().parse().unwrap() {
            101 => Ok(client),
            status => Err(status),
        }
    }

    /// Waits until somebody at `client` is answered so.
    async fn becomes(&self, client: &str, path: &str, status: u16) -> Answer {
        for _ in 0..600 {
            let answer = self.ask_from(client, path, "proxy").await;
            if answer.status == status {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{path} is never answered with {status}:\n{}", self.front.proxy.log());
    }
}

fn directory(agents: &[(&str, ScriptedAgent)], states: [&str; 2]) -> String {
    let entry = |((name, agent), state): (&(&str, ScriptedAgent), &str)| {
        let (ip, port) = (agent.address.ip(), agent.address.port());
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{ip}\"\nport = {port}\nstate = \"{state}\"\n")
    };
    agents.iter().zip(states).map(entry).collect()
}

async fn echoes(session: &mut RawClient, text: &str) {
    session.say(text).await;
    assert_eq!(soon(session.bytes(text.len())).await, text.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_reached_by_its_name_in_the_path_and_in_the_host() {
    let fleet = Fleet::new(&["--agent-domain=desks.test"]).await;
    for name in ["alpha", "beta"] {
        let answer = fleet.ask(&format!("/{name}/a%2Fb?x=1")).await;
        assert_eq!((answer.status, answer.text()), (200, format!("{name} /a%2Fb?x=1")));
        assert_eq!(answer.header("location"), Some(&*format!("/{name}/login")));
        assert_eq!(answer.header("set-cookie"), Some(&*format!("a=b; Path=/{name}/")));
        let host = format!("{name}.Desks.test:8443");
        let answer = fleet.ask_from("127.0.0.1", "/a", &host).await;
        assert_eq!((answer.status, answer.text()), (200, format!("{name} /a")));
        assert_eq!(answer.header("location"), Some("/login"));
        let moved = fleet.ask(&format!("/{name}?x=1")).await;
        assert_eq!((moved.status, moved.header("location")), (308, Some(&*format!("/{name}/?x=1"))));
        let mut session = fleet.session("127.0.0.1", &format!("/{name}/ws")).await.unwrap();
        echoes(&mut session, name).await;
    }
    // One without a name of its own is the one with the usual port.
    assert_eq!(fleet.ask("/127.0.0.1/x").await.text(), "alpha /x");
    for (path, host) in [("/gamma/", "proxy"), ("/Alpha/", "proxy"), ("/", "gamma.desks.test")] {
        let answer = fleet.ask_from("127.0.0.1", path, host).await;
        assert_eq!(answer.status, 404, "{path} {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_agent_keeps_its_users_and_takes_no_others() {
    let fleet = Fleet::new(&[]).await;
    let mut session = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    let mut at_beta = fleet.session("127.0.0.9", "/beta/ws").await.unwrap();
    fleet.set(["drain", "active"]);
    let refused = fleet.becomes("127.0.0.9", "/alpha/", 503).await;
    assert!(refused.text().contains("alpha takes no new users"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("60"));
    // By its address it is the same agent, and one desktop's user is no other's.
    assert_eq!(fleet.ask_from("127.0.0.9", "/127.0.0.1/", "proxy").await.status, 503);
    assert_eq!(fleet.session("127.0.0.9", "/alpha/ws").await.err(), Some(503));
    assert_eq!(fleet.ask("/alpha/x").await.text(), "alpha /x");
    // A channel that reconnects finds its desktop.
    let mut channel = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    drop(session);
    echoes(&mut channel, "still here").await;
    session = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    drop((session, channel));
    let refused = fleet.becomes("127.0.0.1", "/alpha/", 503).await;
    assert!(refused.text().contains("alpha"), "{}", refused.text());
    // It comes back, and nobody else has noticed.
    fleet.set(["active", "active"]);
    assert_eq!(fleet.becomes("127.0.0.9", "/alpha/", 200).await.text(), "alpha /");
    echoes(&mut at_beta, "nothing has happened here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_off_takes_nobody_and_its_sessions_go_on() {
    let fleet = Fleet::new(&[]).await;
    let mut session = fleet.session("127.0.0.1", "/beta/ws").await.unwrap();
    fleet.set(["active", "off"]);
    let refused = fleet.becomes("127.0.0.1", "/beta/", 503).await;
    assert!(refused.text().contains("beta is out of service"), "{}", refused.text());
    assert_eq!(fleet.session("127.0.0.1", "/beta/ws").await.err(), Some(503));
    echoes(&mut session, "still here").await;
    assert_eq!(fleet.ask("/alpha/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_an_error_changes_nothing_and_says_where_it_is() {
    let fleet = Fleet::new(&[]).await;
    let good = fs::read_to_string(fleet.file()).unwrap();
    fleet.write(&format!("{good}[[agent]]\nname = \"gamma\"\naddress = \"10.0.0.300\"\n"));
    let place = format!("{}:13:11: ", fleet.file().display());
    eventually("the error is in the log", || {
        let log = fleet.front.proxy.log();
        log.lines().any(|line| line.contains(&place) && line.contains("no IP address")).then_some(())
    });
    assert_eq!(fleet.ask("/beta/x").await.text(), "beta /x");
    assert_eq!(fleet.ask("/gamma/x").await.status, 404);
    fleet.write(&good.replace("beta", "gamma"));
    assert_eq!(fleet.becomes("127.0.0.1", "/gamma/x", 200).await.text(), "beta /x");
    assert_eq!(fleet.ask("/beta/x").await.status, 404);
}

/// Runs the proxy to its end, which comes at once.
fn refused(text: &str, name: &str, flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, text).unwrap();
    let file = format!("--agents-file={}", file.display());
    let mut process =
        Process::start(proxy::command(&[&["check", "--agents=10.0.0.0/8", &*file], flags].concat()));
    assert_eq!(process.wait().code(), Some(2));
    process.log().replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_directory_that_cannot_be_meant_is_refused_at_the_start() {
    let agent = |more: &str| format!("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\n{more}");
    for (text, name, flags, wanted) in [
        (
            agent("port = 8444"),
            "agents.toml",
            &[][..],
            "agents.toml:4:8: port 8444 is not one of --agent-ports",
        ),
        (agent("state = \"gone\""), "agents.toml", &[], "agents.toml:4:9: \"gone\" is no state"),
        (agent(""), "agents.yaml", &[], "agents.yaml has to end with .toml or .json"),
        ("{\n \"agent\": [{\"name\": 1}]}".to_owned(), "a.json", &[], "a.json:2:21: name takes a text"),
        (agent(""), "agents.toml", &["--agent-ports=1,2,3,4,5,6,7,8"], "more than 8 ports"),
    ] {
        let log = refused(&text, name, flags);
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    let folder = tempfile::tempdir().unwrap();
    let absent = format!("--agents-file={}/absent.toml", folder.path().display());
    let mut process = Process::start(proxy::command(&["check", &*absent]));
    assert_eq!(process.wait().code(), Some(2));
    assert!(process.log().contains("absent.toml: No such file"), "{}", process.log());
}

/// What a command of an operator prints.
fn said(words: &[&str]) -> String {
    let mut command = Command::new(proxy::binary());
    command.args(words);
    let mut process = Process::start(command);
    assert!(process.wait().success(), "{words:?}: {}", process.log());
    process.output()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_agents_and_who_is_on_them() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let fleet = Fleet::new(&[&control]).await;
    let [alpha, beta] = fleet.agents.each_ref().map(|(_, agent)| agent.address.to_string());
    let one = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    let _two = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    let _three = fleet.session("127.0.0.9", "/127.0.0.1/ws").await.unwrap();
    fleet.set(["active", "drain"]);
    fleet.becomes("127.0.0.1", "/beta/", 503).await;
    let agents = said(&["agents", &control, "--json"]);
    let agents: serde_json::Value = serde_json::from_str(&agents).unwrap();
    let seen = |index: usize| {
        let agent = &agents["agent"][index];
        let text = |key: &str| agent[key].as_str().unwrap().to_owned();
        let counts = (agent["sessions"].as_u64().unwrap(), agent["desktops"].as_u64().unwrap());
        (text("name"), text("address"), text("state"), counts)
    };
    assert_eq!(seen(0), ("alpha".into(), alpha.clone(), "active".into(), (3, 2)));
    assert_eq!(seen(1), ("beta".into(), beta, "drain".into(), (0, 0)));
    assert!(agents["agent"][2].is_null());
    let clients = |more: &[&str]| {
        let sessions = said(&[&["sessions", &control, "--json"], more].concat());
        let sessions: Vec<serde_json::Value> = serde_json::from_str(&sessions).unwrap();
        for session in &sessions {
            assert_eq!((&session["name"], &session["agent"]), (&"alpha".into(), &(*alpha).into()));
        }
        sessions.iter().map(|session| session["client"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(clients(&[]), ["127.0.0.1", "127.0.0.1", "127.0.0.9"]);
    assert_eq!(clients(&["--client=127.0.0.9"]), ["127.0.0.9"]);
    assert_eq!(clients(&["--agent=alpha"]).len(), 3);
    assert!(clients(&["--agent=beta"]).is_empty() && clients(&["--user=ann"]).is_empty());
    drop(one);
    eventually("the session that ended is gone", || (clients(&[]).len() == 2).then_some(()));
    let table = said(&["agents", &control]);
    assert!(table.starts_with("name   address"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    let table = said(&["sessions", &control]);
    assert!(table.starts_with("id ") && table.lines().count() == 3, "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_sets_holds_until_a_later_word() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let state_file = folder.path().join("states.json");
    let remembers = format!("--state-file={}", state_file.display());
    let port = unused_port();
    let listens = format!("--listen-plain=127.0.0.1:{port}");
    let fleet = Fleet::new(&[&control, &remembers, &listens]).await;
    let mut session = fleet.session("127.0.0.1", "/beta/ws").await.unwrap();
    let mut kept = fleet.client("127.0.0.9").await;
    let ask = "GET /beta/ HTTP/1.1\r\nHost: proxy\r\n\r\n";
    kept.say(ask).await;
    assert_eq!(kept.answer().await.unwrap().status, 200);
    assert_eq!(said(&["drain", "beta", &control]), "agent state set and saved\n");
    // It holds at once, for connections that are there too, which nobody closes for it.
    kept.say(ask).await;
    let refused = kept.answer().await.unwrap();
    assert_eq!((refused.status, refused.header("connection")), (503, Some("keep-alive")));
    assert_eq!(fleet.ask("/beta/x").await.text(), "beta /x");
    // A file that says nothing new of the agent does not undo it, nor does a reload.
    fleet.set(["drain", "active"]);
    fleet.becomes("127.0.0.9", "/alpha/", 503).await;
    said(&["reload", &control]);
    assert_eq!(fleet.ask_from("127.0.0.9", "/beta/", "proxy").await.status, 503);
    // The next process knows, and who is on the agent in the one that drains.
    assert_eq!(said(&["upgrade", &control]), "upgraded, the new process serves\n");
    assert_eq!(fleet.ask_from("127.0.0.9", "/beta/", "proxy").await.status, 503);
    assert_eq!(fleet.ask("/beta/x").await.text(), "beta /x");
    echoes(&mut session, "still here").await;
    drop(session);
    fleet.becomes("127.0.0.1", "/beta/", 503).await;
    let remembered = fs::read_to_string(&state_file).unwrap();
    assert!(remembered.contains("\"beta\"") && remembered.contains("\"drain\""), "{remembered}");
    said(&["undrain", "beta", &control]);
    assert_eq!(fleet.ask_from("127.0.0.9", "/beta/", "proxy").await.status, 200);
    assert!(fs::read_to_string(&state_file).unwrap().contains("\"state\": \"active\""));
    // What the file undoes does not come back with the next start.
    fleet.set(["active", "off"]);
    fleet.becomes("127.0.0.1", "/beta/", 503).await;
    eventually("the command's word is forgotten", || {
        (fs::read_to_string(&state_file).unwrap().trim() == "{}").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_holds_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let remembers = format!("--state-file={}", folder.path().join("states.json").display());
    fs::write(folder.path().join("states.json"), r#"{"beta": {"state": "off", "file": "active"}}"#).unwrap();
    let fleet = Fleet::new(&[&control, &remembers]).await;
    assert_eq!(fleet.ask("/beta/").await.status, 503);
    assert_eq!(fleet.ask("/alpha/").await.status, 200);
    for (words, wanted) in [
        (["drain", "gamma"], "no agent of --agents-file is gamma"),
        (["off", "10.0.0.9"], "no agent of --agents-file is 10.0.0.9"),
        (["drain", "127.0.0.1"], "is the address of alpha and beta: give a name"),
    ] {
        let mut command = Command::new(proxy::binary());
        command.args(words).arg(&control);
        let mut process = Process::start(command);
        assert_eq!(process.wait().code(), Some(1));
        assert!(process.log().contains(wanted), "{}", process.log());
    }
}

/// Waits for the end of a session, which comes in order.
async fn ends(mut session: RawClient) {
    assert_eq!(soon(session.rest()).await, (Vec::new(), End::Clean));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_the_sessions_that_are_named_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let port = unused_port();
    let listens = format!("--listen-plain=127.0.0.1:{port}");
    let fleet = Fleet::new(&[&control, &listens, "--workers=2"]).await;
    let mut sessions = Vec::new();
    for (client, path) in [("127.0.0.1", "/alpha/a"), ("127.0.0.9", "/alpha/b"), ("127.0.0.9", "/beta/c")] {
        sessions.push(fleet.session(client, path).await.unwrap());
    }
    let mut sessions = sessions.into_iter();
    let (one, two, mut three) =
        (sessions.next().unwrap(), sessions.next().unwrap(), sessions.next().unwrap());
    assert_eq!(said(&["end", &control, "--agent=gamma"]), "sessions ended: 0\n");
    assert_eq!(said(&["end", &control, "--agent=alpha", "--client=127.0.0.9"]), "sessions ended: 1\n");
    ends(two).await;
    fleet.front.access_line("/alpha/b HTTP/1.1\" 101 ");
    assert!(fleet.front.access_line("/alpha/b").contains("end_reason=ended-by-operator"));
    echoes(&mut three, "still here").await;
    let listed: serde_json::Value = serde_json::from_str(&said(&["sessions", &control, "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    // Also in a process that drains.
    said(&["upgrade", &control]);
    let mut four = fleet.session("127.0.0.1", "/beta/d").await.unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!(said(&["end", &control, "--id", id]), "sessions ended: 1\n");
    ends(one).await;
    echoes(&mut three, "still here").await;
    echoes(&mut four, "still here").await;
    assert_eq!(said(&["end", &control, "--agent=beta"]), "sessions ended: 2\n");
    ends(three).await;
    ends(four).await;
    let mut command = Command::new(proxy::binary());
    command.args(["end", &control]);
    let mut process = Process::start(command);
    assert_eq!(process.wait().code(), Some(2));
    assert!(process.log().contains("required arguments"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_removed_loses_the_sessions_and_no_other_user_does() {
    let folder = tempfile::tempdir().unwrap();
    let line = |name: &str| format!("{name}:{}\n", bcrypt::hash("one", 4).unwrap());
    let (ann, bob, users) = (line("ann"), line("bob"), folder.path().join("users"));
    fs::write(&users, format!("{ann}{bob}")).unwrap();
    let fleet = Fleet::new(&[&format!("--htpasswd={}", users.display()), "--end-revoked=on"]).await;
    let open = async |shown: &str| {
        let shown = format!("Authorization: Basic {shown}\r\n");
        fleet.session_with("127.0.0.1", &format!("/alpha/{}", shown.len()), &shown).await.unwrap()
    };
    let (of_ann, mut of_bob) = (open("YW5uOm9uZQ==").await, open("Ym9iOm9uZQ==").await);
    let fresh = folder.path().join("fresh");
    fs::write(&fresh, bob).unwrap();
    fs::rename(fresh, users).unwrap();
    ends(of_ann).await;
    assert!(fleet.front.access_line(" ann ").contains("end_reason=revoked"));
    echoes(&mut of_bob, "still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lasts_no_longer_than_it_may() {
    let fleet = Fleet::new(&["--session-max=2s"]).await;
    let mut session = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    echoes(&mut session, "here").await;
    ends(session).await;
    assert!(fleet.front.access_line("/alpha/ws").contains("end_reason=max-duration"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_come_no_more_is_ended_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let config = folder.path().join("dcv-splice.toml");
    let write = |denied: &str| {
        fs::write(&config, format!("end-revoked = \"on\"\ndeny-clients = [{denied}]\n")).unwrap();
    };
    write("");
    let from = format!("--config={}", config.display());
    let fleet = Fleet::new(&[&control, &from]).await;
    let mut session = fleet.session("127.0.0.1", "/alpha/ws").await.unwrap();
    let denied = fleet.session("127.0.0.9", "/alpha/other").await.unwrap();
    write("\"127.0.0.9/32\"");
    assert_eq!(said(&["reload", &control]), "reloaded\n");
    ends(denied).await;
    assert!(fleet.front.access_line("/alpha/other").contains("end_reason=revoked"));
    echoes(&mut session, "still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_drains_tells_balancers_and_serves_who_comes() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("--control={}", folder.path().join("control").display());
    let fleet = Fleet::new(&[&control, "--admin=127.0.0.1:0"]).await;
    let log = fleet.front.proxy.log();
    let admin = log.split("admin page at http://").nth(1).unwrap().split('/').next().unwrap();
    let admin: SocketAddr = admin.parse().unwrap();
    let ready = async || {
        let mut client = RawClient::plain(admin).await;
        client.say("GET /health?ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        (fleet.ask("/health?ready").await.status, client.answer().await.unwrap().status)
    };
    assert_eq!(ready().await, (200, 200));
    assert_eq!(said(&["drain", "--proxy", &control]), "the proxy drains: /health?ready is 503\n");
    assert_eq!(ready().await, (503, 503));
    assert_eq!(fleet.ask("/health").await.status, 200);
    let mut session = fleet.session("127.0.0.9", "/alpha/ws").await.unwrap();
    echoes(&mut session, "served").await;
    said(&["undrain", "--proxy", &control]);
    assert_eq!(ready().await, (200, 200));
    // The session keeps it from ending at once.
    fleet.front.proxy.signal(Signal::SIGTERM);
    eventually("it accepts no more", || {
        std::net::TcpStream::connect(fleet.front.plain()).is_err().then_some(())
    });
    let mut client = RawClient::plain(admin).await;
    client.say("GET /health?ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_agent_can_have_a_rule_of_its_own_for_tls() {
    let secure = async || {
        ScriptedAgent::secure(|_, mut line| async move {
            while line.head().await.is_some() {
                line.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecure").await;
            }
        })
        .await
    };
    let (plain, pinned, other, any) = (agent("plain").await, secure().await, secure().await, secure().await);
    let pin = said(&["pin", &pinned.address.to_string()]);
    let pin = pin.trim();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agents.json");
    let entry = |name: &str, agent: &ScriptedAgent, tls: &str| {
        let port = agent.address.port();
        format!("{{\"name\": \"{name}\", \"address\": \"127.0.0.1\", \"port\": {port}{tls}}}")
    };
    let entries = [
        entry("plain", &plain, ", \"tls\": \"off\""),
        entry("pinned", &pinned, &format!(", \"tls\": {{\"pin\": [\"{pin}\"]}}")),
        entry("other", &other, &format!(", \"tls\": {{\"pin\": \"{pin}\"}}")),
        entry("any", &any, ""),
    ];
    fs::write(&file, format!("{{\"agent\": [{}]}}", entries.join(", "))).unwrap();
    let ports = [&pinned, &other, &any].map(|agent| agent.address.port().to_string()).join(",");
    let flags = [format!("--agents-file={}", file.display()), format!("--agent-ports={ports}")];
    let front = ProxyUnderTest::start(plain.address, &flags.each_ref().map(|flag| &**flag)).await;
    for (name, status) in [("plain", 200), ("pinned", 200), ("other", 502), ("any", 200)] {
        let mut client = RawClient::plain(front.plain()).await;
        client.say(format!("GET /{name}/ HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")).await;
        let answer = client.answer().await.unwrap();
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
    }
    // A certificate that can't be read is told at the start, with the agent that it is of.
    let text = "[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = { ca = \"/nowhere.pem\" }";
    let log = refused(text, "agents.toml", &[]);
    assert!(log.contains("agent a: ") && log.contains("/nowhere.pem"), "{log}");
}
