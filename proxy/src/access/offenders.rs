//! Clients that do again and again what no user does: guess passwords, ask for strangers' addresses, send what is no HTTP and no
//! TLS. Tells once it is time to say so, for programs that shut such clients out. Rejects nobody itself; touches no clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::transport::networks::client_network;

/// What a client does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Offence {
    /// It shows wrong passwords.
    WrongPassword,
    /// It asks for agents that it may not reach.
    AgentScan,
    /// Its requests are malformed.
    MalformedRequest,
    /// What it says is no TLS, or breaks its rules.
    TlsGarbage,
}

impl Offence {
    /// All of them.
    pub(crate) const ALL: [Self; 4] =
        [Self::WrongPassword, Self::AgentScan, Self::MalformedRequest, Self::TlsGarbage];

    /// As logs and metrics name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong_password",
            Self::AgentScan => "agent_scan",
            Self::MalformedRequest => "malformed_request",
            Self::TlsGarbage => "tls_garbage",
        }
    }
}

/// So many offences of a kind make an event; a user who errs makes fewer.
const EVENT_AT: u64 = 5;
/// How long an offence is remembered after the client's last one of that kind.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Clients and kinds that are remembered.
const OFFENDERS_MAX: usize = 4096;

#[derive(Debug)]
struct Record {
    count: u64,
    last: Instant,
}

/// The clients.
#[derive(Debug, Default)]
pub(crate) struct Offenders(HashMap<(IpAddr, Offence), Record>);

/// With too many, those go that have made no event, so that nobody hides behind a crowd.
fn make_room(records: &mut HashMap<(IpAddr, Offence), Record>, now: Instant) {
    records.retain(|_, record| now.saturating_duration_since(record.last) < REMEMBERED);
    if records.len() >= OFFENDERS_MAX {
        records.retain(|_, record| record.count >= EVENT_AT);
    }
}

impl Offenders {
    /// Notes an offence. Gives how many of that kind there were of that client where it is time to tell: at the fifth, and
    /// whenever they have doubled.
    pub(crate) fn note(&mut self, client: IpAddr, offence: Offence, now: Instant) -> Option<u64> {
        let key = (client_network(client), offence);
        if self.0.len() >= OFFENDERS_MAX && !self.0.contains_key(&key) {
            make_room(&mut self.0, now);
            if self.0.len() >= OFFENDERS_MAX {
                return None;
            }
        }
        let record = self.0.entry(key).or_insert(Record { count: 0, last: now });
        if now.saturating_duration_since(record.last) >= REMEMBERED {
            record.count = 0;
        }
        record.count += 1;
        record.last = now;
        let is_time = record.count.is_multiple_of(EVENT_AT) && (record.count / EVENT_AT).is_power_of_two();
        is_time.then_some(record.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_offence_of_a_client_is_told_and_then_ever_fewer() {
        let (mut offenders, now) = (Offenders::default(), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        let mut told = |client, offence, now| -> Vec<u64> {
            (0..50).filter_map(|_| offenders.note(client, offence, now)).collect()
        };
        assert_eq!(told(client, Offence::WrongPassword, now), [5, 10, 20, 40]);
        assert_eq!(told(client, Offence::AgentScan, now), [5, 10, 20, 40]);
        assert_eq!(told([192, 0, 2, 2].into(), Offence::AgentScan, now), [5, 10, 20, 40]);
        assert_eq!(told(client, Offence::AgentScan, now + REMEMBERED), [5, 10, 20, 40]);
    }

    #[test]
    fn one_who_errs_now_and_then_is_no_offender() {
        let (mut offenders, start) = (Offenders::default(), Instant::now());
        for number in 0..100 {
            let now = start + number * REMEMBERED;
            assert_eq!(offenders.note([192, 0, 2, 1].into(), Offence::WrongPassword, now), None);
        }
    }

    #[test]
    fn many_clients_fill_no_memory_and_are_forgotten() {
        let (mut offenders, now) = (Offenders::default(), Instant::now());
        for client in 0..3 * OFFENDERS_MAX {
            let client = IpAddr::from(u32::try_from(client).unwrap_or(0).to_be_bytes());
            offenders.note(client, Offence::TlsGarbage, now);
        }
        assert!(offenders.0.len() <= OFFENDERS_MAX);
        let told = (0..5).filter_map(|_| offenders.note([254; 4].into(), Offence::TlsGarbage, now));
        assert_eq!(told.collect::<Vec<_>>(), [5], "nobody hides behind them");
        for client in 0..OFFENDERS_MAX {
            let client = IpAddr::from(u32::try_from(client).unwrap_or(0).to_be_bytes());
            offenders.note(client, Offence::AgentScan, now + REMEMBERED);
        }
        assert!(offenders.0.keys().all(|(_, offence)| *offence == Offence::AgentScan));
    }
}
