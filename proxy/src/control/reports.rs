//! What the commands of an operator learn from running processes: that which serves, and those that drain. Changes nothing.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::config::SessionFilter;
use crate::control::exit::{Failure, failed};
use crate::control::fleet::{AgentsReport, SessionReport};
use crate::control::socket::{self, ControlCommand};
use crate::observe::session_stats::HistoryPoint;

/// The answer of one process.
pub(super) fn inquire(control: &Path, command: ControlCommand, argument: &str) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(socket::ask(control, command, argument)).map_err(|reason| failed(&reason))
}

/// The answers of the process that serves, first, and of those that drain. `complain` is told of those that can't answer.
pub(super) fn reports<T: DeserializeOwned>(
    control: &Path,
    command: ControlCommand,
    argument: &str,
    complain: &mut dyn FnMut(&str),
) -> Result<Vec<T>, Failure> {
    let mut all = socket::all(control);
    if all.is_empty() {
        all.push(control.to_owned());
    }
    let mut reports = Vec::new();
    for process in all {
        match inquire(&process, command, argument) {
            Ok(text) => reports.push(serde_json::from_str(&text).map_err(|error| failed(&error))?),
            Err(failure) if process == control => return Err(failure),
            // One that drained may have ended meanwhile; one of an earlier version does not know the command.
            Err(failure) if socket::is_listened_to(&process) => {
                complain(&format!("{}: {}", process.display(), failure.reason));
            }
            Err(_) => {}
        }
    }
    Ok(reports)
}

/// The agents, with what processes that drain have of them.
pub(super) fn agents(control: &Path, complain: &mut dyn FnMut(&str)) -> Result<AgentsReport, Failure> {
    let mut agents: Vec<AgentsReport> = reports(control, ControlCommand::Agents, "", complain)?;
    if agents.len() == 1 {
        return Ok(agents.remove(0));
    }
    let sessions = sessions(control, &SessionFilter::default(), complain)?;
    Ok(AgentsReport::merged(agents, &sessions))
}

/// The open sessions that a filter names.
pub(super) fn sessions(
    control: &Path,
    filter: &SessionFilter,
    complain: &mut dyn FnMut(&str),
) -> Result<Vec<SessionReport>, Failure> {
    let reports: Vec<Vec<SessionReport>> = reports(control, ControlCommand::Sessions, "", complain)?;
    let mut sessions = reports.concat();
    sessions.retain(|session| session.is_named(filter));
    Ok(sessions)
}

/// The last five minutes of a session; nothing where it has ended.
pub(super) fn history(
    control: &Path,
    id: &str,
    complain: &mut dyn FnMut(&str),
) -> Result<Vec<HistoryPoint>, Failure> {
    let reports: Vec<Vec<HistoryPoint>> = reports(control, ControlCommand::History, id, complain)?;
    Ok(reports.concat())
}
