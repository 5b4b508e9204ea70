//! The page of one agent: how it is reached, how fast it answers, and its sessions, the slowest first. Pure.

use maud::{Markup, html};

use super::overview::{health, label, state};
use super::parts::{self, spread};
use super::{Content, Overview, View};
use crate::control::fleet::AgentReport;
use crate::observe::agent::AgentId;
use crate::observe::agent_stats::{AgentStats, QueueStats};
use crate::observe::tcp_stats::TcpStats;
use crate::observe::units::{bytes, short};

/// Sessions that are shown one by one.
const SESSION_ROWS_MAX: usize = 250;

/// Draws it; `asked` is its name, its address, or its address and port.
pub(super) fn draw(view: &View, overview: &Overview, asked: &str) -> Content {
    let is_asked = |agent: &&AgentReport| {
        agent.address.to_string() == asked
            || agent.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(asked))
            || asked.trim_matches(['[', ']']).parse() == Ok(agent.address.ip())
    };
    let agent = overview.agents.iter().find(is_asked);
    let ip = agent.map(|agent| agent.address.ip()).or_else(|| asked.trim_matches(['[', ']']).parse().ok());
    let stats = ip.and_then(|ip| overview.stats(ip.into()));
    if agent.is_none() && stats.is_none() {
        return Content::gone("No agent of this name or address is known.");
    }
    let kernel =
        overview.processes.iter().filter_map(|it| it.kernel.as_ref()?.agents.get(&AgentId::from(ip?)));
    let sessions =
        overview.sessions.iter().filter(|session| agent.is_some_and(|it| session.agent == it.address));
    Content::of(html! {
        h1 { (agent.map_or_else(|| asked.to_owned(), label)) }
        p { a id="up" href="/" { "All agents" } }
        @if let Some(agent) = agent { (facts(agent)) }
        h2 { "Sessions" }
        (parts::legend())
        (parts::sessions(view, sessions.collect(), SESSION_ROWS_MAX, false))
        @if let Some(stats) = stats { h2 { "Since the process began" } (counts(&stats)) }
        @for stats in kernel { (kernel_counts(stats)) }
    })
}

fn facts(agent: &AgentReport) -> Markup {
    html! {
        dl.facts {
            dt { "address" } dd { (agent.address) }
            dt { "state" } dd.bad[!state(agent).1] { (agent.state) ", " (health(agent)) }
            @if !agent.pools.is_empty() { dt { "pools" } dd { (agent.pools.join(", ")) } }
            @for (key, value) in &agent.tags { dt { (key) } dd { (value) } }
            dt { "desktops" } dd { (agent.desktops) ", with " (agent.sessions) " sessions" }
            dt { "lag, p50" } dd { (parts::lag(&agent.lag)) " " span.soft { (parts::places(&agent.lag).join(", ")) } }
        }
    }
}

fn counts(stats: &AgentStats) -> Markup {
    let [none, _, good, moved, refused, failed] = stats.answers;
    html! {
        dl.facts {
            dt { "requests" } dd {
                (good) " 2xx, " (moved) " 3xx, " (refused) " 4xx, " span.bad[failed > 0] { (failed) " 5xx" } ", " (none) " without an answer"
            }
            dt { "sessions" } dd { (stats.sessions_opened) " opened" }
            dt { "connections" } dd { span.bad[stats.connect_failures > 0] { (stats.connect_failures) " failed" } }
            dt { "bytes" } dd { (bytes(stats.sockets.received)) " from it, " (bytes(stats.sockets.sent)) " to it, TLS included" }
        }
        .wide { table.narrow {
            thead { tr { th { "times" } th { "p50 / p99" } } }
            tbody {
                tr { td { "connect, with TLS" } td { (spread(&stats.connect)) } }
                tr { td { "TLS handshake" } td { (spread(&stats.handshake)) } }
                tr { td { "first byte of an answer" } td { (spread(&stats.first_byte)) } }
                tr { td { "request" } td { (spread(&stats.request)) } }
                tr { td { "in the proxy, to the client" } td { (spread(&stats.residence_to_client)) } }
                tr { td { "in the proxy, to the agent" } td { (spread(&stats.residence_to_agent)) } }
                tr { td { "queue for the client" } td { (queue(&stats.queue_to_client)) } }
                tr { td { "queue for the agent" } td { (queue(&stats.queue_to_agent)) } }
            }
        } }
    }
}

/// How long what stood has taken, and what stands now.
fn queue(QueueStats { time, standing, .. }: &QueueStats) -> String {
    format!("{}, {} now", spread(time), bytes(*standing))
}

/// What the kernel has counted.
fn kernel_counts(stats: &TcpStats) -> Markup {
    html! {
        h2 { "TCP statistics of the kernel" }
        dl.facts {
            dt { "connections" } dd { (stats.opened.saturating_sub(stats.closed)) " open, " (stats.opened) " opened, "
                span.bad[stats.failed > 0] { (stats.failed) " failed" } }
            dt { "retransmitted" } dd.bad[stats.retransmitted_segments > 0] { (stats.retransmitted_segments) " segments" }
            dt { "RTT, p50" } dd { "below " (half(&stats.rtts)) }
            dt { "connect, p50" } dd { "below " (half(&stats.connect_times)) }
            dt { "bytes" } dd { (bytes(stats.received)) " received, " (bytes(stats.acknowledged)) " acknowledged" }
        }
    }
}

/// Below what half of the times lie, which are counted by powers of two of microseconds.
fn half(times: &[u64]) -> String {
    let wanted = times.iter().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let power = times.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    power.filter(|_| wanted > 0).map_or_else(|| "–".to_owned(), |power| short(2 << power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_times_lie_below_a_power_of_two() {
        assert_eq!(half(&[]), "–");
        assert_eq!(half(&[0, 0, 0]), "–");
        assert_eq!(half(&[0, 1]), "4 us");
        let mut times = [0; 20];
        (times[6], times[19]) = (5, 5);
        assert_eq!(half(&times), "128 us");
        times[19] = 6;
        assert_eq!(half(&times), "1048 ms");
    }

    #[test]
    fn an_agent_is_found_by_its_name_its_address_and_both() {
        let agent = r#"{"name":"gpu-07","address":"[2001:db8::5]:8443","state":"drain","health":"down","down_since":0,"down_reason":"TLS: <no>","pools":["cad"],"tags":{"rack":"4"},"sessions":0,"desktops":0}"#;
        let agents = vec![serde_json::from_str(agent).expect("an agent")];
        let overview = Overview { agents, ..Overview::default() };
        let view = View::of("/agent/x").expect("a page");
        for asked in ["gpu-07", "GPU-07", "2001:db8::5", "[2001:db8::5]", "[2001:db8::5]:8443"] {
            let page = draw(&view, &overview, asked);
            assert!(page.is_found, "{asked}");
            assert!(page.html.contains("down since 1970-01-01T00:00:00Z: TLS: &lt;no&gt;"), "{}", page.html);
        }
        assert!(!draw(&view, &overview, "gpu-0").is_found);
    }
}
