//! From runs to what is shown: one row per peer with median, spread and ratios, and a table of them as text.
//! Pure: the terminal, the JSON and the page all show these rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::client::Load;
use super::latency::Latency;
use super::peers::Peer;
use super::run::Run;
use super::scenario::{Scenario, Unit};
use super::wire::Tls;

/// Some numbers, in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) n: usize,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// None of none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { n: values.len(), median, min, max })
    }
}

/// What one peer has shown in one scenario.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) peer: Peer,
    /// None for `direct`, which is no process.
    pub(super) cost: Option<Summary>,
    pub(super) to_recipe: Option<f64>,
    pub(super) to_tuned: Option<f64>,
    /// Medians over the runs.
    pub(super) latencies: BTreeMap<String, Latency>,
    /// Units a second.
    pub(super) rate: Summary,
    /// The cost with TLS 1.2 to the agent, and its ratio to nginx-tuned's.
    pub(super) tls12: Option<Summary>,
    pub(super) tls12_to_tuned: Option<f64>,
    pub(super) switches_per_unit: f64,
    pub(super) syscalls_per_unit: Option<f64>,
    /// The share of the client's handshakes that resumed a session.
    pub(super) resumed: f64,
    pub(super) foreign_max: f64,
    /// Of the client and the agent together: cores in use.
    pub(super) load_cores: f64,
    /// Kernel memory per session, machine-wide, and descriptors left, where the scenario asks for it.
    pub(super) slab_kib_per_unit: f64,
    pub(super) descriptors: i64,
    /// What was done beside it, in units a second.
    pub(super) beside_rates: Vec<f64>,
}

/// The rows of one scenario, in the order of its peers.
pub(super) fn rows(scenario: Scenario, peers: &[Peer], runs: &[Run]) -> Vec<Row> {
    let of = |peer| -> Vec<&Run> {
        runs.iter().filter(|run| run.case.scenario == scenario && run.case.peer == peer).collect()
    };
    let mut rows: Vec<Row> = peers.iter().filter_map(|peer| row(*peer, &of(*peer))).collect();
    let of = |peer| rows.iter().find(|row| row.peer == peer);
    let (recipe, tuned) = (of(Peer::NginxRecipe), of(Peer::NginxTuned));
    let (recipe, tuned, tuned12) =
        (recipe.and_then(|it| it.cost), tuned.and_then(|it| it.cost), tuned.and_then(|it| it.tls12));
    for row in &mut rows {
        (row.to_recipe, row.to_tuned) = (ratio(row.cost, recipe), ratio(row.cost, tuned));
        row.tls12_to_tuned = ratio(row.tls12, tuned12);
    }
    rows
}

fn ratio(one: Option<Summary>, to: Option<Summary>) -> Option<f64> {
    Some(one?.median / to.filter(|to| to.median > 0.0)?.median)
}

fn row(peer: Peer, runs: &[&Run]) -> Option<Row> {
    let (runs12, runs): (Vec<&Run>, Vec<&Run>) =
        runs.iter().partition(|run| run.case.agent_tls == Tls::Tls12);
    let median = |value: &dyn Fn(&Run) -> f64| Summary::of(runs.iter().map(|run| value(run)));
    let switches =
        |run: &Run| (run.outcome.peer.voluntary + run.outcome.peer.involuntary) as f64 / run.units();
    let load = |run: &Run| (run.outcome.agent.cpu_s + run.outcome.load.cpu_s) / run.outcome.seconds;
    Some(Row {
        peer,
        cost: median(&Run::cost).filter(|_| peer != Peer::Direct),
        to_recipe: None,
        to_tuned: None,
        latencies: latencies(&runs),
        tls12: Summary::of(runs12.iter().map(|run| run.cost())).filter(|_| peer != Peer::Direct),
        tls12_to_tuned: None,
        syscalls_per_unit: runs
            .iter()
            .find_map(|run| Some(run.outcome.syscalls? * run.case.scenario.unit().size)),
        resumed: median(&|run| run.outcome.resumed)?.median,
        rate: median(&|run| run.units() / run.outcome.seconds)?,
        switches_per_unit: median(&switches)?.median,
        foreign_max: median(&|run| run.outcome.foreign)?.max,
        load_cores: median(&load)?.median,
        slab_kib_per_unit: median(&|run| run.outcome.slab_kib / run.units())?.median,
        descriptors: runs.iter().map(|run| run.outcome.descriptors).max()?,
        beside_rates: beside_rates(&runs),
    })
}

/// The medians over the runs.
fn beside_rates(runs: &[&Run]) -> Vec<f64> {
    let rates: Vec<Vec<f64>> = runs.iter().map(|run| run.beside_rates().collect()).collect();
    let loads = rates.first().map_or(0, Vec::len);
    let of = |at: usize| Summary::of(rates.iter().filter_map(|rates| rates.get(at)).copied());
    (0..loads).filter_map(of).map(|summary| summary.median).collect()
}

fn latencies(runs: &[&Run]) -> BTreeMap<String, Latency> {
    let first = runs.first().into_iter().flat_map(|run| run.outcome.latencies.keys());
    first.map(|name| (name.clone(), middle(name, runs))).collect()
}

/// The median of each percentile.
fn middle(name: &str, runs: &[&Run]) -> Latency {
    let all: Vec<&Latency> = runs.iter().filter_map(|run| run.outcome.latencies.get(name)).collect();
    let median = |value: &dyn Fn(&Latency) -> f64| {
        Summary::of(all.iter().map(|latency| value(latency))).map_or(0.0, |summary| summary.median)
    };
    let points = all.first().map_or(0, |latency| latency.curve.len());
    let point = |at: usize| (all[0].curve[at].0, median(&|latency| latency.curve[at].1));
    Latency {
        count: all.iter().map(|latency| latency.count).sum(),
        p50: median(&|latency| latency.p50),
        p90: median(&|latency| latency.p90),
        p99: median(&|latency| latency.p99),
        p999: median(&|latency| latency.p999),
        max: median(&|latency| latency.max),
        curve: (0..points).map(point).collect(),
    }
}

/// A column: its head, and what it says of a row.
struct Column<'a> {
    head: String,
    cell: Box<dyn Fn(&Row) -> String + 'a>,
}

/// Head and cells, for any way of showing them.
pub(super) fn cells(scenario: Scenario, rows: &[Row]) -> Vec<Vec<String>> {
    let columns = columns(scenario, rows);
    let head = columns.iter().map(|column| column.head.clone()).collect();
    let body = rows.iter().map(|row| columns.iter().map(|column| (column.cell)(row)).collect());
    std::iter::once(head).chain(body).collect()
}

fn columns(scenario: Scenario, rows: &[Row]) -> Vec<Column<'static>> {
    let unit = scenario.unit();
    let mut columns = Vec::new();
    let mut add = |head: String, cell: Box<dyn Fn(&Row) -> String>| columns.push(Column { head, cell });
    let cost = format!("{}/{}", unit.cost, unit.name);
    add("peer".into(), Box::new(|row| row.peer.name()));
    add("n".into(), Box::new(|row| row.rate.n.to_string()));
    add(cost.clone(), Box::new(|row| or_dash(row.cost.map(|cost| short(cost.median)))));
    add("min-max".into(), Box::new(|row| or_dash(row.cost.map(spread))));
    add("x recipe".into(), Box::new(|row| times(row.to_recipe)));
    add("x tuned".into(), Box::new(|row| times(row.to_tuned)));
    if rows.iter().any(|row| row.tls12.is_some()) {
        add(format!("TLS 1.2: {cost}"), Box::new(|row| or_dash(row.tls12.map(|cost| short(cost.median)))));
        add("min-max".into(), Box::new(|row| or_dash(row.tls12.map(spread))));
        add("x tuned".into(), Box::new(|row| times(row.tls12_to_tuned)));
    }
    for name in rows.first().into_iter().flat_map(|row| row.latencies.keys().cloned()) {
        let head = format!("{name} us p50/p99/p99.9/max");
        add(head, Box::new(move |row| row.latencies.get(&name).map_or_else(String::new, in_short)));
    }
    let per_unit = |value: fn(&Row) -> Option<f64>| {
        move |row: &Row| or_dash(value(row).filter(|_| row.cost.is_some()).map(short))
    };
    if scenario.load().is_idle() {
        add("kernel slab kB".into(), Box::new(|row| short(row.slab_kib_per_unit * 1.024)));
    } else {
        add(format!("{}/s", unit.name), Box::new(|row| short(row.rate.median)));
        add("switches".into(), Box::new(per_unit(|row| Some(row.switches_per_unit))));
        add("syscalls".into(), Box::new(per_unit(|row| row.syscalls_per_unit)));
        add("load cores".into(), Box::new(|row| format!("{:.2}", row.load_cores)));
    }
    for (at, load) in scenario.beside().into_iter().enumerate() {
        let head = format!("beside {}/s", Unit::of(load).name);
        add(head, Box::new(move |row| or_dash(row.beside_rates.get(at).copied().map(short))));
    }
    if matches!(scenario.load(), Load::Connect { resume: true, .. }) {
        add("resumed".into(), Box::new(|row| format!("{:.0}%", row.resumed * 100.0)));
    }
    if matches!(scenario.load(), Load::Churn { .. }) {
        add("files left".into(), Box::new(|row| row.descriptors.to_string()));
    }
    add("foreign".into(), Box::new(|row| format!("{:.0}%", row.foreign_max * 100.0)));
    columns
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

fn spread(cost: Summary) -> String {
    format!("{}-{}", short(cost.min), short(cost.max))
}

fn times(ratio: Option<f64>) -> String {
    or_dash(ratio.map(|ratio| format!("{ratio:.2}")))
}

fn in_short(latency: &Latency) -> String {
    [latency.p50, latency.p99, latency.p999, latency.max].map(|value| format!("{value:.0}")).join(" / ")
}

/// Three digits that matter.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        it if it >= 100.0 => 0,
        it if it >= 10.0 => 1,
        it if it >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// The cells in aligned columns; the first is a name, the others are numbers.
pub(super) fn text(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |at: usize| cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in cells {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string does not fail.
            let _ = if at == 0 { write!(out, "  {cell:<width$}") } else { write!(out, "  {cell:>width$}") };
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::client::Outcome;
    use super::super::run::Case;
    use super::super::system::Usage;
    use super::*;

    fn run(peer: Peer, cpu_s: f64) -> Run {
        let usage = Usage { cpu_s, voluntary: 30, involuntary: 10 };
        let outcome = Outcome { seconds: 2.0, units: 10, peer: usage, ..Outcome::default() };
        let case = Case { scenario: Scenario::Echo, peer, agent_tls: Tls::Tls13, repetition: 0 };
        Run { case, attempt: 1, outcome, beside: Vec::new() }
    }

    #[test]
    fn a_summary_is_median_and_spread() {
        let summary = |values: &[f64]| Summary::of(values.iter().copied());
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Some(Summary { n: 3, median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(summary(&[4.0, 1.0]), Some(Summary { n: 2, median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn ratios_compare_medians() {
        let peers = [Peer::Direct, Peer::NginxRecipe, Peer::DcvSplice];
        let runs = [
            run(Peer::Direct, 0.0),
            run(Peer::NginxRecipe, 4e-5),
            run(Peer::DcvSplice, 1e-5),
            run(Peer::DcvSplice, 3e-5),
        ];
        let rows = rows(Scenario::Echo, &peers, &runs);
        assert_eq!(rows.len(), 3);
        assert!(rows[0].cost.is_none());
        assert!((rows[2].to_recipe.unwrap_or(0.0) - 0.5).abs() < 1e-9);
        assert_eq!(rows[2].to_tuned, None);
        assert!((rows[2].switches_per_unit - 4.0).abs() < 1e-9 && (rows[2].rate.median - 5.0).abs() < 1e-9);
    }

    #[test]
    fn columns_are_aligned() {
        let cells = [vec!["a".to_owned(), "100".into()], vec!["long".into(), "1".into()]];
        assert_eq!(text(&cells), "  a     100\n  long    1\n");
        assert_eq!([0.123_46, 1.234, 12.34, 123.4].map(short), ["0.123", "1.23", "12.3", "123"]);
    }
}
