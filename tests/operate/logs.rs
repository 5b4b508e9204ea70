//! Logs that nobody reads, or that no disk takes: they cost log lines and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use harness::ports::unused_address;
use harness::process::{Process, eventually};
use harness::proxy;
use harness::raw_client::End;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use super::{Files, Service, agent, echoes};

/// A pipe that takes nothing more once it is full; it has a reader, which does not read.
struct Pipe(File);

impl Pipe {
    fn new(path: &Path) -> Self {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_NONBLOCK.bits();
        Self(File::options().read(true).write(true).custom_flags(flags).open(path).unwrap())
    }

    fn fill(&mut self) {
        for size in [4096, 1] {
            while self.0.write(&vec![b'\n'; size]).is_ok() {}
        }
    }

    /// What is in it, which makes room.
    fn take(&mut self) -> String {
        let mut bytes = vec![0; 1 << 20];
        let length = self.0.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

/// The program with its output going to the pipe at `path`.
fn command_to(files: &Files, redirection: &str, path: &Path) -> std::process::Command {
    let inner = files.command(proxy::binary());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec \"$@\" {redirection}'{}'", path.display()), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_log_that_nobody_reads_keeps_no_command_and_no_client_waiting() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    files.configure("access-log = \"stdout\"\ndrain-timeout = \"1s\"\n");
    let path = files.path("pipe");
    let mut pipe = Pipe::new(&path);
    let command = command_to(&files, ">", &path);
    let mut service = Service::start_by(files, command);
    let mut session = service.session("/echo").await;
    pipe.fill();
    for _ in 0..100 {
        assert_eq!(service.ask("/x").await.status, 200);
    }
    // To the same pipe, and to a file while the pipe is full still, and again.
    service.does("reload");
    service.does("reopen");
    service.files.configure("drain-timeout = \"1s\"\n");
    service.does("reload");
    assert_eq!(service.ask("/to-the-file").await.status, 200);
    eventually("lines get to the file", || {
        let lines = service.files.log_lines("access.log");
        lines.iter().any(|line| line.contains("/to-the-file ")).then_some(())
    });
    service.files.configure("access-log = \"stdout\"\ndrain-timeout = \"1s\"\n");
    service.does("reload");
    assert_eq!(service.ask("/x").await.status, 200);
    assert!(service.does("status").contains("serving"));
    echoes(&mut session).await;
    service.proxy.signal(Signal::SIGTERM);
    assert_eq!(session.rest().await.1, End::Clean);
    assert_eq!(service.proxy.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_log_of_json_tells_of_requests_and_of_sessions_from_their_beginning_on() {
    let agent = agent().await;
    let service = Service::start(agent.address, "access-log-format = \"json\"\n");
    assert_eq!(service.ask("/x?token=secret").await.status, 200);
    let lines = |event: &str| -> Vec<serde_json::Value> {
        let lines = service.files.log_lines("access.log");
        let lines = lines.iter().map(|line| serde_json::from_str(line).expect("JSON"));
        lines.filter(|line: &serde_json::Value| line["event"] == event).collect()
    };
    let line = |event| eventually(event, || lines(event).pop());
    let request = line("request");
    assert!(request["request"].as_str().unwrap().contains("/x?token=*** HTTP/1.1"), "{request}");
    assert_eq!((&request["tls"], &request["status"]), (&"1.3".into(), &200.into()));
    assert!(request["first_byte_us"].as_u64().is_some_and(|us| us > 0), "{request}");
    assert!(request["client_port"].as_u64().is_some_and(|port| port > 0), "{request}");
    let mut session = service.session("/echo").await;
    let start = line("session_started");
    assert!(lines("session_ended").is_empty());
    echoes(&mut session).await;
    session.finish().await;
    drop(session);
    let end = line("session_ended");
    assert_eq!((&end["conn"], &end["status"]), (&start["conn"], &101.into()));
    assert!(end["client_rtt_us"].as_u64().is_some_and(|us| us > 0), "{end}");
    assert!(end["residence_p99_us"].as_u64().is_some_and(|us| us > 0), "{end}");
    assert!(end["to_agent"].as_u64().is_some_and(|bytes| bytes > 0), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_find_no_room_are_counted_and_told() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let admin = unused_address();
    files.configure(&format!("access-log = \"stdout\"\nadmin = \"{admin}\"\n"));
    let path = files.path("pipe");
    let mut pipe = Pipe::new(&path);
    let command = command_to(&files, ">", &path);
    let mut service = Service::start_by(files, command);
    pipe.fill();
    // Lines of 9 kB, more than 4 MiB of them: of each part the log has a kilobyte, and four for a quote.
    let (path, quotes) = ("x".repeat(1100), "\"".repeat(1100));
    let request = format!(
        "GET /health?{path} HTTP/1.1\r\nHost: proxy\r\nReferer: {quotes}\r\nUser-Agent: {quotes}\r\n\r\n"
    );
    let mut client = service.client().await;
    for _ in 0..500 {
        client.say(&*request).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
    }
    service.proxy.until("tells it", |log| log.contains("access log lines dropped").then_some(()));
    let mut reader = harness::raw_client::RawClient::plain(admin).await;
    reader.say("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let text = reader.answer().await.expect("an answer").text();
    let value = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(&format!("dcv_splice_{name}_total{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((10..100).contains(&value("access_log_lines_dropped")), "{text}");
    assert_eq!(value("log_lines_dropped"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_keeps_no_command_and_no_client_waiting() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let path = files.path("pipe");
    let mut pipe = Pipe::new(&path);
    let mut process = Process::start(command_to(&files, "2>", &path)).without_grace();
    let mut said = String::new();
    eventually("it takes commands", || {
        said.push_str(&pipe.take());
        said.contains("control socket opened").then_some(())
    });
    pipe.fill();
    let flag = files.flag("control", "control");
    let does = |word: &str| {
        let mut asked = Process::start(proxy::command(&[word, &flag])).without_grace();
        assert_eq!(asked.wait().code(), Some(0), "{word}: {}", asked.log());
        asked.output()
    };
    for _ in 0..20 {
        does("reload");
    }
    does("reopen");
    assert!(does("status").contains("serving"));
    let mut client = harness::raw_client::RawClient::secure(files.address).await;
    client.say("GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_ends_where_nobody_reads_why() {
    let files = Files::new(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
    files.configure("agnts = []\n");
    let path = files.path("pipe");
    let mut pipe = Pipe::new(&path);
    pipe.fill();
    let mut process = Process::start(command_to(&files, "2>", &path)).without_grace();
    assert_eq!(process.wait().code(), Some(2));
}

/// The fields of a line in JSON.
fn event(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_an_event_and_a_connection_has_one_number_in_all_of_them() {
    let agent = agent().await;
    let service = Service::start(agent.address, "log = \"debug\"\nlog-format = \"json\"\n");
    assert_eq!(service.ask("/numbered").await.status, 200);
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    drop(session);
    let access = |path: &str| {
        let lines = service.files.log_lines("access.log");
        let line = lines.into_iter().find(|line| line.contains(path))?;
        Some(line.split_once(" conn=")?.1.split(' ').next()?.parse::<u64>().unwrap())
    };
    let request = eventually("the request is logged", || access("/numbered "));
    let session = eventually("the session is logged", || access("/echo "));
    assert_ne!(request, session);
    let messages = |conn: u64| {
        let log = service.proxy.log();
        let events = log.lines().map(event).filter(|event| event["conn"] == conn);
        events.map(|event| event["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("the connections end", || {
        let is_over = |conn| messages(conn).last().is_some_and(|last| last == "client disconnected");
        (is_over(request) && is_over(session)).then_some(())
    });
    assert_eq!(messages(request), ["client connected", "request ended", "client disconnected"]);
    let of_session = ["client connected", "session opened", "request ended", "client disconnected"];
    assert_eq!(messages(session), of_session);
    let log = service.proxy.log();
    for event in log.lines().map(event) {
        assert!(event["timestamp"].is_string() && event["level"].is_string(), "{event}");
        assert!(event["message"].as_str().is_some_and(|message| !message.is_empty()), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_which_events_are_logged() {
    let agent = agent().await;
    let service = Service::start(agent.address, "log = \"info\"\n");
    assert_eq!(service.ask("/x").await.status, 200);
    service.files.configure("log = \"off,dcv_splice::worker=debug\"\n");
    service.does("reload");
    assert!(!service.proxy.log().contains("client connected"), "{}", service.proxy.log());
    assert_eq!(service.ask("/x").await.status, 200);
    eventually("it is logged", || service.proxy.log().contains("client connected conn=").then_some(()));
    service.files.configure("log = \"loud\"\n");
    assert!(service.refuses("reload").contains("write a level"));
}
