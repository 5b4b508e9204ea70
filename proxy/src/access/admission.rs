//! Which clients may come in: from which networks, how many at a time, and how often. Asked once per connection, under
//! a lock; of the networks also by requests that a trusted proxy passes on. Knows no socket. An IPv6 client is its /64,
//! which is what one of them is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::access::rejections::RejectReason;
use crate::http::local_response::LocalResponse;
use crate::transport::networks::{Networks, client_network};

/// Clients that are remembered before those who left long enough ago are forgotten.
const REMEMBERED_MAX: usize = 16_384;
/// How many seconds' worth of connections a client may make at once.
const BURST_S: f64 = 4.0;

/// Networks that clients come from, as the operator named them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientNetworks {
    /// Where they may come from; anywhere where none is named.
    pub allowed: Networks,
    /// Where they may not, whatever is allowed.
    pub denied: Networks,
    /// Balancers that say first whom they speak for.
    pub proxy_protocol_sources: Networks,
    /// Proxies that are believed whom they speak for, request by request.
    pub trusted_proxies: Networks,
}

impl ClientNetworks {
    /// Whether a client may come from there.
    pub fn allows(&self, client: IpAddr) -> bool {
        !self.denied.contains(client) && (self.allowed.is_empty() || self.allowed.contains(client))
    }

    /// Whether a connection from there starts with a PROXY header.
    pub fn is_proxy_protocol_source(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_sources.contains(peer)
    }
}

/// Limits of one client.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Connections at a time.
    pub connections_max: usize,
    /// New connections a second; four times as many at once.
    pub per_second: u32,
}

/// The response for a client that is not admitted, where one can be sent.
pub fn reply_to(refused: RejectReason) -> LocalResponse {
    let later = |status, text| LocalResponse::new(status, text).with_header("Retry-After: 5");
    match refused {
        RejectReason::ClientConnectionsMax => {
            later(429, "This address has too many connections: close some.")
        }
        RejectReason::RateLimited => later(429, "This address makes connections too fast: wait."),
        RejectReason::MaxConnections => {
            later(503, "This proxy has as many connections as it may: try again.")
        }
        _ => LocalResponse::new(403, "This address may not use this proxy."),
    }
}

/// Lets clients in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    rules: Arc<Rules>,
    clients: Arc<Clients>,
}

#[derive(Debug)]
struct Rules {
    networks: ClientNetworks,
    limits: ClientLimits,
}

#[derive(Debug, Default)]
struct Clients(Mutex<HashMap<IpAddr, Client>>);

/// The state of one client.
#[derive(Clone, Copy, Debug)]
struct Client {
    open: usize,
    /// Connections that it may still make at once, as of `at`.
    tokens: f64,
    at: Instant,
}

/// A client that was let in, for as long as its connection lives.
#[derive(Debug)]
pub struct ClientPermit {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Admission {
    /// Nobody is in yet.
    pub fn new(networks: ClientNetworks, limits: ClientLimits) -> Self {
        Self { rules: Arc::new(Rules { networks, limits }), clients: Arc::default() }
    }

    /// The same with other rules for those who come from now on. Who is in stays, and is counted.
    #[must_use]
    pub fn renewed(&self, networks: ClientNetworks, limits: ClientLimits) -> Self {
        Self { rules: Arc::new(Rules { networks, limits }), clients: self.clients.clone() }
    }

    /// Lets a client's connection in, or says why not.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<ClientPermit, RejectReason> {
        self.enter(client, now)?;
        Ok(ClientPermit { clients: self.clients.clone(), client: client_network(client) })
    }

    /// Whether a client would be let in now, which changes nothing.
    pub fn would_admit(&self, address: IpAddr, now: Instant) -> Result<(), RejectReason> {
        let Rules { networks, limits } = &*self.rules;
        if !networks.allows(address) {
            return Err(RejectReason::ClientDenied);
        }
        match self.clients.lock().get(&client_network(address)) {
            Some(client) if client.open >= limits.connections_max => Err(RejectReason::ClientConnectionsMax),
            Some(client) if client.tokens_at(now, limits.per_second.into()) < 1.0 => {
                Err(RejectReason::RateLimited)
            }
            _ => Ok(()),
        }
    }

    fn enter(&self, address: IpAddr, now: Instant) -> Result<(), RejectReason> {
        let Rules { networks, limits } = &*self.rules;
        if !networks.allows(address) {
            return Err(RejectReason::ClientDenied);
        }
        let rate = f64::from(limits.per_second);
        let mut clients = self.clients.lock();
        if clients.len() == clients.capacity() && clients.len() >= REMEMBERED_MAX {
            clients.retain(|_, client| client.open > 0 || client.tokens_at(now, rate) < rate * BURST_S);
        }
        let fresh = Client { open: 0, tokens: rate * BURST_S, at: now };
        let client = clients.entry(client_network(address)).or_insert(fresh);
        client.tokens = client.tokens_at(now, rate);
        // One worker's time is not quite another's.
        client.at = client.at.max(now);
        if client.open >= limits.connections_max {
            return Err(RejectReason::ClientConnectionsMax);
        }
        if client.tokens < 1.0 {
            return Err(RejectReason::RateLimited);
        }
        client.tokens -= 1.0;
        client.open += 1;
        Ok(())
    }
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn tokens_at(&self, now: Instant, rate: f64) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        (self.tokens + gained).min(rate * BURST_S)
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        if let Some(client) = self.clients.lock().get_mut(&self.client) {
            client.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: ClientLimits = ClientLimits { connections_max: 3, per_second: 2 };

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn networks(texts: &[&str]) -> Networks {
        texts.iter().map(|text| text.parse().expect("a network")).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_client_has_so_many_connections_and_gives_each_back() {
        let admission =
            Admission::new(ClientNetworks::default(), ClientLimits { per_second: 1000, ..LIMITS });
        let now = Instant::now();
        let guests: Vec<_> =
            (0..3).map(|_| admission.admit(address("192.0.2.1"), now).expect("room")).collect();
        assert_eq!(
            admission.admit(address("192.0.2.1"), now).err(),
            Some(RejectReason::ClientConnectionsMax)
        );
        assert_eq!(admission.would_admit(address("192.0.2.1"), now), Err(RejectReason::ClientConnectionsMax));
        assert_eq!(admission.would_admit(address("192.0.2.2"), now), Ok(()));
        assert!(admission.admit(address("192.0.2.2"), now).is_ok());
        drop(guests);
        assert!(admission.admit(address("::ffff:192.0.2.1"), now).is_ok());
    }

    #[test]
    fn other_rules_hold_for_who_comes_and_count_who_is_in() {
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(address);
        let limits = ClientLimits { connections_max: 1, per_second: 1000 };
        let old = Admission::new(ClientNetworks::default(), limits);
        let now = Instant::now();
        let permit = old.admit(one, now).expect("room");
        let denied = ClientNetworks { denied: networks(&["192.0.2.2/32"]), ..ClientNetworks::default() };
        let new = old.renewed(denied, limits);
        assert_eq!(new.admit(one, now).err(), Some(RejectReason::ClientConnectionsMax));
        assert_eq!(new.admit(other, now).err(), Some(RejectReason::ClientDenied));
        drop(permit);
        assert!(new.admit(one, now).is_ok());
    }

    #[test]
    fn a_client_makes_so_many_a_second_after_a_burst() {
        let admission =
            Admission::new(ClientNetworks::default(), ClientLimits { connections_max: 100, ..LIMITS });
        let start = Instant::now();
        let made = |at: f64| {
            let now = start + Duration::from_secs_f64(at);
            (0..20).filter(|_| admission.admit(address("192.0.2.1"), now).is_ok()).count()
        };
        assert_eq!([0.0, 0.4, 0.6, 2.1, 2.1, 60.0].map(made), [8, 0, 1, 3, 0, 8]);
        // Workers whose times differ gain nobody anything.
        assert_eq!([59.0, 60.0, 59.0, 60.0].map(made), [0; 4]);
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let admission =
            Admission::new(ClientNetworks::default(), ClientLimits { connections_max: 1, ..LIMITS });
        let now = Instant::now();
        let _guest = admission.admit(address("2001:db8::1"), now).expect("room");
        assert!(admission.admit(address("2001:db8::ffff:1"), now).is_err());
        assert!(admission.admit(address("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn what_is_denied_is_denied_even_where_it_is_allowed() {
        let clients = ClientNetworks {
            allowed: networks(&["192.0.2.0/24", "2001:db8::/32"]),
            denied: networks(&["192.0.2.128/25", "2001:db8::bad/128"]),
            ..ClientNetworks::default()
        };
        let admission = Admission::new(clients, LIMITS);
        let now = Instant::now();
        for (client, is_let_in) in [
            ("2001:db8::bad", false),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("2001:db8::1", true),
            ("192.0.2.129", false),
            ("::ffff:192.0.2.129", false),
            ("198.51.100.1", false),
            ("2001:db9::1", false),
        ] {
            let refused = admission.admit(address(client), now).err();
            assert_eq!(refused, (!is_let_in).then_some(RejectReason::ClientDenied), "{client}");
        }
    }

    #[test]
    fn clients_who_left_long_ago_are_forgotten() {
        let admission = Admission::new(ClientNetworks::default(), LIMITS);
        let start = Instant::now();
        admission.clients.lock().reserve(REMEMBERED_MAX);
        let many = u32::try_from(admission.clients.lock().capacity()).expect("a number");
        for client in 0..many {
            let permit = admission.admit(IpAddr::from(client.to_be_bytes()), start);
            if client == 0 {
                std::mem::forget(permit);
            }
        }
        let later = start + Duration::from_secs(10);
        assert!(admission.admit(IpAddr::from(many.to_be_bytes()), later).is_ok());
        assert_eq!(admission.clients.lock().len(), 2);
    }
}
