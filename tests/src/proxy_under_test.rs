//! The real proxy in front of one agent, with a TLS and a plain listener, one worker unless told otherwise
//! and its access log on stdout; and whether it is as it was at its start, once everything that went wrong is over.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::env;
use std::net::SocketAddr;

use crate::process::eventually;
use crate::proxy::{Proxy, SESSION_TLS};
use crate::raw_client::{Answer, RawClient, soon};

/// Readings of the open descriptors in a row that have to agree.
const SETTLED: usize = 5;
/// Ends of the pipes that a worker keeps for later sessions.
const POOLED_PIPE_ENDS: usize = 2 * 16;

/// A proxy in front of one agent.
#[derive(Debug)]
pub struct ProxyUnderTest {
    /// The proxy itself.
    pub proxy: Proxy,
    agent: SocketAddr,
    descriptors: usize,
}

impl ProxyUnderTest {
    /// Starts a proxy that serves `agent` and nothing else, with these flags besides.
    pub async fn start(agent: SocketAddr, flags: &[&str]) -> Self {
        let port = format!("--agent-port={}", agent.port());
        let allowed = format!("--agents={}/32", agent.ip());
        let mut all = vec![
            "--listen=127.0.0.1:0",
            "--listen-plain=127.0.0.1:0",
            "--access-log=stdout",
            &port,
            &allowed,
        ];
        if !flags.iter().any(|flag| flag.starts_with("--workers")) {
            all.push("--workers=1");
        }
        all.extend(flags);
        let proxy = Proxy::start(&all);
        let mut front = Self { proxy, agent, descriptors: 0 };
        front.answers().await;
        front.descriptors = front.settled();
        front
    }

    /// Where it speaks TLS.
    pub fn secure(&self) -> SocketAddr {
        self.proxy.addresses()[0]
    }

    /// Where it does not.
    pub fn plain(&self) -> SocketAddr {
        self.proxy.addresses()[1]
    }

    /// The head of a request to the agent: `GET /x` becomes `GET /<agent>/x HTTP/1.1` with `Host` and `headers`.
    pub fn request(&self, line: &str, headers: &str) -> String {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        format!("{method} /{}{path} HTTP/1.1\r\nHost: proxy\r\n{headers}\r\n", self.agent.ip())
    }

    /// Asks the agent once, on a plain connection of its own.
    pub async fn ask(&self, line: &str) -> Answer {
        let mut client = RawClient::plain(self.plain()).await;
        client.say(self.request(line, "Connection: close\r\n")).await;
        client.answer().await.expect("the proxy answers")
    }

    /// Asks for a WebSocket on `client`.
    pub fn upgrade(&self, path: &str) -> String {
        self.request(
            &format!("GET {path}"),
            "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        )
    }

    /// It answers by itself.
    pub async fn answers(&self) {
        let mut client = RawClient::plain(self.plain()).await;
        client.say("GET /health HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n").await;
        let answer = client.answer().await.expect("the proxy answers");
        assert_eq!((answer.status, answer.text().trim_end()), (200, "DCV Proxy OK"));
        soon(client.rest()).await;
    }

    /// It answers, and holds nothing that it did not hold at its start.
    pub async fn recovers(&self) {
        self.answers().await;
        self.releases();
    }

    /// It comes to hold no more descriptors than at its start, but for the pipes that it keeps where the kernel does TLS.
    #[track_caller]
    pub fn releases(&self) {
        let pooled = if env::var(SESSION_TLS).is_ok_and(|by| by != "user") { POOLED_PIPE_ENDS } else { 0 };
        eventually("the descriptors of the proxy are as at its start", || {
            (self.proxy.descriptors() <= self.descriptors + pooled).then_some(())
        });
    }

    /// The line of the access log of what is over and contains `what`.
    #[track_caller]
    pub fn access_line(&self, what: &str) -> String {
        let is_over = |line: &str| !line.ends_with("end_reason=started");
        eventually(&format!("a line of the access log contains {what}"), || {
            self.proxy.output().lines().find(|line| is_over(line) && line.contains(what)).map(str::to_owned)
        })
    }

    fn settled(&self) -> usize {
        let mut readings = Vec::new();
        eventually("the descriptors of the proxy settle", || {
            readings.push(self.proxy.descriptors());
            let last = readings.iter().rev().take(SETTLED);
            (readings.len() >= SETTLED && last.clone().min() == last.max())
                .then(|| readings[readings.len() - 1])
        })
    }
}
