//! Where a desktop's time goes: the client's network, the proxy, the agent's network, and the agent. Each is what it adds to
//! the way from a user's input to what comes of it, so that the four together are what the user feels. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::observe::units::{bytes, short};

/// A place that takes so long or longer is shown in a colour, in microseconds: what a user begins to feel.
pub(crate) const SLOW_US: u64 = 50_000;

/// What the kernel knows of one connection (`TCP_INFO`, tcp(7)).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct TcpSample {
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// How much it varies, in microseconds.
    pub rtt_variation_us: u32,
    /// Bytes a second that the other side has taken lately.
    pub delivery_rate: u64,
    /// Segments that were sent again, since the connection began.
    pub retransmitted_segments: u32,
    /// Bytes that the kernel has not sent yet.
    pub unsent: u32,
}

/// As people read it.
impl fmt::Display for TcpSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RTT {} ± {}, takes {}/s, {} segments sent again, {} unsent",
            short(self.rtt_us.into()),
            short(self.rtt_variation_us.into()),
            bytes(self.delivery_rate),
            self.retransmitted_segments,
            bytes(self.unsent.into()),
        )
    }
}

/// The four places, in microseconds; nothing where it can't be seen.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Lag {
    /// The round trip to the client, and the time that what stands for it needs.
    pub client_network_us: Option<u64>,
    /// From when bytes can be read to when they are handed on, both ways.
    pub proxy_us: Option<u64>,
    /// The round trip to the agent, and the time that what stands for it needs.
    pub agent_network_us: Option<u64>,
    /// How long the agent takes to answer. A channel on which it speaks unasked doesn't show that.
    pub agent_us: Option<u64>,
}

impl Lag {
    /// All that can be seen of it.
    pub fn total_us(&self) -> u64 {
        self.places().iter().filter_map(|(_, us)| *us).fold(0, u64::saturating_add)
    }

    /// The places by name, in the order of the way.
    pub fn places(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("client_network", self.client_network_us),
            ("proxy", self.proxy_us),
            ("agent_network", self.agent_network_us),
            ("agent", self.agent_us),
        ]
    }

    /// The middle of several, place by place.
    pub fn median(all: &[Self]) -> Self {
        let middle = |place: fn(&Self) -> Option<u64>| {
            let mut values: Vec<_> = all.iter().filter_map(place).collect();
            let middle = values.len() / 2;
            (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
        };
        Self {
            client_network_us: middle(|lag| lag.client_network_us),
            proxy_us: middle(|lag| lag.proxy_us),
            agent_network_us: middle(|lag| lag.agent_network_us),
            agent_us: middle(|lag| lag.agent_us),
        }
    }
}

/// How fast an agent answers on one channel, by what it says after the client has spoken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answers {
    /// Times that it spoke after it was asked, and how long it took in all, in microseconds.
    asked: u32,
    sum_us: u64,
    /// Times that it spoke unasked.
    unasked: u32,
}

/// Times that are remembered: with so many, half of each number is forgotten.
const REMEMBERED: u32 = 64;

impl Answers {
    pub(super) fn note_answer(&mut self, us: u64) {
        self.asked += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.forget();
    }

    pub(super) fn note_unasked(&mut self) {
        self.unasked += 1;
        self.forget();
    }

    fn forget(&mut self) {
        if self.asked + self.unasked >= REMEMBERED {
            self.asked /= 2;
            self.sum_us /= 2;
            self.unasked /= 2;
        }
    }

    /// How long it takes in the mean, the way there and back included. Nothing where it speaks unasked as often as not: then
    /// what follows a question need not be its answer.
    pub(super) fn mean_us(&self) -> Option<u64> {
        (self.asked > self.unasked).then(|| self.sum_us / u64::from(self.asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_speaks_unasked_does_not_show_how_fast_it_answers() {
        let mut answers = Answers::default();
        assert_eq!(answers.mean_us(), None);
        answers.note_answer(2000);
        answers.note_answer(4000);
        answers.note_unasked();
        assert_eq!(answers.mean_us(), Some(3000));
        answers.note_unasked();
        assert_eq!(answers.mean_us(), None);
        (0..1000).for_each(|_| answers.note_answer(500));
        assert!(answers.mean_us().is_some_and(|us| (500..510).contains(&us)), "{answers:?}");
    }

    #[test]
    fn the_middle_of_several_leaves_out_what_is_not_known() {
        let lag = |client, agent| Lag { client_network_us: Some(client), agent_us: agent, ..Lag::default() };
        let middle = Lag::median(&[lag(5, None), lag(1, Some(7)), lag(3, None)]);
        assert_eq!(middle, lag(3, Some(7)));
        assert_eq!(middle.total_us(), 10);
        assert_eq!(Lag::median(&[]), Lag::default());
    }
}
