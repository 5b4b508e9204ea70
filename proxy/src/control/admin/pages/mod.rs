//! The pages of the admin listener: all agents, one agent, one session. Each is drawn whole, and again as it changes. Pure: knows no
//! socket and changes nothing. Uses `observe` and the reports of the fleet.

mod agent;
mod overview;
mod parts;
mod session;

use std::borrow::Cow;

use maud::{DOCTYPE, Markup, html};

use super::sampler::Overview;
use crate::observe::session_stats::HistoryPoint;

/// Bytes of a filter.
const FILTER_BYTES_MAX: usize = 64;

/// Which page is looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Page {
    Overview,
    /// Of the agent of this address or name.
    Agent(String),
    /// Of the session of this id.
    Session(String),
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Order {
    /// The most lag.
    #[default]
    Lag,
    /// The most bytes a second.
    Rate,
    /// The most sessions; of sessions, the longest.
    Sessions,
    /// The first name.
    Name,
}

impl Order {
    const ALL: [Self; 4] = [Self::Lag, Self::Rate, Self::Sessions, Self::Name];

    fn word(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::Rate => "rate",
            Self::Sessions => "sessions",
            Self::Name => "name",
        }
    }
}

/// What somebody looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct View {
    page: Page,
    order: Order,
    /// What agents, clients and users have to have in them; in lower case.
    filter: String,
}

impl View {
    /// The page of a path; nothing where there is none.
    pub(super) fn of(target: &str) -> Option<Self> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let decoded =
            |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned);
        let page = if path == "/" {
            Page::Overview
        } else if let Some(agent) = path.strip_prefix("/agent/") {
            Page::Agent(decoded(agent)?)
        } else {
            Page::Session(decoded(path.strip_prefix("/session/")?)?)
        };
        let mut view = Self { page, order: Order::default(), filter: String::new() };
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match key {
                "sort" => {
                    view.order =
                        Order::ALL.into_iter().find(|order| order.word() == value).unwrap_or_default();
                }
                "filter" if value.len() <= FILTER_BYTES_MAX => {
                    view.filter = decoded(&value.replace('+', " "))?.trim().to_lowercase();
                }
                _ => {}
            }
        }
        Some(view)
    }

    /// The session whose last five minutes are looked at.
    pub(super) fn session(&self) -> Option<&str> {
        match &self.page {
            Page::Session(id) => Some(id),
            Page::Overview | Page::Agent(_) => None,
        }
    }

    fn has_filter(&self, texts: &[&str]) -> bool {
        texts.iter().any(|text| text.to_lowercase().contains(&self.filter))
    }

    /// The same page in another order.
    fn sorted(&self, order: Order) -> String {
        let filter =
            if self.filter.is_empty() { String::new() } else { format!("&filter={}", encoded(&self.filter)) };
        format!("?sort={}{filter}", order.word())
    }
}

/// As part of a path or query.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What is drawn.
pub(super) struct Content {
    /// The changing part of the page.
    pub(super) html: String,
    /// What is looked at is there.
    pub(super) is_found: bool,
}

impl Content {
    fn of(html: Markup) -> Self {
        Self { html: html.into_string(), is_found: true }
    }

    /// Of something that has gone, or never was.
    fn gone(text: &str) -> Self {
        let html = html! { h1 { "Not there" } p { (text) } p { a id="up" href="/" { "All agents" } } };
        Self { is_found: false, ..Self::of(html) }
    }
}

/// The changing part of the page.
pub(super) fn content(view: &View, overview: &Overview, history: &[HistoryPoint]) -> Content {
    match &view.page {
        Page::Overview => Content::of(overview::draw(view, overview)),
        Page::Agent(agent) => agent::draw(view, overview, agent),
        Page::Session(id) => session::draw(overview, id, history),
    }
}

/// The whole page.
pub(super) fn document(view: &View, content: &Content) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                meta name="color-scheme" content="light dark";
                title { "dcv-splice" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/style.css";
                noscript { meta http-equiv="refresh" content="5"; }
                script src="/live.js" defer {}
            }
            body {
                header {
                    a.brand href="/" { "dcv-splice" }
                    form role="search" action="/" {
                        input #filter type="search" name="filter" value=(view.filter) maxlength=(FILTER_BYTES_MAX)
                            placeholder="agent, client or user" aria-label="Filter by agent, client or user";
                    }
                    span #live role="status" { "not live" }
                    a href="/metrics" { "metrics" }
                }
                main { (maud::PreEscaped(&content.html)) }
                footer {
                    kbd { "/" } " filter " kbd { "j" } kbd { "k" } " next and previous row " kbd { "Enter" } " open " kbd { "u" } " up. "
                    "A sample is taken once a second, and more seldom where there is very much. Bytes of sessions are counted as plaintext."
                }
            }
        }
    };
    page.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_page_and_a_query_how_it_is_shown() {
        let view = |page, order, filter: &str| Some(View { page, order, filter: filter.to_owned() });
        assert_eq!(View::of("/"), view(Page::Overview, Order::Lag, ""));
        assert_eq!(View::of("/?sort=rate&filter=Ann+%C3%84"), view(Page::Overview, Order::Rate, "ann ä"));
        assert_eq!(View::of("/?sort=x&filter"), view(Page::Overview, Order::Lag, ""));
        let long = format!("/?filter={}", "x".repeat(65));
        assert_eq!(View::of(&long), view(Page::Overview, Order::Lag, ""));
        let agent = "[2001:db8::5]:8443".to_owned();
        for path in ["/agent/[2001:db8::5]:8443", "/agent/%5B2001:db8::5%5D:8443"] {
            assert_eq!(View::of(path), view(Page::Agent(agent.clone()), Order::Lag, ""));
        }
        assert_eq!(
            View::of("/session/7-1").and_then(|view| view.session().map(str::to_owned)),
            Some("7-1".to_owned())
        );
        for other in ["", "/x", "/agent", "/metrics", "/agent/%ff", "//"] {
            assert_eq!(View::of(other), None, "{other}");
        }
    }

    #[test]
    fn what_others_have_written_stays_text() {
        let view = View::of("/?filter=%22%3E%3Cscript%3E").expect("a page");
        let page = document(&view, &content(&view, &Overview::default(), &[]));
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "{page}");
        let view = View::of("/session/%3Cb%3E").expect("a page");
        let gone = content(&view, &Overview::default(), &[]);
        assert!(!gone.is_found && !gone.html.contains("<b>"), "{}", gone.html);
    }
}
