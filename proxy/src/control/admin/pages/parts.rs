//! What several pages have: bars of where the time goes, charts, tables of sessions, cells. Pure.

use maud::{Markup, html};

use super::{Order, View, encoded};
use crate::control::fleet::SessionReport;
use crate::observe::histogram::Distribution;
use crate::observe::lag::{Lag, SLOW_US};
use crate::observe::session_stats::HistoryPoint;
use crate::observe::units::{bytes, short, time};

/// The time that fills a bar, in microseconds: nobody likes to work with more. What is longer fills it too.
const BAR_US: u64 = 200_000;
/// Of a bar, in its own units.
const BAR_WIDTH: u64 = 1000;
/// Seconds that a chart shows, each a unit wide.
const CHART_S: u64 = 300;
const CHART_HEIGHT: u64 = 60;
/// Seconds that a point of a chart stands for.
const POINT_S: u64 = 5;
/// The places in the order of [`Lag::places`].
pub(super) const PLACES: [&str; 4] = ["client network", "proxy", "agent network", "agent"];

/// Where the time goes, as a bar and in all.
pub(super) fn lag(lag: &Lag) -> Markup {
    let total = lag.total_us();
    if lag.places().iter().all(|(_, us)| us.is_none()) {
        return html! { span.soft { "–" } };
    }
    let whole = total.max(BAR_US);
    let mut at = 0;
    let parts = lag.places().map(|(_, us)| {
        let width = us.unwrap_or(0).saturating_mul(BAR_WIDTH) / whole;
        at += width;
        (at - width, width)
    });
    let told = places(lag).join(", ");
    html! {
        span.lag {
            svg viewBox=(format!("0 0 {BAR_WIDTH} 10")) preserveAspectRatio="none" role="img" aria-label=(told) {
                title { (told) }
                @for (number, (x, width)) in parts.iter().enumerate().filter(|(_, (_, width))| *width > 0) {
                    rect class=(format!("place{number}")) x=(x) width=(width) height="10" {}
                }
            }
            span.slow[total >= SLOW_US] { (short(total)) }
        }
    }
}

/// Each place and its time.
pub(super) fn places(lag: &Lag) -> Vec<String> {
    let told = |(name, (_, us)): (&&str, (&str, Option<u64>))| match us {
        Some(us) => format!("{name} {}", short(us)),
        None => format!("{name} unknown"),
    };
    PLACES.iter().zip(lag.places()).map(told).collect()
}

/// What the colours of bars mean.
pub(super) fn legend() -> Markup {
    html! {
        p.legend {
            "Lag, p50: "
            @for (number, name) in PLACES.iter().enumerate() {
                svg viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("place{number}")) width="10" height="10" {} }
                " " (name) " "
            }
            span.soft { "A bar is full at " (short(BAR_US)) "." }
        }
    }
}

/// The head of a column by which the rows of a table can be ordered.
pub(super) fn sortable(view: &View, table: &str, order: Order, name: &str) -> Markup {
    let is_chosen = view.order == order;
    html! {
        th.text[order == Order::Name] aria-sort=[is_chosen.then_some(if order == Order::Name { "ascending" } else { "descending" })] {
            a id=(format!("sort-{table}-{}", order.word())) href=(view.sorted(order)) { (name) }
        }
    }
}

/// Bytes a second.
pub(super) fn rate(bytes_a_second: u64) -> String {
    if bytes_a_second == 0 { "–".to_owned() } else { format!("{}/s", bytes(bytes_a_second)) }
}

/// p50 and p99 of times.
pub(super) fn spread(times: &Distribution) -> String {
    match (times.percentile(50), times.percentile(99)) {
        (Some(half), Some(most)) => format!("{} / {}", short(half), short(most)),
        _ => "–".to_owned(),
    }
}

/// How long ago, of times in seconds since 1970.
pub(super) fn ago(now_s: u64, at_s: u64) -> String {
    format!("{} ago", time(now_s.saturating_sub(at_s)))
}

/// Where an agent's page is.
pub(super) fn agent_link(address: &str) -> String {
    format!("/agent/{}", encoded(address))
}

/// Sessions in an order, the first of them alone where there are many. `with_agent`: they are of several.
pub(super) fn sessions(
    view: &View,
    mut all: Vec<&SessionReport>,
    rows_max: usize,
    with_agent: bool,
) -> Markup {
    let name = |it: &SessionReport| it.name.clone().unwrap_or_else(|| it.agent.to_string());
    all.sort_by_cached_key(|it| (name(it), it.client, it.id.clone()));
    match view.order {
        Order::Lag => all.sort_by_key(|it| std::cmp::Reverse(it.sample.lag.total_us())),
        Order::Rate => {
            all.sort_by_key(|it| std::cmp::Reverse(it.sample.rate_to_client + it.sample.rate_to_agent));
        }
        Order::Sessions => all.sort_by_key(|it| std::cmp::Reverse(it.seconds)),
        Order::Name => {}
    }
    let others = all.len().saturating_sub(rows_max);
    html! {
        @if all.is_empty() { p.soft { "None." } } @else {
            .wide { table {
                thead { tr {
                    th { "client" }
                    @if with_agent { (sortable(view, "sessions", Order::Name, "agent")) }
                    (sortable(view, "sessions", Order::Lag, "lag")) th.text { "user" } (sortable(view, "sessions", Order::Sessions, "open for"))
                    (sortable(view, "sessions", Order::Rate, "to client")) th.extra { "to agent" } th.extra { "queue" }
                } }
                tbody { @for it in all.iter().take(rows_max) { tr {
                    td { a id=(format!("s{}", it.id)) href=(format!("/session/{}", encoded(&it.id))) { (it.client) } }
                    @if with_agent { td.text { (name(it)) } }
                    td { (lag(&it.sample.lag)) }
                    td.text { @if it.user.is_empty() { span.soft { "–" } } @else { (it.user) } }
                    td { (time(it.seconds)) } td { (rate(it.sample.rate_to_client)) } td.extra { (rate(it.sample.rate_to_agent)) }
                    td.extra { (queue(it.sample.queue_to_client + it.sample.queue_to_agent)) }
                } } }
            } }
            @if others > 0 { p.soft { "and " (others) " more: filter by agent, client or user." } }
        }
    }
}

fn queue(standing: u64) -> String {
    if standing == 0 { "–".to_owned() } else { bytes(standing) }
}

/// Five minutes of one value, and what it is `now`, where that is known. `open_s`: how long the session is open.
pub(super) fn chart(
    name: &str,
    history: &[HistoryPoint],
    open_s: u64,
    value: fn(&HistoryPoint) -> u32,
    now: Option<u64>,
    unit: fn(u64) -> String,
) -> Markup {
    let age = |point: &HistoryPoint| open_s.saturating_sub(point.at_s.into());
    let seen = || history.iter().filter(|point| age(point) <= CHART_S);
    let most = seen().map(value).max().unwrap_or(0);
    let bars = seen().filter(|point| value(point) > 0).map(|point| {
        let x = (CHART_S - age(point)).min(CHART_S - POINT_S);
        // Whatever is there is seen.
        (x, u64::from(value(point)) * (CHART_HEIGHT - 1) / u64::from(most.max(1)) + 1)
    });
    let bars: Vec<_> = bars.collect();
    let told = format!("{name}: up to {} in the last five minutes", unit(most.into()));
    html! {
        figure {
            figcaption { b { (name) } " " (now.map_or_else(|| "–".to_owned(), unit))
                span.soft { " up to " (unit(most.into())) } }
            svg.chart viewBox=(format!("0 0 {CHART_S} {CHART_HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(told) {
                @for (x, height) in bars {
                    rect x=(x) y=(CHART_HEIGHT - height) width=(POINT_S - 1) height=(height) {}
                }
            }
            p.axis { span { "5 min ago" } span { "now" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_each_place_in_its_share_and_is_never_longer_than_whole() {
        let bar = |us: [Option<u64>; 4]| {
            let [client_network_us, proxy_us, agent_network_us, agent_us] = us;
            lag(&Lag { client_network_us, proxy_us, agent_network_us, agent_us }).into_string()
        };
        assert!(!bar([None; 4]).contains("svg"));
        let short = bar([Some(100_000), Some(20), None, Some(20_000)]);
        assert!(short.contains("class=\"place0\" x=\"0\" width=\"500\""), "{short}");
        assert!(
            short.contains("class=\"place3\" x=\"500\" width=\"100\"") && !short.contains("place2"),
            "{short}"
        );
        assert!(
            short.contains("client network 100 ms, proxy 20 us, agent network unknown, agent 20 ms"),
            "{short}"
        );
        assert!(short.contains("<span class=\"slow\">120 ms</span>"), "{short}");
        let long = bar([Some(3_000_000), Some(1_000_000), None, None]);
        assert!(long.contains("x=\"0\" width=\"750\"") && long.contains("x=\"750\" width=\"250\""), "{long}");
        assert!(bar([Some(u64::MAX), Some(u64::MAX), None, None]).contains("svg"));
    }

    #[test]
    fn a_chart_has_what_was_where_it_was() {
        let point = |at_s, rate| HistoryPoint { at_s, rate, ..HistoryPoint::default() };
        let draw = |points: &[HistoryPoint], open_s| {
            chart("rate", points, open_s, |it| it.rate, None, rate).into_string()
        };
        let drawn = draw(&[point(0, 9), point(700, 1000), point(995, 0), point(999, 1)], 1000);
        // The first one is too long ago, and of nothing there is nothing to see.
        assert_eq!(drawn.matches("<rect").count(), 2, "{drawn}");
        assert!(drawn.contains("<rect x=\"0\" y=\"0\" width=\"4\" height=\"60\">"), "{drawn}");
        assert!(drawn.contains("<rect x=\"295\" y=\"59\" width=\"4\" height=\"1\">"), "{drawn}");
        assert!(draw(&[], 0).contains("up to –"));
        // What is no longer seen makes nothing smaller.
        let drawn = draw(&[point(0, 1_000_000), point(995, 10)], 1000);
        assert!(drawn.contains("up to 10 B/s") && drawn.contains("height=\"60\""), "{drawn}");
    }

    #[test]
    fn a_spread_is_what_half_and_nearly_all_keep_to() {
        assert_eq!(spread(&Distribution::default()), "–");
        let times = Distribution { values: vec![(4000, 99), (60_000_000, 2)], sum: 0 };
        assert_eq!(spread(&times), "4.0 ms / 60 s");
    }
}
