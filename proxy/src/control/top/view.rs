//! What `top` shows: agents, the sessions of all or of one of them, or one session; in which order, and which line is chosen. Pure.

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use crate::control::fleet::{AgentReport, SessionReport};
use crate::observe::session_stats::HistoryPoint;

/// Characters of a filter.
const FILTER_MAX: usize = 64;

/// Which page is shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Page {
    /// All agents.
    #[default]
    Agents,
    /// Sessions.
    Sessions,
    /// One session.
    Session,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Order {
    /// The most lag.
    #[default]
    Lag,
    /// The most bytes a second; of agents, the most sessions.
    Rate,
    /// The first name.
    Name,
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Lag => Self::Rate,
            Self::Rate => Self::Name,
            Self::Name => Self::Lag,
        }
    }

    /// As the screen names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::Rate => "rate",
            Self::Name => "name",
        }
    }
}

/// What comes of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pressed {
    /// It goes on.
    Goes,
    /// It is to end.
    Quit,
}

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) page: Page,
    pub(super) order: Order,
    /// What agents, clients and users have to have in them.
    pub(super) filter: String,
    /// The filter is being written.
    pub(super) is_filtering: bool,
    /// The line that is chosen, of those that are shown.
    pub(super) chosen: usize,
    /// The agent whose sessions are shown, by its address.
    pub(super) agent: Option<String>,
    /// The session that is shown.
    pub(super) watched: Option<String>,
    pub(super) agents: Vec<AgentReport>,
    pub(super) sessions: Vec<SessionReport>,
    pub(super) history: Vec<HistoryPoint>,
    /// Why nothing new is known.
    pub(super) problem: Option<String>,
}

impl View {
    /// The agents that are shown, in their order.
    pub(super) fn listed_agents(&self) -> Vec<&AgentReport> {
        let name = |agent: &AgentReport| agent.name.clone().unwrap_or_else(|| agent.address.to_string());
        let mut listed: Vec<_> = self
            .agents
            .iter()
            .filter(|agent| self.has_filter(&[&name(agent), &agent.address.to_string(), &agent.state]))
            .collect();
        listed.sort_by_key(|agent| name(agent));
        match self.order {
            Order::Lag => listed.sort_by_key(|agent| std::cmp::Reverse(agent.lag.total_us())),
            Order::Rate => listed.sort_by_key(|agent| std::cmp::Reverse(agent.sessions)),
            Order::Name => {}
        }
        listed
    }

    /// The sessions that are shown, in their order.
    pub(super) fn listed_sessions(&self) -> Vec<&SessionReport> {
        let is_of_agent = |session: &&SessionReport| {
            self.agent.as_ref().is_none_or(|agent| *agent == session.agent.to_string())
        };
        let has_filter = |session: &&SessionReport| {
            let name = session.name.clone().unwrap_or_default();
            self.has_filter(&[&name, &session.agent.to_string(), &session.client.to_string(), &session.user])
        };
        let mut listed: Vec<_> = self.sessions.iter().filter(is_of_agent).filter(has_filter).collect();
        let name = |session: &SessionReport| (session.name.clone(), session.agent, session.client);
        listed.sort_by_key(|session| name(session));
        match self.order {
            Order::Lag => listed.sort_by_key(|session| std::cmp::Reverse(session.sample.lag.total_us())),
            Order::Rate => listed.sort_by_key(|session| std::cmp::Reverse(session.sample.rate_to_client)),
            Order::Name => {}
        }
        listed
    }

    fn has_filter(&self, texts: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        texts.iter().any(|text| text.to_lowercase().contains(&filter))
    }

    /// The session that is shown by itself, if it is there still.
    pub(super) fn watched_session(&self) -> Option<&SessionReport> {
        self.sessions.iter().find(|session| Some(&session.id) == self.watched.as_ref())
    }

    /// Does what a key says.
    pub(super) fn press(&mut self, key: KeyCode, modifiers: KeyModifiers) -> Pressed {
        if key == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
            return Pressed::Quit;
        }
        if self.is_filtering {
            self.write_filter(key);
            return Pressed::Goes;
        }
        let lines = match self.page {
            Page::Agents => self.listed_agents().len(),
            Page::Sessions => self.listed_sessions().len(),
            Page::Session => 0,
        };
        match key {
            KeyCode::Char('q') => return Pressed::Quit,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('/') => self.is_filtering = true,
            KeyCode::Char('a') => self.go(Page::Agents),
            KeyCode::Char('l') => {
                self.agent = None;
                self.go(Page::Sessions);
            }
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.chosen = (self.chosen + 1).min(lines.saturating_sub(1));
            }
            KeyCode::Enter | KeyCode::Right => self.enter(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.leave(),
            _ => {}
        }
        Pressed::Goes
    }

    fn write_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_filtering = false,
            KeyCode::Esc => {
                self.is_filtering = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(it) if self.filter.chars().count() < FILTER_MAX => self.filter.push(it),
            _ => {}
        }
        self.chosen = 0;
    }

    fn go(&mut self, page: Page) {
        (self.page, self.chosen, self.watched) = (page, 0, None);
        self.filter.clear();
    }

    fn enter(&mut self) {
        match self.page {
            Page::Agents => {
                let chosen = self.listed_agents().get(self.chosen).map(|agent| agent.address.to_string());
                if chosen.is_some() {
                    self.agent = chosen;
                    self.go(Page::Sessions);
                }
            }
            Page::Sessions => {
                let chosen = self.listed_sessions().get(self.chosen).map(|session| session.id.clone());
                if chosen.is_some() {
                    (self.page, self.watched) = (Page::Session, chosen);
                }
            }
            Page::Session => {}
        }
    }

    fn leave(&mut self) {
        match self.page {
            Page::Agents => self.filter.clear(),
            Page::Sessions => self.go(Page::Agents),
            Page::Session => (self.page, self.watched) = (Page::Sessions, None),
        }
    }
}
