//! Which agent of a pool a user gets: the one with the fewest desktops, as far as this process knows. Reads no clock.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agents::directory::{AgentState, NamedAgent};
use crate::agents::health::Health;
use crate::agents::known::KnownAgents;

/// How long a user who was sent to an agent counts there before a session of theirs does.
const ARRIVAL_TIME: Duration = Duration::from_mins(1);
/// Users who are on their way. Of more it is not known.
const ARRIVALS_MAX: usize = 8192;
/// The same of one client address: an office, or somebody who only asks.
const ARRIVALS_PER_CLIENT_MAX: usize = 1024;
/// Native clients whose agent is remembered; of more it is not.
const REMEMBERED_MAX: usize = 65_536;
/// How often those are looked for that need not be remembered any more, where there are so many.
const SWEEP: Duration = Duration::from_secs(1);

/// A user who wants an agent of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolRequest<'a> {
    /// The pool.
    pub pool: &'a str,
    /// Where the user comes from.
    pub client: IpAddr,
    /// The address or network that counts as one client.
    pub network: IpAddr,
    /// The user, where passwords are asked for.
    pub user: &'a str,
    /// The agent that its cookie names.
    pub cookie: Option<&'a str>,
    /// How long the agent of a client without cookies is remembered; nothing of one that has them.
    pub affinity: Option<Duration>,
    /// The time.
    pub now: Instant,
}

/// Who has been sent where. A clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct Placements(Arc<Mutex<Lists>>);

/// A user on the way.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    since: Instant,
    agent: SocketAddr,
    client: IpAddr,
    network: IpAddr,
}

#[derive(Debug, Default)]
struct Lists {
    /// Users on their way, the first first.
    arriving: VecDeque<Arrival>,
    /// How many there are on their way to each agent, by where they come from.
    coming: HashMap<SocketAddr, HashMap<IpAddr, usize>>,
    /// How many there are of each client.
    clients: HashMap<IpAddr, usize>,
    /// By the pool, the client's network and the user.
    remembered: HashMap<(String, IpAddr, String), (SocketAddr, Instant)>,
    swept: Option<Instant>,
    /// When each agent was chosen last, by a count.
    chosen: HashMap<SocketAddr, u64>,
    choices: u64,
}

impl Placements {
    /// The agent for a user, where the pool has one that takes it: its cookie's, one that it has a session at, the one that its address had,
    /// or that with the fewest desktops; of several, the one that was not chosen for the longest time. `clients_at` gives the clients of
    /// the desktops at an agent, `has_session` whether this user has a session there.
    pub fn place<'a>(
        &self,
        asked: &PoolRequest<'_>,
        agents: &'a KnownAgents,
        clients_at: impl Fn(SocketAddr) -> Vec<IpAddr>,
        has_session: impl Fn(SocketAddr) -> bool,
    ) -> Option<&'a NamedAgent> {
        let is_up = |agent: &&NamedAgent| agents.health.down(agent.address).is_none();
        let is_at_home = |agent: &&NamedAgent| match agent.state {
            AgentState::Active => true,
            AgentState::Drain => has_session(agent.address),
            AgentState::Off => false,
        };
        let candidates: Vec<_> = agents.directory.pool(asked.pool).filter(is_up).collect();
        let by_cookie = asked.cookie.and_then(|name| candidates.iter().find(|agent| *agent.name == *name));
        let mut lists = self.lists();
        lists.forget_arrivals(asked.now);
        let mut known = by_cookie.copied().filter(is_at_home);
        // A browser without a cookie is a new one, whoever else has its address.
        if known.is_none() && asked.affinity.is_some() {
            let remembered = lists.remembered_for(asked, &candidates).filter(is_at_home);
            let is_here = |agent: &&&NamedAgent| agent.state != AgentState::Off && has_session(agent.address);
            known = remembered.or_else(|| candidates.iter().find(is_here).copied());
        }
        let told = |agent: SocketAddr| match agents.health.of(agent) {
            Some(Health::Up { desktops: Some(told) }) => *told as usize,
            _ => 0,
        };
        let load = |agent: &&NamedAgent| {
            let at = agent.address;
            (lists.load(at, &clients_at(at), told(at)), lists.chosen.get(&at).copied())
        };
        let is_open = |agent: &&NamedAgent| agent.state == AgentState::Active;
        let agent = known.or_else(|| candidates.iter().copied().filter(is_open).min_by_key(load))?;
        let is_new = known.is_none() || !has_session(agent.address);
        lists.note(agent.address, asked, is_new, known.is_none());
        Some(agent)
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    fn remembered_for<'a>(
        &self,
        asked: &PoolRequest<'_>,
        candidates: &[&'a NamedAgent],
    ) -> Option<&'a NamedAgent> {
        let (agent, since) = self.remembered.get(&key(asked))?;
        let is_good = asked.affinity.is_some_and(|time| asked.now.duration_since(*since) < time);
        candidates.iter().find(|it| is_good && it.address == *agent).copied()
    }

    /// Desktops at an agent, and users on their way there. A user who has arrived is one of the desktops.
    fn load(&self, agent: SocketAddr, clients: &[IpAddr], told: usize) -> usize {
        let here = |client: &IpAddr| clients.iter().filter(|other| *other == client).count();
        let coming = self.coming.get(&agent).into_iter().flatten();
        let coming: usize = coming.map(|(client, count)| count.saturating_sub(here(client))).sum();
        clients.len().max(told) + coming
    }

    fn note(&mut self, agent: SocketAddr, asked: &PoolRequest<'_>, is_new: bool, is_chosen: bool) {
        if is_chosen {
            self.choices += 1;
            self.chosen.insert(agent, self.choices);
        }
        // Who comes again meanwhile is the same user.
        let is_coming = self.coming.get(&agent).is_some_and(|coming| coming.contains_key(&asked.client));
        let of_client = self.clients.get(&asked.network).copied().unwrap_or(0);
        let has_room = self.arriving.len() < ARRIVALS_MAX && of_client < ARRIVALS_PER_CLIENT_MAX;
        if is_new && (is_chosen || !is_coming) && has_room {
            self.arriving.push_back(Arrival {
                since: asked.now,
                agent,
                client: asked.client,
                network: asked.network,
            });
            *self.coming.entry(agent).or_default().entry(asked.client).or_default() += 1;
            *self.clients.entry(asked.network).or_default() += 1;
        }
        if let Some(time) = asked.affinity {
            self.remember(agent, asked, time);
        }
    }

    fn remember(&mut self, agent: SocketAddr, asked: &PoolRequest<'_>, time: Duration) {
        let is_due = self.swept.is_none_or(|swept| asked.now.duration_since(swept) >= SWEEP);
        if self.remembered.len() >= REMEMBERED_MAX && is_due {
            self.swept = Some(asked.now);
            self.remembered.retain(|_, (_, since)| asked.now.duration_since(*since) < time);
        }
        let key = key(asked);
        if self.remembered.len() < REMEMBERED_MAX || self.remembered.contains_key(&key) {
            self.remembered.insert(key, (agent, asked.now));
        }
    }

    fn forget_arrivals(&mut self, now: Instant) {
        while let Some(Arrival { since, agent, client, network }) = self.arriving.front().copied()
            && now.duration_since(since) >= ARRIVAL_TIME
        {
            self.arriving.pop_front();
            if let Some(coming) = self.coming.get_mut(&agent) {
                one_less(coming, &client);
                if coming.is_empty() {
                    self.coming.remove(&agent);
                }
            }
            one_less(&mut self.clients, &network);
        }
    }
}

fn key(asked: &PoolRequest<'_>) -> (String, IpAddr, String) {
    (asked.pool.to_owned(), asked.network, asked.user.to_owned())
}

fn one_less(counts: &mut HashMap<IpAddr, usize>, of: &IpAddr) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::agents::directory::{Directory, DirectoryRules};
    use crate::agents::directory_text::Format;
    use crate::agents::health::{Down, Failure, FailureKind, HealthChange, HealthMap};

    /// Agents `a1`, `a2`, ... of a pool, in these states.
    fn agents(states: &[&str]) -> KnownAgents {
        let entry = |(index, state): (usize, &&str)| {
            let number = index + 1;
            format!(
                "[[agent]]\nname = \"a{number}\"\naddress = \"10.0.0.{number}\"\nstate = \"{state}\"\npools = [\"cad\"]\n"
            )
        };
        let text: String = states.iter().enumerate().map(entry).collect();
        let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: true };
        let directory = Directory::parse(&text, Format::Toml, rules).expect("a directory");
        KnownAgents { directory, ..KnownAgents::default() }
    }

    fn browser(now: Instant, client: u8) -> PoolRequest<'static> {
        PoolRequest {
            pool: "cad",
            client: [192, 0, 2, client].into(),
            network: [192, 0, 2, client].into(),
            user: "",
            cookie: None,
            affinity: None,
            now,
        }
    }

    fn native(now: Instant, client: u8) -> PoolRequest<'static> {
        PoolRequest { affinity: Some(Duration::from_mins(10)), ..browser(now, client) }
    }

    fn nobody(_: SocketAddr) -> Vec<IpAddr> {
        Vec::new()
    }

    fn name(agent: Option<&NamedAgent>) -> &str {
        agent.map_or("-", |agent| &agent.name)
    }

    #[test]
    fn a_burst_is_spread_evenly_whatever_stood_there_before() {
        let agents = agents(&["active"; 7]);
        let now = Instant::now();
        for has_desktops in [false, true] {
            let placements = Placements::default();
            // The first agent has three desktops already.
            let clients_at = |agent: SocketAddr| {
                let is_first = has_desktops && agent.ip() == IpAddr::from([10, 0, 0, 1]);
                if is_first { vec![IpAddr::from([203, 0, 113, 1]); 3] } else { Vec::new() }
            };
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for client in 0..100 {
                // Some of them come from one address.
                let asked = browser(now, client / 10);
                *counts
                    .entry(name(placements.place(&asked, &agents, clients_at, |_| false)).to_owned())
                    .or_default() += 1;
            }
            if has_desktops {
                *counts.get_mut("a1").expect("some") += 3;
            }
            let (min, max) = (counts.values().min().expect("some"), counts.values().max().expect("some"));
            assert!(counts.len() == 7 && max - min <= 1, "{counts:?}");
        }
    }

    #[test]
    fn a_user_comes_back_to_its_agent_as_long_as_that_takes_it() {
        let agents = agents(&["active"; 3]);
        let (placements, now) = (Placements::default(), Instant::now());
        let place =
            |asked: &PoolRequest<'_>| name(placements.place(asked, &agents, nobody, |_| false)).to_owned();
        assert_eq!(["a1", "a2"], [1, 2].map(|client| place(&native(now, client))).map(|it| it));
        assert_eq!(["a1", "a2"], [1, 2].map(|client| place(&native(now, client))));
        assert_eq!(place(&PoolRequest { cookie: Some("a2"), ..browser(now, 9) }), "a2");
        // Two users at one address are two.
        assert_eq!(place(&PoolRequest { user: "ann", ..native(now, 1) }), "a3");
        let later = now + Duration::from_mins(11);
        assert_eq!(place(&PoolRequest { cookie: Some("gone"), ..browser(later, 9) }), "a1");
        assert_eq!(place(&native(later, 1)), "a2");
    }

    #[test]
    fn nobody_is_sent_to_an_agent_that_does_not_take_users() {
        let known = agents(&["off", "drain", "active"]);
        let down = |number| {
            let failure = Failure { kind: FailureKind::Refused, detail: String::new() };
            let health = Some(Health::Down(Down { failure, since_s: 0, retry_after_s: 1 }));
            HealthChange { agent: SocketAddr::from(([10, 0, 0, number], 8443)), health }
        };
        let (placements, now) = (Placements::default(), Instant::now());
        let cookie = |name| PoolRequest { cookie: Some(name), ..browser(now, 1) };
        for asked in [cookie("a1"), cookie("a2"), browser(now, 1)] {
            assert_eq!(name(placements.place(&asked, &known, nobody, |_| false)), "a3");
        }
        // A user of the one that drains stays there.
        let is_at_drained = |agent: SocketAddr| agent.ip() == IpAddr::from([10, 0, 0, 2]);
        assert_eq!(name(placements.place(&cookie("a2"), &known, nobody, is_at_drained)), "a2");
        assert_eq!(name(placements.place(&native(now, 1), &known, nobody, is_at_drained)), "a2");
        let known = KnownAgents { health: HealthMap::default().with([down(3)]), ..known };
        assert_eq!(name(placements.place(&cookie("a3"), &known, nobody, |_| false)), "-");
        assert_eq!(
            name(placements.place(&PoolRequest { pool: "x", ..cookie("a3") }, &known, nobody, |_| false)),
            "-"
        );
    }

    #[test]
    fn what_an_agent_tells_counts_and_who_has_arrived_counts_once() {
        let known = agents(&["active"; 2]);
        let told = |number, desktops| HealthChange {
            agent: SocketAddr::from(([10, 0, 0, number], 8443)),
            health: Some(Health::Up { desktops: Some(desktops) }),
        };
        let health = HealthMap::default().with([told(1, 2), told(2, 0)]);
        let known = KnownAgents { health, ..known };
        let (placements, now) = (Placements::default(), Instant::now());
        let place =
            |client| name(placements.place(&browser(now, client), &known, nobody, |_| false)).to_owned();
        assert_eq!([1, 2, 3, 4].map(place), ["a2", "a2", "a1", "a2"]);
        let mut lists = placements.lists();
        let agent = SocketAddr::from(([10, 0, 0, 2], 8443));
        let clients = [1, 2].map(|client| IpAddr::from([192, 0, 2, client]));
        assert_eq!(lists.load(agent, &[], 0), 3);
        assert_eq!(lists.load(agent, &clients, 2), 3);
        lists.forget_arrivals(now + ARRIVAL_TIME);
        assert_eq!(lists.load(agent, &clients, 2), 2);
        assert!(lists.coming.is_empty() && lists.clients.is_empty() && lists.arriving.is_empty());
    }

    /// An office where one of many has a session at an agent that drains: the others go elsewhere.
    #[test]
    fn an_agent_that_drains_gets_no_new_browsers_whoever_has_its_address_there() {
        let known = agents(&["drain", "active"]);
        let (placements, now) = (Placements::default(), Instant::now());
        let is_at_drained = |agent: SocketAddr| agent.ip() == IpAddr::from([10, 0, 0, 1]);
        for _ in 0..5 {
            assert_eq!(name(placements.place(&browser(now, 1), &known, nobody, is_at_drained)), "a2");
        }
        assert_eq!(name(placements.place(&native(now, 1), &known, nobody, is_at_drained)), "a1");
    }

    #[test]
    fn one_client_counts_for_so_many_users_and_no_more() {
        let known = agents(&["active"; 2]);
        let (placements, now) = (Placements::default(), Instant::now());
        for _ in 0..2 * ARRIVALS_PER_CLIENT_MAX {
            placements.place(&browser(now, 1), &known, nobody, |_| false);
        }
        assert_eq!(placements.lists().arriving.len(), ARRIVALS_PER_CLIENT_MAX);
        placements.place(&browser(now, 2), &known, nobody, |_| false);
        assert_eq!(placements.lists().arriving.len(), ARRIVALS_PER_CLIENT_MAX + 1);
    }
}
