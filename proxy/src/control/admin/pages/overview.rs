//! The page of everything: what needs somebody, all agents, the slowest sessions, processes and workers, what has ended lately, and
//! certificates. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use maud::{Markup, html};

use super::parts::{self, agent_link, ago, rate};
use super::{Order, Overview, View};
use crate::agents::health::date;
use crate::control::fleet::{AgentReport, SessionReport};
use crate::observe::agent::AgentId;
use crate::observe::histogram::Distribution;
use crate::observe::recent::RecentEnd;
use crate::observe::status::ProcessStatus;
use crate::observe::units::{bytes, short, time};

/// Agents that are shown one by one.
const AGENT_ROWS_MAX: usize = 250;
/// Of those without a name or a session.
const OTHER_ROWS_MAX: usize = 20;
/// Sessions that are shown of all, and of those that a filter names.
const SLOWEST: usize = 10;
const FOUND_MAX: usize = 100;
/// Endings and rejections of each kind that are shown.
const RECENT_ROWS: usize = 10;
/// Agents that are down and are named among what needs somebody.
const NAMED_PROBLEMS: usize = 5;
/// A certificate that expires sooner needs somebody, in seconds.
const EXPIRY_S: i64 = 14 * 86_400;
/// A worker that is woken later needs somebody, in microseconds.
const WAKE_UP_US: u64 = 5000;

/// Bytes a second, by agent.
type Rates = HashMap<SocketAddr, (u64, u64)>;

/// Draws it.
pub(super) fn draw(view: &View, overview: &Overview) -> Markup {
    let mut rates = Rates::new();
    for session in &overview.sessions {
        let (to_client, to_agent) = rates.entry(session.agent).or_default();
        *to_client += session.sample.rate_to_client;
        *to_agent += session.sample.rate_to_agent;
    }
    html! {
        (summary(overview, &rates))
        (problems(overview))
        (agents(view, overview, &rates))
        (others(view, overview))
        (sessions(view, overview))
        (processes(overview))
        (recent(overview))
        (certificates(overview))
    }
}

fn summary(overview: &Overview, rates: &Rates) -> Markup {
    let agents = &overview.agents;
    let count = |is: fn(&AgentReport) -> bool| agents.iter().filter(|agent| is(agent)).count();
    let (up, down) = (count(|it| it.health == "up"), count(|it| it.health == "down"));
    let desktops: u64 = agents.iter().map(|agent| agent.desktops).sum();
    let (to_client, to_agent) =
        rates.values().fold((0, 0), |(to_client, to_agent), rate| (to_client + rate.0, to_agent + rate.1));
    let residence = overview.processes.iter().flat_map(|process| process.stats.agents.values());
    let residence = residence.fold(Distribution::default(), |mut all, agent| {
        all.add(&agent.residence_to_client);
        all
    });
    let tile = |name: &str, value: String, more: String| {
        html! { div { dt { (name) } dd { b { (value) } span.soft { (more) } } } }
    };
    html! {
        h1.hidden { "All agents" }
        dl.tiles {
            (tile("agents", agents.len().to_string(), format!("{up} up, {down} down, {} in drain", count(|it| it.state == "drain"))))
            (tile("desktops", desktops.to_string(), format!("{} sessions", overview.sessions.len())))
            (tile("to clients", rate(to_client), format!("to agents {}", rate(to_agent))))
            (tile("in the proxy", parts::spread(&residence), "p50 / p99, to clients".to_owned()))
        }
    }
}

/// What needs somebody, in words.
fn problems(overview: &Overview) -> Markup {
    let mut problems = Vec::new();
    let down: Vec<_> = overview.agents.iter().filter(|agent| agent.health == "down").collect();
    for agent in down.iter().take(NAMED_PROBLEMS) {
        problems.push(format!("{} is {}", label(agent), health(agent)));
    }
    if down.len() > NAMED_PROBLEMS {
        problems.push(format!("{} more agents are down", down.len() - NAMED_PROBLEMS));
    }
    for process in &overview.processes {
        problems.extend(process_problems(process, overview.at_s));
    }
    html! {
        @if !problems.is_empty() {
            section.problems aria-label="What needs somebody" { ul { @for problem in problems { li { (problem) } } } }
        }
    }
}

fn process_problems(process: &ProcessStatus, at_s: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let sources = process.sources.iter().filter(|source| !source.problem.is_empty());
    problems.extend(sources.map(|source| format!("{}: {}", source.source, source.problem)));
    if process.has_reload_failed {
        problems.push("The latest reload has failed: the log says why. The former settings hold.".to_owned());
    }
    let lines = process.log_lines_dropped + process.access_log_lines_dropped;
    if lines > 0 {
        problems.push(format!("{lines} log lines were dropped: their output does not take them in time."));
    }
    if process.stats.wake_up_us >= WAKE_UP_US {
        let delay = short(process.stats.wake_up_us);
        problems
            .push(format!("A worker waits {delay} for a core: this host has too few, or others use them."));
    }
    for certificate in &process.certificates {
        let left = certificate.not_after_s - i64::try_from(at_s).unwrap_or(i64::MAX);
        if left < EXPIRY_S {
            problems.push(format!("The certificate of {} {}", certificate.name, expiry(left)));
        }
    }
    problems
}

fn expiry(left_s: i64) -> String {
    match u64::try_from(left_s) {
        Ok(left) => format!("expires in {}.", time(left)),
        Err(_) => "has expired.".to_owned(),
    }
}

/// How an agent is called.
pub(super) fn label(agent: &AgentReport) -> String {
    agent.name.clone().unwrap_or_else(|| agent.address.to_string())
}

/// The health of an agent, and since when and why it is bad.
pub(super) fn health(agent: &AgentReport) -> String {
    match (&agent.down_reason, agent.down_since) {
        (Some(reason), Some(since)) => {
            format!("down since {}: {reason}", humantime::format_rfc3339_seconds(date(since)))
        }
        _ => agent.health.clone(),
    }
}

/// The state of an agent in a word, and whether that is good.
pub(super) fn state(agent: &AgentReport) -> (&str, bool) {
    match (&*agent.health, &*agent.state) {
        ("down", _) => ("down", false),
        ("up", "active") => ("up", true),
        (_, "active") => ("not probed", true),
        (_, state) => (state, false),
    }
}

fn agents(view: &View, overview: &Overview, rates: &Rates) -> Markup {
    let has_filter = |agent: &&AgentReport| {
        view.has_filter(&[&label(agent), &agent.address.to_string(), state(agent).0, &agent.pools.join(" ")])
    };
    let mut listed: Vec<_> = overview.agents.iter().filter(has_filter).collect();
    let rate_of = |agent: &AgentReport| rates.get(&agent.address).copied().unwrap_or_default();
    listed.sort_by_cached_key(|agent| label(agent));
    match view.order {
        Order::Lag => listed.sort_by_key(|it| std::cmp::Reverse(it.lag.total_us())),
        Order::Rate => listed.sort_by_key(|it| std::cmp::Reverse(rate_of(it).0)),
        Order::Sessions => listed.sort_by_key(|it| std::cmp::Reverse((it.desktops, it.sessions))),
        Order::Name => {}
    }
    let others = listed.len().saturating_sub(AGENT_ROWS_MAX);
    html! {
        h2 { "Agents" }
        @if overview.agents.is_empty() {
            p.soft { "None has a name, and none has a session. Agents that are asked for appear here, and so do those of --agents-file." }
        } @else if listed.is_empty() { p.soft { "None has “" (view.filter) "” in its name, address, state or pools." } } @else {
            (parts::legend())
            .wide { table {
                thead { tr {
                    (parts::sortable(view, "agents", Order::Name, "agent")) th.text { "state" } (parts::sortable(view, "agents", Order::Lag, "lag"))
                    (parts::sortable(view, "agents", Order::Sessions, "desktops")) th.extra { "sessions" }
                    (parts::sortable(view, "agents", Order::Rate, "to clients")) th.extra { "to agent" }
                } }
                tbody { @for agent in listed.iter().take(AGENT_ROWS_MAX) {
                    @let ((word, is_good), (to_client, to_agent)) = (state(agent), rate_of(agent));
                    @let address = agent.address.to_string();
                    tr {
                        td { a id=(format!("a{address}")) href=(agent_link(&address)) { (label(agent)) } }
                        td.text.bad[!is_good] title=[agent.down_reason.as_deref()] { (word) }
                        td { (parts::lag(&agent.lag)) }
                        td { (agent.desktops) } td.extra { (agent.sessions) } td { (rate(to_client)) } td.extra { (rate(to_agent)) }
                    }
                } }
            } }
            @if others > 0 { p.soft { "and " (others) " more: filter by name, address, state or pool." } }
        }
    }
}

/// Agents that were asked for, and have neither a name nor health nor a session.
fn others(view: &View, overview: &Overview) -> Markup {
    let listed: HashSet<AgentId> = overview.agents.iter().map(|agent| agent.address.ip().into()).collect();
    let all: BTreeSet<_> =
        overview.processes.iter().flat_map(|process| process.stats.agents.keys()).collect();
    let is_other = |id: &&AgentId| !listed.contains(*id) && view.has_filter(&[&id.to_string()]);
    let others: Vec<_> = all.into_iter().filter(is_other).collect();
    html! {
        @if !others.is_empty() {
            h2 { "Asked for, without a name or a session" }
            .wide { table {
                thead { tr { th { "agent" } th { "requests" } th { "5xx" } th { "sessions so far" } th { "connect failures" } } }
                tbody { @for id in others.iter().take(OTHER_ROWS_MAX) {
                    @let stats = overview.stats(**id).unwrap_or_default();
                    tr {
                        td { @if **id == AgentId::OTHERS { "others, never reached" } @else {
                            a id=(format!("a{id}")) href=(agent_link(&id.to_string())) { (id) }
                        } }
                        td { (stats.answers.iter().sum::<u64>()) } td.bad[stats.answers[5] > 0] { (stats.answers[5]) }
                        td { (stats.sessions_opened) } td.bad[stats.connect_failures > 0] { (stats.connect_failures) }
                    }
                } }
            } }
            @if others.len() > OTHER_ROWS_MAX { p.soft { "and " (others.len() - OTHER_ROWS_MAX) " more: filter by address." } }
        }
    }
}

fn sessions(view: &View, overview: &Overview) -> Markup {
    let is_searched = !view.filter.is_empty();
    let has_filter = |it: &&SessionReport| {
        let name = it.name.clone().unwrap_or_default();
        view.has_filter(&[&name, &it.agent.to_string(), &it.client.to_string(), &it.user])
    };
    let found: Vec<_> = overview.sessions.iter().filter(has_filter).collect();
    html! {
        h2 { @if is_searched { "Sessions with “" (view.filter) "”" } @else { "Sessions" } }
        (parts::sessions(view, found, if is_searched { FOUND_MAX } else { SLOWEST }, true))
    }
}

fn processes(overview: &Overview) -> Markup {
    html! {
        h2 { "Processes and workers" }
        .wide { table {
            thead { tr {
                th { "process" } th.text { "state" } th { "version" } th { "uptime" } th { "connections" } th { "sessions" }
                th { "from clients" } th { "to clients" } th { "reloads" } th { "CPU" } th { "wake-up delay" }
            } }
            tbody { @for process in &overview.processes { (process_rows(process, overview)) } }
        } }
    }
}

fn process_rows(process: &ProcessStatus, overview: &Overview) -> Markup {
    let sessions: u64 = process.stats.agents.values().map(|agent| agent.sessions).sum();
    let memory = process.usage.resident_bytes.map(|used| format!(", {}", bytes(used))).unwrap_or_default();
    html! {
        tr {
            td { (process.pid) span.soft { (memory) } } td.text.bad[process.state != "serving"] { (process.state) } td { (process.version) }
            td { (time(process.seconds)) } td { (process.connections) } td { (sessions) }
            td { (bytes(process.stats.clients.received)) } td { (bytes(process.stats.clients.sent)) }
            td { (process.reloads) @if process.reload_failures > 0 { span.bad { ", " (process.reload_failures) " failed" } } }
            td {} td { (short(process.stats.wake_up_us)) }
        }
        @for (number, worker) in process.worker.iter().enumerate() { tr.part {
            td { "worker " (number) } td.text {} td {} td {} td { (worker.connections) } td { (worker.sessions) }
            td { (bytes(worker.clients.received)) } td { (bytes(worker.clients.sent)) } td {}
            td { @match overview.cpu_percent.get(&(process.pid, number)) { Some(percent) => (format!("{percent} %")), None => "–" } }
            td { (short(worker.wake_up_us)) }
        } }
    }
}

fn recent(overview: &Overview) -> Markup {
    let latest = |list: fn(&ProcessStatus) -> &Vec<RecentEnd>| {
        let mut all: Vec<_> = overview.processes.iter().flat_map(list).collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.at_s));
        all.truncate(RECENT_ROWS);
        all
    };
    let mut rejections: Vec<_> = overview.processes.iter().flat_map(|it| &it.recent_rejections).collect();
    rejections.sort_by_key(|it| std::cmp::Reverse(it.at_s));
    let counted = overview.processes.iter().flat_map(|it| &it.rejected).filter(|(_, count)| *count > 0);
    html! {
        h2 { "Sessions that have ended" }
        (ended(&latest(|it| &it.recent_sessions), overview.at_s))
        h2 { "Requests that failed" }
        (failed(&latest(|it| &it.recent_failures), overview.at_s))
        h2 { "Rejected" }
        @if rejections.is_empty() { p.soft { "Nobody lately." } } @else { .wide { table {
            thead { tr { th { "when" } th.text { "client" } th.text { "reason" } } }
            tbody { @for it in rejections.iter().take(RECENT_ROWS) { tr {
                td { (ago(overview.at_s, it.at_s)) } td.text { (client(it.client)) } td.text { (it.reason) }
            } } }
        } } }
        p.soft { "In all: " @for (number, (reason, count)) in counted.enumerate() { @if number > 0 { ", " } (reason) " " (count) } "." }
    }
}

fn ended(ends: &[&RecentEnd], now_s: u64) -> Markup {
    html! {
        @if ends.is_empty() { p.soft { "None lately." } } @else { .wide { table {
            thead { tr {
                th { "when" } th.text { "agent" } th.text { "client" } th.text { "user" } th { "after" } th { "to client" }
                th.text { "reason" } th.text { "id" }
            } }
            tbody { @for it in ends { tr {
                td { (ago(now_s, it.at_s)) } td.text { (it.agent) } td.text { (client(it.client)) } td.text { (it.user) }
                td { (time(it.seconds)) } td { (bytes(it.to_client)) } td.text { (it.reason) } td.text { code { (it.id) } }
            } } }
        } } }
    }
}

fn failed(failures: &[&RecentEnd], now_s: u64) -> Markup {
    html! {
        @if failures.is_empty() { p.soft { "None lately." } } @else { .wide { table {
            thead { tr { th { "when" } th.text { "client" } th { "status" } th.text { "reason" } th.text { "id" } } }
            tbody { @for it in failures { tr {
                td { (ago(now_s, it.at_s)) } td.text { (client(it.client)) } td { (it.status) } td.text.long { (it.reason) }
                td.text { code { (it.id) } }
            } } }
        } } }
    }
}

fn client(client: Option<IpAddr>) -> String {
    client.map_or_else(|| "–".to_owned(), |client| client.to_string())
}

fn certificates(overview: &Overview) -> Markup {
    let serving = overview.processes.first().map_or(&[][..], |process| &process.certificates);
    let left = |not_after_s: i64| not_after_s - i64::try_from(overview.at_s).unwrap_or(i64::MAX);
    html! {
        h2 { "Certificates" }
        @if serving.is_empty() { p.soft { "None is shown to clients." } } @else { .wide { table {
            thead { tr { th { "name" } th.text { "file" } th { "expires" } } }
            tbody { @for it in serving { tr {
                td { (it.name) } td.text { (it.file) }
                td.bad[left(it.not_after_s) < EXPIRY_S] { (expiry(left(it.not_after_s)).trim_end_matches('.')) }
            } } }
        } } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::agent_stats::AgentStats;
    use crate::observe::status::{CertificateStatus, SourceStatus};

    #[test]
    fn what_needs_somebody_is_said_and_nothing_else() {
        let well = ProcessStatus {
            certificates: vec![CertificateStatus {
                not_after_s: 40 * 86_400,
                ..CertificateStatus::default()
            }],
            ..ProcessStatus::default()
        };
        assert_eq!(process_problems(&well, 0), Vec::<String>::new());
        let named =
            |not_after_s| CertificateStatus { name: "p".to_owned(), not_after_s, file: String::new() };
        let mut ill = ProcessStatus {
            has_reload_failed: true,
            access_log_lines_dropped: 3,
            ..ProcessStatus::default()
        };
        ill.certificates = vec![named(86_400 * 2 + 100), named(50)];
        ill.stats.wake_up_us = 20_000;
        ill.sources =
            vec![SourceStatus { source: "dns".to_owned(), agents: 1, problem: "no answer".to_owned() }];
        let told = process_problems(&ill, 100).join("\n");
        for words in [
            "dns: no answer",
            "latest reload has failed",
            "3 log lines",
            "waits 20 ms for a core",
            "of p expires in 2 d 0 h.",
            "of p has expired.",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }

    #[test]
    fn more_agents_than_are_shown_are_counted() {
        let agents: Vec<AgentReport> = (0..300_u32)
            .map(|number| {
                let text = format!(r#"{{"name":"desk{number:03}","address":"10.0.{}.{}:8443","state":"active","health":"down","pools":[],"tags":{{}},"sessions":0,"desktops":0}}"#, number / 256, number % 256);
                serde_json::from_str(&text).expect("an agent")
            })
            .collect();
        let overview = Overview { agents, ..Overview::default() };
        let drawn = |query: &str| draw(&View::of(query).expect("a page"), &overview).into_string();
        let page = drawn("/");
        assert!(
            page.contains("and 50 more") && page.contains("desk249") && !page.contains("desk250"),
            "{page}"
        );
        assert!(page.contains("295 more agents are down"), "{page}");
        let found = drawn("/?filter=Desk29");
        assert!(
            found.contains("desk299") && !found.contains("desk280<") && !found.contains("more: filter"),
            "{found}"
        );
        assert!(drawn("/?filter=nobody").contains("None has “nobody”"));
        assert!(
            draw(&View::of("/").expect("a page"), &Overview::default())
                .into_string()
                .contains("None has a name")
        );
    }

    #[test]
    fn agents_without_a_name_or_a_session_are_told_apart() {
        let mut process = ProcessStatus::default();
        process.stats.agents.insert(IpAddr::from([10, 0, 0, 5]).into(), AgentStats::default());
        process
            .stats
            .agents
            .insert(AgentId::OTHERS, AgentStats { connect_failures: 3, ..AgentStats::default() });
        let overview = Overview { processes: vec![process], ..Overview::default() };
        let page = draw(&View::of("/").expect("a page"), &overview).into_string();
        assert!(
            page.contains("href=\"/agent/10%2E0%2E0%2E5\"") && page.contains("others, never reached"),
            "{page}"
        );
    }
}
