//! An agent that has a name, answers with it, and can die and come back at its address: a desktop of a fleet, as far as the proxy
//! can tell.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::raw_client::RawClient;
use crate::websocket::accepted;

/// How it is dead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Death {
    /// Nobody listens at its port.
    Refuses,
    /// It accepts connections and says nothing, as a machine that hangs.
    Hangs,
}

/// The agent. It speaks plain HTTP.
#[derive(Debug)]
pub struct StandIn {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Lines of the head of its answers.
    pub headers: String,
    served: Arc<AtomicUsize>,
    /// Dropping it ends all its connections.
    tasks: JoinSet<()>,
}

impl StandIn {
    /// One that lives.
    pub async fn start(name: impl Into<String>, address: SocketAddr) -> Self {
        let (headers, served, tasks) = (String::new(), Arc::default(), JoinSet::new());
        let mut agent = Self { name: name.into(), address, headers, served, tasks };
        agent.revive().await;
        agent
    }

    /// It lives again.
    pub async fn revive(&mut self) {
        self.tasks = JoinSet::new();
        let listener = self.listen().await;
        self.address = listener.local_addr().expect("it is bound");
        let (name, headers, served) = (self.name.clone(), self.headers.clone(), self.served.clone());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(
                    RawClient::new(socket),
                    name.clone(),
                    headers.clone(),
                    served.clone(),
                ));
            }
        });
    }

    /// The port of a listener that was dropped is free only when its task is.
    async fn listen(&self) -> TcpListener {
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    }

    /// All its connections end, and no others are served.
    pub async fn die(&mut self, death: Death) {
        self.tasks.shutdown().await;
        if death == Death::Hangs {
            let listener = self.listen().await;
            self.tasks.spawn(async move {
                let mut held = Vec::new();
                while let Ok((socket, _)) = listener.accept().await {
                    held.push(socket);
                }
            });
        }
    }

    /// Requests of users that it has got: all but those for `/`, which probes send.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Its table of a directory.
    pub fn entry(&self, lines: &str) -> String {
        let Self { name, address, .. } = self;
        let (ip, port) = (address.ip(), address.port());
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{ip}\"\nport = {port}\n{lines}\n")
    }
}

async fn serve(mut line: RawClient, name: String, headers: String, served: Arc<AtomicUsize>) {
    while let Some(head) = line.head().await {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if path != "/" {
            served.fetch_add(1, Ordering::Relaxed);
        }
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
        let answer = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n{text}");
        if !line.try_say(answer).await || head.contains("onnection: close") {
            return;
        }
    }
}
