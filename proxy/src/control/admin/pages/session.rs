//! The page of one session: who it is, where its time goes, both of its connections, and its last five minutes. Pure.

use maud::{Markup, html};

use super::overview::label;
use super::parts::{self, agent_link, chart, rate};
use super::{Content, Overview};
use crate::control::fleet::SessionReport;
use crate::observe::lag::TcpSample;
use crate::observe::session_stats::HistoryPoint;
use crate::observe::units::{bytes, short, time};

/// Draws it.
pub(super) fn draw(overview: &Overview, id: &str, history: &[HistoryPoint]) -> Content {
    let Some(session) = overview.sessions.iter().find(|session| session.id == id) else {
        return Content::gone("This session has ended, or there was none of this id.");
    };
    let agent = overview.agents.iter().find(|agent| agent.address == session.agent);
    let agent = agent.map_or_else(|| session.agent.to_string(), label);
    let sample = &session.sample;
    let draw = |name, value, now, unit| chart(name, history, session.seconds, value, now, unit);
    let rtt = sample.client_tcp.map(|tcp| tcp.rtt_us.into());
    let charts = [
        draw("RTT to the client", |it| it.client_rtt_us, rtt, short),
        draw("queue", |it| it.queue, Some(sample.queue_to_client + sample.queue_to_agent), bytes),
        draw("rate, both ways", |it| it.rate, Some(sample.rate_to_client + sample.rate_to_agent), rate),
        draw("in the proxy", |it| it.residence_us, sample.lag.proxy_us, short),
    ];
    Content::of(html! {
        h1 { (session.client) @if !session.user.is_empty() { ", " (session.user) } }
        p { a id="up" href=(agent_link(&session.agent.to_string())) { "On " (agent) } }
        h2 { "Lag: " (short(sample.lag.total_us())) }
        (lag(session))
        h2 { "The last five minutes" }
        div.charts { @for chart in charts { (chart) } }
        h2 { "Now" }
        dl.facts {
            dt { "id" } dd { code { (session.id) } " " span.soft { "to end it: " code { "dcv-splice end --id " (session.id) } } }
            dt { "open for" } dd { (time(session.seconds)) }
            dt { "rate" } dd { (rate(sample.rate_to_client)) " to the client, " (rate(sample.rate_to_agent)) " to the agent" }
            dt { "so far" } dd { (bytes(sample.to_client)) " to the client, " (bytes(sample.to_agent)) " to the agent" }
            dt { "queue" } dd { (bytes(sample.queue_to_client)) " for the client, " (bytes(sample.queue_to_agent)) " for the agent" }
            dt { "in the proxy" } dd { "99 of 100 within " (short(sample.residence_p99_us)) }
            dt { "client's TCP" } dd { (tcp(sample.client_tcp)) }
            dt { "agent's TCP" } dd { (tcp(sample.agent_tcp)) }
        }
    })
}

/// The bar, and what each of its parts is.
fn lag(session: &SessionReport) -> Markup {
    html! {
        div.wide-bar { (parts::lag(&session.sample.lag)) }
        ul.places { @for (number, place) in parts::places(&session.sample.lag).iter().enumerate() {
            li { svg viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("place{number}")) width="10" height="10" {} } " " (place) }
        } }
    }
}

fn tcp(sample: Option<TcpSample>) -> String {
    sample.map_or_else(|| "not known: it has moved nothing yet".to_owned(), |tcp| tcp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_shown_with_what_it_was_like() {
        let text = r#"{"id":"7-1","name":null,"agent":"10.0.0.5:8443","client":"192.0.2.7","user":"<ann>","seconds":100,
            "rate_to_client":5000,"client_tcp":{"rtt_us":31000},"lag":{"client_network_us":31000}}"#;
        let overview = Overview {
            sessions: vec![serde_json::from_str(text).expect("a session")],
            ..Overview::default()
        };
        let history = [HistoryPoint { at_s: 95, client_rtt_us: 31_000, ..HistoryPoint::default() }];
        let page = draw(&overview, "7-1", &history);
        assert!(page.is_found);
        for words in [
            "192.0.2.7, &lt;ann&gt;",
            "Lag: 31 ms",
            "5.0 kB/s to the client",
            "RTT 31 ms",
            "agent unknown",
            "dcv-splice end --id 7-1",
        ] {
            assert!(page.html.contains(words), "{words}: {}", page.html);
        }
        assert!(!draw(&overview, "7-2", &[]).is_found);
    }
}
