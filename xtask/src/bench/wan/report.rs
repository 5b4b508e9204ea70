//! What stays of the measurements: a line per run, a table per profile, `wan.json` with every frame, and `wan.html` with
//! the ages of frames over time.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde_json::json;

use super::super::peers::Peer;
use super::super::plots;
use super::super::report::{STYLE, escaped};
use super::super::table::{self, short};
use super::Run;
use super::profile::Profile;
use super::source::Kind;
use super::stats::{RunStats, summary};

/// One run in short.
pub(super) fn line(run: &Run) -> String {
    let RunStats { age_p50, age_p99, age_max, mbit, input_p50, input_p99, .. } = run.stats;
    format!(
        "{} {:?} {} {}: age {age_p50:.0}/{age_p99:.0}/{age_max:.0} ms, {mbit:.1} Mbit/s, input {input_p50:.0}/{input_p99:.0} ms",
        run.case.profile.name(),
        run.case.kind,
        run.case.peer.name(),
        run.case.repetition
    )
    .to_lowercase()
}

const HEAD: [&str; 14] = [
    "peer",
    "n",
    "age p50 ms",
    "(min-max)",
    "p99",
    "max",
    "to direct",
    "to tuned",
    "frames/s",
    "Mbit/s",
    "input p50",
    "p99",
    "recovery ms",
    "KiB agent/received/unsent",
];

fn of(runs: &[Run], profile: Profile, kind: Kind, peer: Peer) -> Vec<&RunStats> {
    let is_it = |run: &&Run| run.case.profile == profile && run.case.kind == kind && run.case.peer == peer;
    runs.iter().filter(is_it).map(|run| &run.stats).collect()
}

fn peers(runs: &[Run]) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for run in runs {
        if !peers.contains(&run.case.peer) {
            peers.push(run.case.peer);
        }
    }
    peers
}

fn cells(runs: &[Run], profile: Profile, kind: Kind) -> Vec<Vec<String>> {
    let age = |peer| summary(&of(runs, profile, kind, peer), |it| it.age_p50).map(|found| found.median);
    let (direct, tuned) = (age(Peer::Direct), age(Peer::NginxTuned));
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for peer in peers(runs) {
        let found = of(runs, profile, kind, peer);
        let Some(ages) = summary(&found, |it| it.age_p50) else { continue };
        let median = |value: fn(&RunStats) -> f64| summary(&found, value).map_or(0.0, |it| it.median);
        let ratio = |to: Option<f64>| {
            to.filter(|to| *to > 0.0).map_or_else(|| "-".into(), |to| format!("{:.2}", ages.median / to))
        };
        let recovered: Vec<f64> = found.iter().filter_map(|it| it.recovery).collect();
        let recovery =
            table::Summary::of(recovered).map_or_else(|| "-".into(), |it| format!("{:.0}", it.median));
        rows.push(vec![
            peer.name(),
            ages.n.to_string(),
            format!("{:.0}", ages.median),
            format!("{:.0}-{:.0}", ages.min, ages.max),
            format!("{:.0}", median(|it| it.age_p99)),
            format!("{:.0}", median(|it| it.age_max)),
            ratio(direct),
            ratio(tuned),
            format!("{:.1}", median(|it| it.frames_per_second)),
            short(median(|it| it.mbit)),
            format!("{:.0}", median(|it| it.input_p50)),
            format!("{:.0}", median(|it| it.input_p99)),
            recovery,
            format!(
                "{:.0}/{:.0}/{:.0}",
                median(|it| it.agent_unsent),
                median(|it| it.proxy_received),
                median(|it| it.proxy_unsent)
            ),
        ]);
    }
    rows
}

/// The rows of one profile and source, as text.
pub(super) fn table(runs: &[Run], profile: Profile, kind: Kind) -> String {
    let name = title(profile, kind);
    format!("{name}: {}\n{}", profile.about(), table::text(&cells(runs, profile, kind)))
}

fn title(profile: Profile, kind: Kind) -> String {
    format!("{}, {}", profile.name(), kind.name())
}

/// Writes both files.
pub(super) fn write(directory: &Path, runs: &[Run], failures: &[String]) -> Result<(), String> {
    let failed = |why: io::Error| format!("{}: {why}", directory.display());
    let all = json!({ "runs": runs, "failures": failures });
    fs::write(directory.join("wan.json"), format!("{all}\n")).map_err(failed)?;
    let page = page(runs, failures).map_err(|why| format!("the pictures can't be drawn: {why}"))?;
    fs::write(directory.join("wan.html"), page).map_err(failed)
}

fn page(runs: &[Run], failures: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>dcv-splice bench wan</title>\
         <style>{STYLE}</style><h1>dcv-splice bench wan</h1><p>Age of a frame when the client has read it, from its \
         writing by the agent; medians over runs. Pictures show the first run of each.</p><ul>"
    );
    for why in failures {
        write!(page, "<li>FAILED: {}", escaped(why))?;
    }
    page.push_str("</ul>");
    let mut shown: Vec<(Profile, Kind)> = runs.iter().map(|run| (run.case.profile, run.case.kind)).collect();
    shown.dedup();
    for (profile, kind) in shown {
        write!(
            page,
            "<h2>{}</h2><p>{}</p><div class=\"wide\"><table>",
            title(profile, kind),
            escaped(&profile.about())
        )?;
        for (at, cells) in cells(runs, profile, kind).iter().enumerate() {
            let is_own = cells.first().is_some_and(|cell| *cell == Peer::DcvSplice.name());
            page.push_str(if is_own { "<tr class=\"own\">" } else { "<tr>" });
            let tag = if at == 0 { "th" } else { "td" };
            cells.iter().try_for_each(|cell| write!(page, "<{tag}>{}", escaped(cell)))?;
        }
        page.push_str("</table></div><div class=\"plots\">");
        let first =
            |run: &&Run| run.case.profile == profile && run.case.kind == kind && run.case.repetition == 0;
        let ages: Vec<_> =
            runs.iter().filter(first).map(|run| (run.case.peer, &run.view.frames[..])).collect();
        let inputs: Vec<_> =
            runs.iter().filter(first).map(|run| (run.case.peer, &run.view.inputs[..])).collect();
        page.push_str(&plots::over_time("age of frames", &ages)?);
        page.push_str(&plots::over_time("input to its answer", &inputs)?);
        page.push_str("</div>");
    }
    page.push_str("</html>\n");
    Ok(page)
}
