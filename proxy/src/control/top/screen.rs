//! The pages of `top` on a terminal of 80 columns and more. Decides nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::view::{Page, View};
use crate::control::fleet::{AgentReport, SessionReport};
use crate::observe::lag::{Lag, SLOW_US, TcpSample};
use crate::observe::session_stats::HistoryPoint;
use crate::observe::units::{bytes, short, time};

const LAG_COLUMNS: [&str; 4] = ["CLIENT NET", "PROXY", "AGENT NET", "AGENT"];
const LAG_WIDTHS: [u16; 4] = [10, 8, 9, 8];

/// Draws the page.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(title(view), head);
    match view.page {
        Page::Agents => draw_agents(frame, view, body),
        Page::Sessions => draw_sessions(frame, view, body),
        Page::Session => draw_session(frame, view, body),
    }
    frame.render_widget(keys(view), foot);
}

fn title(view: &View) -> Line<'static> {
    let desktops: u64 = view.agents.iter().map(|agent| agent.desktops).sum();
    let down = view.agents.iter().filter(|agent| agent.health == "down").count();
    let name = " dcv-splice ".bold().reversed();
    if let Some(problem) = &view.problem {
        return Line::from(vec![name, format!(" no answer: {problem}").red()]);
    }
    Line::from(vec![
        name,
        format!(" {} agents", view.agents.len()).into(),
        Span::styled(format!(" ({down} down)"), if down > 0 { Color::Red.into() } else { Style::default() }),
        format!("  {desktops} desktops  {} sessions", view.sessions.len()).into(),
    ])
}

fn keys(view: &View) -> Line<'static> {
    if view.is_filtering {
        return Line::from(vec![" filter: ".bold(), format!("{}_", view.filter).into()]);
    }
    let more = match view.page {
        Page::Agents => "enter sessions  l all sessions",
        Page::Sessions => "enter session  esc back  a agents",
        Page::Session => "esc back  a agents",
    };
    let filter = if view.filter.is_empty() { String::new() } else { format!(" [{}]", view.filter) };
    let order = view.order.name();
    Line::from(format!(" {more}  s sort: {order}  / filter{filter}  q quit")).dim()
}

/// Four cells, of which those that a user feels have a colour.
fn lag_cells(lag: &Lag) -> Vec<Cell<'static>> {
    let cell = |us: Option<u64>| match us {
        None => Cell::from("?"),
        Some(us @ SLOW_US..) => Cell::from(short(us)).style(Style::new().fg(Color::Yellow).bold()),
        Some(us) => Cell::from(short(us)),
    };
    lag.places().into_iter().map(|(_, us)| cell(us)).collect()
}

fn table<'a>(head: &[&'a str], widths: Vec<Constraint>, rows: Vec<Row<'a>>, title: String) -> Table<'a> {
    let head = head.iter().chain(&LAG_COLUMNS).map(|name| Cell::from(*name));
    let widths = widths.into_iter().chain(LAG_WIDTHS.map(Constraint::Length));
    Table::new(rows, widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title))
}

fn draw_agents(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let listed = view.listed_agents();
    let row = |agent: &&AgentReport| {
        let name = agent.name.clone().unwrap_or_else(|| agent.address.to_string());
        let is_well = agent.health != "down" && agent.state == "active";
        let state = if agent.health == "down" { "down".to_owned() } else { agent.state.clone() };
        let state =
            Cell::from(state).style(if is_well { Style::default() } else { Style::new().fg(Color::Red) });
        let counts = [agent.desktops, agent.sessions].map(|count| Cell::from(count.to_string()));
        let cells = [Cell::from(name), state].into_iter().chain(counts).chain(lag_cells(&agent.lag));
        Row::new(cells.collect::<Vec<_>>())
    };
    let rows = listed.iter().map(row).collect();
    let widths = [Constraint::Min(12), Constraint::Length(7), Constraint::Length(5), Constraint::Length(5)];
    let head = ["AGENT", "STATE", "DESKT", "SESS"];
    let table = table(&head, widths.into(), rows, format!(" agents: {} ", listed.len()));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(view.chosen));
}

fn draw_sessions(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let listed = view.listed_sessions();
    let row = |session: &&SessionReport| {
        let cells = [
            session.name.clone().unwrap_or_else(|| session.agent.ip().to_string()),
            session.client.to_string(),
            time(session.seconds),
            format!("{}/s", bytes(session.sample.rate_to_client)),
        ];
        let cells = cells.into_iter().map(Cell::from).chain(lag_cells(&session.sample.lag));
        Row::new(cells.collect::<Vec<_>>())
    };
    let rows = listed.iter().map(row).collect();
    let widths = [Constraint::Min(9), Constraint::Min(9), Constraint::Length(8), Constraint::Length(9)];
    let of = view.agent.as_ref().map_or_else(String::new, |agent| format!(" of {agent}"));
    let head = ["AGENT", "CLIENT", "OPEN", "RATE"];
    let table = table(&head, widths.into(), rows, format!(" sessions{of}: {} ", listed.len()));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(view.chosen));
}

fn draw_session(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let Some(session) = view.watched_session() else {
        frame.render_widget(Paragraph::new(" It has ended.").block(Block::bordered()), area);
        return;
    };
    let SessionReport { name, agent, client, user, seconds, sample, id } = session;
    let title = format!(" {} from {client} ", name.clone().unwrap_or_else(|| agent.to_string()));
    let block = Block::bordered().title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [facts, charts] = Layout::vertical([Constraint::Length(8), Constraint::Min(4)]).areas(inner);
    let tcp = |tcp: Option<TcpSample>| tcp.map_or_else(|| "not known".to_owned(), |tcp| tcp.to_string());
    let names = ["client net", "proxy", "agent net", "agent"];
    let places = names.iter().zip(sample.lag.places());
    let places = places.map(|(name, (_, us))| format!("{name} {}", us.map_or_else(|| "?".to_owned(), short)));
    let places: Vec<_> = places.collect();
    let user = if user.is_empty() { String::new() } else { format!(", user {user}") };
    let lines = [
        format!("id {id}{user}, agent {agent}, open for {}", time(*seconds)),
        format!("lag:    {} = {}", short(sample.lag.total_us()), places.join(" + ")),
        format!("client: {}", tcp(sample.client_tcp)),
        format!("agent:  {}", tcp(sample.agent_tcp)),
        format!(
            "rate:   {}/s to the client, {}/s to the agent",
            bytes(sample.rate_to_client),
            bytes(sample.rate_to_agent)
        ),
        format!(
            "queue:  {} for the client, {} for the agent",
            bytes(sample.queue_to_client),
            bytes(sample.queue_to_agent)
        ),
        format!("proxy:  99 of 100 within {}", short(sample.residence_p99_us)),
    ];
    frame.render_widget(Paragraph::new(lines.map(Line::from).to_vec()), facts);
    draw_history(frame, &view.history, charts);
}

/// A chart: its title by the largest value, and the values.
type Chart = (fn(u64) -> String, fn(&HistoryPoint) -> u64);

const CHARTS: [Chart; 4] = [
    (|max| format!("RTT to the client, up to {}", short(max)), |point| point.client_rtt_us.into()),
    (|max| format!("queue, up to {}", bytes(max)), |point| point.queue.into()),
    (|max| format!("rate, up to {}/s", bytes(max)), |point| point.rate.into()),
    (|max| format!("time in the proxy, up to {}", short(max)), |point| point.residence_us.into()),
];

/// The last five minutes, side by side in two rows.
fn draw_history(frame: &mut Frame<'_>, history: &[HistoryPoint], area: Rect) {
    let rows = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(area);
    let places =
        rows.map(|row| Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(row));
    for ((title, value), place) in CHARTS.into_iter().zip(places.concat()) {
        let values: Vec<u64> = history.iter().map(value).collect();
        let title = title(values.iter().copied().max().unwrap_or(0));
        let chart = Sparkline::default().data(values).block(Block::new().title(title.bold()));
        frame.render_widget(chart, place);
    }
}
