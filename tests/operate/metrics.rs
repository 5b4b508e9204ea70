//! The admin listener: what it counts is what was, and an upgrade shows both processes.

use std::net::SocketAddr;

use harness::ports::unused_address;
use harness::process::eventually;
use harness::raw_client::{Answer, RawClient};
use harness::scripted_agent::ScriptedAgent;

use super::{Service, agent, echoes};

async fn get(admin: SocketAddr, line: &str) -> Answer {
    let mut client = RawClient::plain(admin).await;
    client.say(format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    client.answer_to(line.split(' ').next().unwrap()).await.expect("an answer")
}

/// A service that shows figures, and where.
pub(super) async fn shown() -> (ScriptedAgent, Service, SocketAddr) {
    shown_with("").await
}

/// The same with these settings besides.
pub(super) async fn shown_with(more: &str) -> (ScriptedAgent, Service, SocketAddr) {
    let agent = agent().await;
    let admin = unused_address();
    let service = Service::start(agent.address, &format!("admin = \"{admin}\"\n{more}"));
    (agent, service, admin)
}

pub(super) async fn metrics(admin: SocketAddr) -> String {
    get(admin, "GET /metrics").await.text()
}

/// Waits until the lines are among the metrics, whatever process they are of.
async fn until(admin: SocketAddr, wanted: &[String]) -> String {
    let mut text = String::new();
    for _ in 0..600 {
        text = metrics(admin).await;
        let lines: Vec<String> = text.lines().map(without_process).collect();
        if wanted.iter().all(|line| lines.contains(line)) {
            return text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{wanted:#?} are not all in\n{text}");
}

fn without_process(line: &str) -> String {
    let Some((before, rest)) = line.split_once("pid=\"") else { return line.to_owned() };
    let (_, after) = rest.split_once('"').unwrap();
    format!("{before}{}", after.trim_start_matches(',')).replace("{}", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_what_was() {
    let (agent, service, admin) = shown().await;
    let ip = agent.address.ip();
    for _ in 0..3 {
        assert_eq!(service.ask("/x").await.status, 200);
    }
    let mut strange = service.client().await;
    strange.say("GET /192.0.2.1/ HTTP/1.1\r\nHost: proxy\r\n\r\n").await;
    assert_eq!(strange.answer().await.unwrap().status, 403);
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    service.does("reload");
    let open = [
        format!("dcv_splice_agent_requests_total{{agent=\"{ip}\",status=\"2xx\"}} 3"),
        format!("dcv_splice_agent_request_seconds_count{{agent=\"{ip}\"}} 3"),
        format!("dcv_splice_agent_sessions{{agent=\"{ip}\"}} 1"),
        format!("dcv_splice_agent_sessions_opened_total{{agent=\"{ip}\"}} 1"),
        format!("dcv_splice_agent_body_received_bytes_total{{agent=\"{ip}\"}} 6"),
        "dcv_splice_rejected_total{reason=\"agent_not_allowed\"} 1".to_owned(),
        "dcv_splice_config_reloads_total 1".to_owned(),
        "dcv_splice_workers 2".to_owned(),
    ];
    until(admin, &open).await;
    session.finish().await;
    session.rest().await;
    let over = [
        format!("dcv_splice_agent_sessions{{agent=\"{ip}\"}} 0"),
        format!("dcv_splice_agent_requests_total{{agent=\"{ip}\",status=\"1xx\"}} 1"),
        format!("dcv_splice_agent_body_received_bytes_total{{agent=\"{ip}\"}} 10"),
    ];
    let text = until(admin, &over).await;
    // Two workers, whose connections are kept: one or two were made.
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("dcv_splice_{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(
        value("agent_connect_seconds_count") >= 1.0 && value("agent_received_bytes_total") > 500.0,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_given_the_format_that_it_asks_for() {
    let (_agent, _service, admin) = shown().await;
    let open = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    for (accept, kind, is_open) in [
        ("X: y", "text/plain; version=0.0.4; charset=utf-8", false),
        ("Accept: */*", "text/plain; version=0.0.4; charset=utf-8", false),
        (&format!("Accept: {open}"), "application/openmetrics-text; version=1.0.0; charset=utf-8", true),
    ] {
        let answer = get(admin, &format!("GET /metrics HTTP/1.1\r\n{accept}\r\nX-Line:")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{accept}");
        assert_eq!(answer.header("vary"), Some("Accept"));
        let text = answer.text();
        assert_eq!(text.ends_with("# EOF\n"), is_open, "{text}");
        assert_eq!(text.contains("# TYPE dcv_splice_config_reloads_total counter\n"), !is_open, "{text}");
        assert!(text.contains("\ndcv_splice_config_reloads_total{"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_shows_both_processes_until_the_old_one_has_ended() {
    let (_agent, service, admin) = shown().await;
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    let old = service.serving();
    for _ in 0..2 {
        service.does("upgrade");
    }
    let new = service.serving();
    let state =
        |pid: u32, state: &str| format!("dcv_splice_process_state{{pid=\"{pid}\",state=\"{state}\"}} 1\n");
    let text = metrics(admin).await;
    for wanted in [state(new, "serving"), state(old, "draining")] {
        assert!(text.contains(&wanted), "{wanted} is not in\n{text}");
    }
    let of_old = |text: &str| text.contains(&format!("dcv_splice_client_connections{{pid=\"{old}\"}} 1\n"));
    assert!(of_old(&text), "{text}");
    let page = get(admin, "GET /").await.text();
    let row = |pid: u32, state: &str| page.contains(&format!("<td>{pid}")) && page.contains(state);
    assert!(row(old, ">draining</td>") && row(new, ">serving</td>"), "{page}");
    session.finish().await;
    session.rest().await;
    for _ in 0..600 {
        if !metrics(admin).await.contains(&format!("pid=\"{old}\"")) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the old process is still shown");
}

/// A worker that has nobody left tells what it has counted last; the process goes on for the others.
#[tokio::test(flavor = "multi_thread")]
async fn no_figure_is_lost_where_one_worker_ends_before_the_other() {
    let (agent, service, admin) = shown().await;
    let old = service.serving();
    // The second goes to the worker that has fewer.
    let mut sessions = [service.session("/echo").await, service.session("/echo").await];
    service.does("upgrade");
    let [first, second] = &mut sessions;
    for _ in 0..100 {
        echoes(first).await;
    }
    first.finish().await;
    first.rest().await;
    let of_old = |name: &str| format!("dcv_splice_{name}{{pid=\"{old}\",agent=\"{}\"}}", agent.address.ip());
    let wanted = [
        format!("{} 1\n", of_old("agent_sessions")),
        format!("{} 400\n", of_old("agent_body_sent_bytes_total")),
    ];
    let mut text = String::new();
    for _ in 0..600 {
        text = metrics(admin).await;
        if wanted.iter().all(|line| text.contains(line)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(wanted.iter().all(|line| text.contains(line)), "{wanted:?} are not in\n{text}");
    echoes(second).await;
    second.finish().await;
    second.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_hangs_takes_no_other_ones_figures_with_it() {
    let (_agent, service, admin) = shown().await;
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    let old = service.serving();
    service.does("upgrade");
    let send = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(old.try_into().unwrap()), signal);
    send(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let text = metrics(admin).await;
    send(nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(text.contains("state=\"serving\"} 1\n"), "{text}");
    assert!(!text.contains(&format!("pid=\"{old}\"")), "{text}");
    session.finish().await;
    session.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_what_it_has_and_nothing_else() {
    let (_agent, service, admin) = shown().await;
    for (line, status) in [
        ("GET /health", 200),
        ("HEAD /metrics?x=1", 200),
        ("HEAD /", 200),
        ("GET /favicon.ico", 404),
        ("POST /metrics", 405),
        ("GET //", 404),
        ("nonsense", 400),
    ] {
        assert_eq!(get(admin, line).await.status, status, "{line}");
    }
    // A page of somebody else whose name leads here.
    for (host, status) in [("localhost:9443", 200), ("127.0.0.1", 200), ("rebound.example", 403)] {
        let mut client = RawClient::plain(admin).await;
        client.say(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.answer().await.unwrap().status, status, "{host}");
    }
    // Those who look at a page as it changes are sent it again and again, and no more of them than may be.
    let ask = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let mut watchers = Vec::new();
    for _ in 0..16 {
        let mut watcher = RawClient::plain(admin).await;
        watcher.say(ask).await;
        let head = watcher.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/event-stream"), "{head}");
        watchers.push(watcher);
    }
    let mut more = RawClient::plain(admin).await;
    more.say(ask).await;
    assert_eq!(more.answer().await.unwrap().status, 503);
    for _ in 0..2 {
        let mut event = String::new();
        while !event.contains("Processes and workers") {
            event.push_str(&String::from_utf8(watchers[0].some_bytes().await).unwrap());
        }
    }
    drop(watchers);
    // Those who say nothing, or no end of it, keep others waiting no longer than their time.
    let silent: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(admin).unwrap()).collect();
    let mut endless = RawClient::plain(admin).await;
    endless.try_say("GET / HTTP/1.1\r\n".to_owned() + &"a: b\r\n".repeat(10_000)).await;
    drop(silent);
    assert_eq!(get(admin, "GET /health").await.status, 200);
    eventually("it serves on", || Some(service.does("status")).filter(|status| status.contains("serving")));
}
