//! What stays of a bench: `results.json` with every run, and `report.html`, one page that needs no network.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde_json::json;

use super::peers::Peer;
use super::plots;
use super::run::Run;
use super::scenario::Scenario;
use super::table::{self, Row};

pub(super) const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;font-size:13px;margin:.6em 0}\
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}\
th:first-child,td:first-child,.facts td{text-align:left}tr.own td{font-weight:600;background:#eef5fb}\
.plots{display:flex;flex-wrap:wrap;align-items:flex-start;gap:12px}.plots svg{max-width:100%;height:auto}h2{margin-top:2em}.wide{overflow-x:auto}";

/// Everything that is reported.
pub(super) struct Report {
    /// Name and value: the machine, the versions, the flags.
    pub(super) facts: Vec<(String, String)>,
    /// What the reader has to know before believing a number.
    pub(super) notes: Vec<String>,
    pub(super) peers: Vec<Peer>,
    pub(super) scenarios: Vec<Scenario>,
    pub(super) runs: Vec<Run>,
}

impl Report {
    /// Writes both files.
    pub(super) fn write(&self, directory: &Path) -> Result<(), String> {
        let failed = |why: io::Error| format!("{}: {why}", directory.display());
        fs::create_dir_all(directory).map_err(failed)?;
        fs::write(directory.join("results.json"), self.json()).map_err(failed)?;
        let page = self.page().map_err(|why| format!("the plots can't be drawn: {why}"))?;
        fs::write(directory.join("report.html"), page).map_err(failed)
    }

    /// The rows of one scenario.
    pub(super) fn rows(&self, scenario: Scenario) -> Vec<Row> {
        table::rows(scenario, &self.peers, &self.runs)
    }

    fn json(&self) -> String {
        let facts: serde_json::Map<_, _> =
            self.facts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let tables: serde_json::Map<_, _> =
            self.scenarios.iter().map(|it| (it.name(), json!(self.rows(*it)))).collect();
        format!("{:#}\n", json!({"facts": facts, "notes": self.notes, "tables": tables, "runs": self.runs}))
    }

    fn page(&self) -> Result<String, Box<dyn std::error::Error>> {
        let mut page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>dcv-splice bench</title>\
             <style>{STYLE}</style><h1>dcv-splice bench</h1><table class=\"facts\">"
        );
        for (name, value) in &self.facts {
            write!(page, "<tr><td>{}<td>{}", escaped(name), escaped(value))?;
        }
        page.push_str("</table><ul>");
        for note in &self.notes {
            write!(page, "<li>{}", escaped(note))?;
        }
        page.push_str("</ul>");
        for scenario in &self.scenarios {
            self.section(*scenario, &mut page)?;
        }
        page.push_str("</html>\n");
        Ok(page)
    }

    fn section(&self, scenario: Scenario, page: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let rows = self.rows(scenario);
        let name = scenario.name();
        write!(page, "<h2>{name}</h2><p>{}</p><div class=\"wide\"><table>", escaped(&scenario.about()))?;
        for (at, cells) in table::cells(scenario, &rows).iter().enumerate() {
            let is_own = cells.first().is_some_and(|cell| *cell == Peer::DcvSplice.name());
            page.push_str(if is_own { "<tr class=\"own\">" } else { "<tr>" });
            let tag = if at == 0 { "th" } else { "td" };
            cells.iter().try_for_each(|cell| write!(page, "<{tag}>{}", escaped(cell)))?;
        }
        page.push_str("</table></div><div class=\"plots\">");
        let unit = scenario.unit();
        page.push_str(&plots::bars(&format!("{name}: {} per {}", unit.cost, unit.name), &rows)?);
        for measured in rows.first().into_iter().flat_map(|row| row.latencies.keys()) {
            page.push_str(&plots::curves(&format!("{name}: {measured} latency"), measured, &rows)?);
        }
        page.push_str("</div>");
        Ok(())
    }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
