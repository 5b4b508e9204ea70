//! The process page: each process, each agent, rejected connections. Pure.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::agents::health::date;
use crate::observe::agent::AgentId;
use crate::observe::agent_stats::{AgentStats, QueueStats, SocketBytes};
use crate::observe::histogram::Distribution;
use crate::observe::stats::Stats;
use crate::observe::status::{AgentStatus, ProcessStatus};
use crate::observe::tcp_stats::TcpStats;
use crate::observe::units::{bytes, short, time};

/// Agents that are shown one by one.
const FLEET_ROWS_MAX: usize = 100;
const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.bad { color: #c33; }
";

/// The page of all processes; the one that serves comes first.
pub(super) fn render(processes: &[ProcessStatus]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                meta http-equiv="refresh" content="5";
                title { "dcv-splice" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "dcv-splice" }
                p.soft { "Values are up to one second old. For monitoring: " a href="/metrics" { "/metrics" } "." }
                (process_table(processes))
                @if let Some(serving) = processes.first() { (fleet(serving)) }
                @for process in processes {
                    @if processes.len() > 1 { h2 { "Agents of process " (process.pid) } } @else { h2 { "Agents" } }
                    (agents(process))
                    (kernel(process))
                }
                (rejected(processes))
            }
        }
    };
    page.into_string()
}

fn process_table(processes: &[ProcessStatus]) -> Markup {
    html! {
        h2 { "Processes" }
        .wide { table {
            tr { th { "process id" } th { "state" } th { "uptime" } th { "connections" } th { "workers" } th { "reloads" }
                 th { "from clients" } th { "to clients" } th { "version" } }
            @for process in processes { tr {
                td { (process.pid) } td { (process.state) } td { (time(process.seconds)) }
                td { (process.connections) } td { (process.workers) }
                td { (process.reloads) @if process.reload_failures > 0 { span.bad { " +" (process.reload_failures) " failed" } } }
                td { (bytes(process.stats.clients.received)) } td { (bytes(process.stats.clients.sent)) }
                td { (process.version) }
            } }
        } }
    }
}

/// The agents that have names or were probed: how many there are, and those that need somebody.
fn fleet(ProcessStatus { agents, sources, .. }: &ProcessStatus) -> Markup {
    if agents.is_empty() && sources.is_empty() {
        return html! {};
    }
    let is_well = |it: &&AgentStatus| it.is_up != Some(false) && it.state == "active";
    let count = |is: fn(&AgentStatus) -> bool| agents.iter().filter(|it| is(it)).count();
    let mut others: Vec<_> = agents.iter().filter(|it| !is_well(it)).collect();
    others.sort_by_key(|it| it.is_up != Some(false));
    html! {
        h2 { "Fleet" }
        p { (agents.len()) " agents: " (count(|it| it.is_up == Some(true))) " up, "
            span.bad[count(|it| it.is_up == Some(false)) > 0] { (count(|it| it.is_up == Some(false))) " down" } ", "
            (count(|it| it.is_up.is_none())) " not probed, "
            (count(|it| it.state == "drain")) " in drain, " (count(|it| it.state == "off")) " off." }
        @for it in sources.iter().filter(|it| !it.problem.is_empty()) {
            p.bad { (it.source) ": " (it.problem) }
        }
        @if !others.is_empty() { .wide { table {
            tr { th { "agent" } th { "address" } th { "state" } th { "health" } th { "reason" } }
            @for it in others.iter().take(FLEET_ROWS_MAX) { tr {
                td { @if it.name.is_empty() { "–" } @else { (it.name) } } td { (it.address) } td { (it.state) }
                td.bad[it.is_up == Some(false)] { (health(it)) } td { (it.reason) }
            } }
        } } }
        @if others.len() > FLEET_ROWS_MAX {
            p.soft { "and " (others.len() - FLEET_ROWS_MAX) " more: dcv-splice agents lists them." }
        }
    }
}

fn health(agent: &AgentStatus) -> String {
    match agent.is_up {
        None => "not probed".to_owned(),
        Some(true) => "up".to_owned(),
        Some(false) => {
            format!("down since {}", humantime::format_rfc3339_seconds(date(agent.down_since_s)))
        }
    }
}

fn agents(process: &ProcessStatus) -> Markup {
    let agents = &process.stats.agents;
    if agents.is_empty() {
        return html! { p.soft { "No agent has been requested yet." } };
    }
    html! {
        .wide { table {
            tr { th { "agent" } th { "sessions" } th { "opened" } th { "requests" } th { "5xx" } th { "connect failures" }
                 th { "connect" } th { "request" } th { "received" } th { "sent" }
                 th { "queue to agent" } th { "to client" } }
            @for (address, stats) in agents.iter().filter(|(address, _)| **address != AgentId::OTHERS) {
                (agent(*address, stats))
            }
            @if let Some(stats) = agents.get(&AgentId::OTHERS) { (agent(AgentId::OTHERS, stats)) }
        } }
        p.soft { "connect and request: p50 / p99. received and sent: bytes on the agent's sockets, TLS included. "
            "queue: bytes that stand in the proxy now, and the time in which they can be taken, p99." }
    }
}

fn agent(address: AgentId, stats: &AgentStats) -> Markup {
    let AgentStats {
        answers,
        sessions,
        sessions_opened,
        connect_failures,
        connect,
        request,
        sockets,
        queue_to_agent,
        queue_to_client,
        ..
    } = stats;
    let SocketBytes { received, sent } = *sockets;
    let failed = answers[5];
    html! { tr {
        td { @if address == AgentId::OTHERS { span.soft { "others, never reached" } } @else { (address) } }
        td { (sessions) } td { (sessions_opened) } td { (answers.iter().sum::<u64>()) }
        td.bad[failed > 0] { (failed) } td.bad[*connect_failures > 0] { (connect_failures) }
        td { (spread(connect)) } td { (spread(request)) }
        td { (bytes(received)) } td { (bytes(sent)) }
        td { (queue(queue_to_agent)) } td { (queue(queue_to_client)) }
    } }
}

/// What stands now, and how long what stood has taken.
fn queue(QueueStats { time, standing, .. }: &QueueStats) -> String {
    match time.percentile(99) {
        None => "–".to_owned(),
        Some(us) => format!("{} / {}", bytes(*standing), short(us)),
    }
}

/// The kernel's TCP statistics, if there are any.
fn kernel(process: &ProcessStatus) -> Markup {
    let Some(account) = &process.kernel else { return html! {} };
    html! {
        h2 { "TCP statistics of the kernel" }
        @if account.agents.is_empty() { p.soft { "No agent has been connected yet." } } @else {
            .wide { table {
                tr { th { "agent" } th { "open" } th { "connections" } th { "failed" } th { "connect" } th { "RTT" }
                     th { "retransmitted" } th { "received" } th { "sent" } th { "not counted by the proxy" } }
                @for (address, stats) in &account.agents {
                    (agent_by_kernel(*address, stats, &process.stats))
                }
            } }
            p.soft { "connect and RTT: upper bound of p50. Bytes that the proxy has not counted are in flight, or were never read." }
        }
    }
}

fn agent_by_kernel(address: AgentId, kernel: &TcpStats, own: &Stats) -> Markup {
    let (received, sent) = kernel.beyond(own.sockets(address));
    html! { tr {
        td { @if address == AgentId::OTHERS { span.soft { "others, never reached" } } @else { (address) } }
        td { (kernel.opened.saturating_sub(kernel.closed)) } td { (kernel.opened) }
        td.bad[kernel.failed > 0] { (kernel.failed) }
        td { (half(&kernel.connect_times)) } td { (half(&kernel.rtts)) }
        td.bad[kernel.retransmitted_segments > 0] { (kernel.retransmitted_segments) }
        td { (bytes(kernel.received)) } td { (bytes(kernel.acknowledged)) }
        td { (received) " / " (sent) " B" }
    } }
}

/// Below what half of the times lie, which are counted by powers of two of microseconds.
fn half(times: &[u64]) -> String {
    let wanted = times.iter().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let power = times.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    match power.filter(|_| wanted > 0).map(|power| 2_u64 << power) {
        None => "–".to_owned(),
        Some(us @ ..1000) => format!("{us} us"),
        Some(us) => format!("{} ms", us / 1000),
    }
}

fn rejected(processes: &[ProcessStatus]) -> Markup {
    let all = || processes.iter().flat_map(|process| &process.rejected).filter(|(_, count)| *count > 0);
    html! {
        h2 { "Rejected" }
        @if all().next().is_none() { p.soft { "None." } }
        @for (reason, count) in all() { p { (reason) ": " (count) } }
    }
}

/// p50 and p99.
fn spread(times: &Distribution) -> String {
    match (times.percentile(50), times.percentile(99)) {
        (Some(half), Some(most)) => format!("{} / {}", short(half), short(most)),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_spread_is_what_half_and_nearly_all_keep_to() {
        assert_eq!(spread(&Distribution::default()), "–");
        let times = Distribution { values: vec![(4000, 99), (60_000_000, 2)], sum: 0 };
        assert_eq!(spread(&times), "4.0 ms / 60 s");
    }

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
    fn what_the_two_accounts_differ_by_is_shown() {
        let agent = AgentId::from(IpAddr::from([10, 0, 0, 5]));
        let mut process = ProcessStatus::default();
        assert!(!render(&[process.clone()]).contains("kernel"));
        let mut stats = AgentStats::default();
        (stats.sockets.received, stats.sockets.sent) = (100, 50);
        process.stats.agents.insert(agent, stats);
        let kernel = TcpStats { received: 107, acknowledged: 46, ..TcpStats::default() };
        process.kernel.get_or_insert_default().agents.insert(agent, kernel);
        assert!(render(&[process]).contains("<td>7 / -4 B</td>"));
    }

    #[test]
    fn a_page_names_every_agent() {
        let mut process = ProcessStatus::default();
        process.stats.agents.insert(IpAddr::from([10, 0, 0, 5]).into(), AgentStats::default());
        process
            .stats
            .agents
            .insert(AgentId::OTHERS, AgentStats { connect_failures: 3, ..AgentStats::default() });
        let page = render(&[process]);
        assert!(page.contains("10.0.0.5") && page.contains("others, never reached"), "{page}");
    }
}
