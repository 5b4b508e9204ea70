//! What the serving process and the network helper tell each other: one JSON text in a line for each message. Pure, but for
//! the reading of a line.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use crate::agents::discovered::FoundAddress;
use crate::agents::health::{Failure, HealthChange, ProbeRules};
use crate::config::ResolverUrl;

/// Bytes of a message. The agents of the largest directory fit twice.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Characters of a text that is shown to anybody.
const TEXT_CHARS_MAX: usize = 256;

/// An agent that is probed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::control) struct Monitored {
    /// The agent.
    pub agent: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// What the serving process wants.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::control) enum Order {
    /// These agents are to be probed from now on, and no others.
    Monitor {
        /// How; none are without.
        rules: Option<ProbeRules>,
        /// Which.
        agents: Vec<Monitored>,
    },
    /// These names are to be followed from now on, and no others.
    Names {
        /// The names in DNS.
        names: Vec<String>,
        /// The name servers; the system's where there are none.
        servers: Vec<SocketAddr>,
    },
    /// This session resolver is asked from now on.
    Resolver {
        /// Where it is reached.
        url: Option<ResolverUrl>,
        /// What its certificate is verified with (PEM).
        authorities: Option<String>,
        /// The name servers by which it, and hosts that it names, are found.
        servers: Vec<SocketAddr>,
    },
    /// The session resolver is to be asked.
    Resolve {
        /// The session.
        session: String,
        /// Who wants it.
        client: IpAddr,
    },
    /// Questions for sessions are to be answered there.
    Serve {
        /// Where; nowhere without.
        listen: Option<SocketAddr>,
        /// The agents that take users, by their names.
        agents: Vec<(String, SocketAddr)>,
    },
    /// A connection to an agent has failed. One that is not probed is from now on, until it is up.
    Mark {
        /// The agent.
        agent: Monitored,
        /// How it failed.
        failure: Failure,
    },
}

/// Where a session is, as its resolver says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::control) struct FoundSession {
    /// The addresses of its host.
    pub addresses: Vec<IpAddr>,
    /// The port there.
    pub port: u16,
    /// What stands before paths there.
    pub web_url_path: String,
}

/// What the network helper has found.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::control) enum Report {
    /// It is there, confined as this says.
    Started(String),
    /// What came of a question to the session resolver.
    Resolved {
        /// The session.
        session: String,
        /// Who wanted it.
        client: IpAddr,
        /// Where it is: addresses, a port, and what stands before paths there; nothing where there is no such session. Or why it can't
        /// be asked.
        found: Result<Option<FoundSession>, String>,
    },
    /// Questions for sessions are answered where they were ordered to be.
    Serving,
    /// Something that was ordered can't be done.
    Problem(String),
    /// What a name has come to, where that is something else than before; or why it can't be resolved.
    Name {
        /// The name.
        name: String,
        /// The addresses.
        found: Result<Vec<FoundAddress>, String>,
    },
    /// States that have changed.
    Health(Vec<HealthChange>),
}

/// As much of a text of the network helper's as is told, without what a terminal would obey.
pub(in crate::control) fn shown(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A message as a line.
pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

/// The next message; nothing once the other side has ended.
pub(super) async fn next<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(io::Error::other),
        Some(_) if read as u64 == LINE_BYTES_MAX => Err(io::Error::other("a message is too long")),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agents::health::{FailureKind, Health, ProbeKind};

    #[tokio::test]
    async fn a_message_is_read_as_it_was_written() {
        let agent = Monitored { agent: SocketAddr::from(([10, 0, 0, 5], 8443)), tls: true };
        let failure = Failure { kind: FailureKind::Refused, detail: "a \"b\"\nc".to_owned() };
        let rules = ProbeRules {
            kind: ProbeKind::Http,
            interval: Duration::from_millis(1500),
            jitter: Duration::ZERO,
            timeout: Duration::from_secs(2),
            rise: 1,
            fall: 2,
        };
        let sent = [
            Order::Monitor { rules: Some(rules), agents: vec![agent] },
            Order::Mark { agent, failure },
            Order::Monitor { rules: None, agents: Vec::new() },
        ];
        let text: Vec<_> = sent.iter().flat_map(|order| line(order).expect("a line")).collect();
        let mut from = &text[..];
        for order in &sent {
            assert_eq!(next::<Order>(&mut from).await.expect("a message").as_ref(), Some(order));
        }
        assert!(next::<Order>(&mut from).await.expect("an end").is_none());
        let up = HealthChange { agent: agent.agent, health: Some(Health::Up { desktops: None }) };
        let report = Report::Health(vec![up]);
        let text = line(&report).expect("a line");
        assert_eq!(next::<Report>(&mut &text[..]).await.expect("a message"), Some(report));
    }

    #[tokio::test]
    async fn what_is_no_whole_message_is_an_error() {
        for text in ["{}\n", "{\"health\":[]}", "\n", "{\"health\":[{\"agent\":\"x\",\"health\":null}]}\n"] {
            assert!(next::<Report>(&mut text.as_bytes()).await.is_err(), "{text}");
        }
        let endless = vec![b' '; usize::try_from(LINE_BYTES_MAX).expect("a size") + 1];
        assert!(
            next::<Report>(&mut &endless[..]).await.is_err_and(|error| error.to_string().contains("long"))
        );
    }
}
