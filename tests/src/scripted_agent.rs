//! Agents that misbehave: what each accepted connection does is a script of the test's. Scripts run until they
//! return, which drops the connection, or until the agent is dropped.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::{Identity, KeyKind};
use crate::raw_client::{RawClient, Secure};

/// An agent that follows a script.
#[derive(Debug)]
pub struct ScriptedAgent {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Dropping it ends everything that runs in it.
    _tasks: JoinSet<()>,
}

impl ScriptedAgent {
    /// Starts an agent without TLS, or one whose script speaks for itself from the first byte. The script is
    /// told which connection it has, counted from 0.
    pub async fn plain<F>(script: impl Fn(usize, RawClient) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(move |number, socket| script(number, RawClient::new(socket))).await
    }

    /// Starts an agent whose script begins when the TLS handshake is done.
    pub async fn secure<F>(script: impl Fn(usize, RawClient<Secure>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::secure_as(&Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]), script).await
    }

    /// The same with a certificate of the test's.
    pub async fn secure_as<F>(
        identity: &Identity,
        script: impl Fn(usize, RawClient<Secure>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let acceptor = acceptor(identity);
        let script = Arc::new(script);
        Self::start(move |number, socket| {
            let (acceptor, script) = (acceptor.clone(), script.clone());
            async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                script(number, RawClient::new(Secure::Server(stream))).await;
            }
        })
        .await
    }

    async fn start<F>(serve: impl Fn(usize, TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(counter.fetch_add(1, Ordering::Relaxed), socket));
            }
        });
        Self { address, accepted, _tasks: tasks }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let chain = identity.chain().expect("a certificate");
    let key = identity.key().expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.expect("a pair")))
}
