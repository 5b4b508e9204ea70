//! The commands of the program, from flags to exit code. What serving takes is in `start.rs`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::config::{Command, CommandLine, DrainFlags, EndFlags, Resolved, SessionFlags, Settings};
use crate::control::doctor;
use crate::control::exit::{Failure, STOPPED, failed, unusable};
use crate::control::fleet;
use crate::control::helper;
use crate::control::network_helper;
use crate::control::reports::{self, inquire, reports};
use crate::control::service_account;
use crate::control::socket::{self, ControlCommand};
use crate::control::start;
use crate::control::top;
use crate::control::validation::Prepared;
use crate::os::files::DryRun;
use crate::tls::Pin;

/// How long the reason of a failure has to be written.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Does what the command line says; its first word is the program's name.
pub(crate) fn run(line: Vec<OsString>) -> ExitCode {
    match parse(&line).and_then(|parsed| run_command(parsed, Settings::of(line))) {
        Ok(()) => STOPPED.into(),
        Err(Failure { code, reason }) => {
            say(reason.lines().map(|line| format!("dcv-splice: {line}")).collect::<Vec<_>>().join("\n"));
            code.into()
        }
    }
}

fn run_command(line: CommandLine, settings: Settings) -> Result<(), Failure> {
    match line.command {
        None | Some(Command::Run(_)) => start::run(settings),
        Some(Command::Check(_)) => check(&settings),
        Some(Command::Pin { agent }) => pin(agent),
        Some(Command::Reload(at)) => ask(&at.control, ControlCommand::Reload),
        Some(Command::Upgrade(at)) => ask(&at.control, ControlCommand::Upgrade),
        Some(Command::Reopen(at)) => send_to_all(&at.control, ControlCommand::Reopen),
        Some(Command::Status(at)) => send_to_all(&at.control, ControlCommand::Status),
        Some(Command::Agents { control, json }) => agents(&control.control, json),
        Some(Command::Sessions(wanted)) => sessions(&wanted),
        Some(Command::Doctor { agent, host, .. }) => doctor::run(&agent, &host, settings),
        Some(Command::Top(wanted)) => top::run(&wanted),
        Some(Command::Drain(at)) => drain(&at, ControlCommand::Drain, ControlCommand::DrainProxy),
        Some(Command::End(wanted)) => end(&wanted),
        Some(Command::Undrain(at)) => drain(&at, ControlCommand::Undrain, ControlCommand::UndrainProxy),
        Some(Command::Off(at)) => ask_about(&at.control.control, ControlCommand::Off, &at.agent),
        Some(Command::Helper(_)) => helper::serve(settings).map_err(Failure::from),
        Some(Command::NetworkHelper) => network_helper::serve().map_err(Failure::from),
        Some(Command::ExecUnprivileged { program }) => {
            helper::exec_unprivileged(&program).map_err(Failure::from)
        }
        Some(Command::Exec { program }) => helper::exec(&program).map_err(Failure::from),
    }
}

/// Writes the last message, for which a blocked output does not keep the program for long.
fn say(reason: String) {
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        eprintln!("{reason}");
        said.send(())
    });
    let _ = heard.recv_timeout(LAST_MESSAGE_TIMEOUT);
}

/// Reads the command line. All invalid flags are reported together, and with those of the file; clap reports the first.
fn parse(line: &[OsString]) -> Result<CommandLine, Failure> {
    if line.len() <= 1 {
        // Whoever only looks what this is would not want a port opened to the world.
        eprintln!("{}", CommandLine::command().render_help());
        return Err(unusable("no flags are given: nothing is served".to_owned()));
    }
    let error = match CommandLine::try_parse_from(line) {
        Ok(line) => return Ok(line),
        Err(error) => error,
    };
    let runs = |word: &OsString| ["run", "check"].iter().any(|name| word == name);
    let asks = line.get(1).is_some_and(|word| !word.as_encoded_bytes().starts_with(b"-") && !runs(word));
    let settings = Settings::of(line.iter().cloned());
    let is_told_here = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue)
        || settings.has_renamed_flags();
    if asks || !is_told_here {
        error.exit();
    }
    match Prepared::new(&settings, &DryRun) {
        Err(reason) => Err(unusable(reason)),
        Ok(_) => error.exit(),
    }
}

fn check(settings: &Settings) -> Result<(), Failure> {
    let prepared = Prepared::new(settings, &DryRun);
    let mut problems: Vec<_> =
        prepared.as_ref().err().iter().flat_map(|text| text.lines().map(str::to_owned)).collect();
    if let (Some(resolved), _) = settings.examine(&DryRun) {
        problems.extend(control_problem(&resolved));
        let look = || Prepared::new(settings, &DryRun).err();
        match service_account::as_account(resolved.config.file.as_deref(), look) {
            Ok(found) => {
                let found = found.flatten().unwrap_or_default();
                let more: Vec<_> =
                    found.lines().filter(|line| !problems.iter().any(|it| it == line)).collect();
                problems.extend(more.iter().map(|line| format!("{line} {}", service_account::advice())));
            }
            Err(error) => problems.push(format!("what the service's account may read is not known: {error}")),
        }
    }
    match prepared {
        Ok(prepared) if problems.is_empty() => {
            prepared.warnings.iter().for_each(|warning| eprintln!("dcv-splice: warning: {warning}"));
            Ok(io::stdout().write_all(prepared.resolved.show().as_bytes())?)
        }
        _ => Err(unusable(problems.join("\n"))),
    }
}

/// Why `--control` could not be listened on. What lies below /run is made at the start (`RuntimeDirectory=`).
fn control_problem(resolved: &Resolved) -> Option<String> {
    let path = resolved.config.control.as_deref()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let checked = match std::fs::metadata(folder) {
        Err(_) if folder.starts_with("/run") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => socket::check(path),
    };
    let error = checked.err()?;
    Some(resolved.at_place(Some(path), &format!("--control {}: {error}", path.display())))
}

fn pin(agent: SocketAddr) -> Result<(), Failure> {
    let pin = Pin::shown_by(agent).map_err(|error| failed(&error))?;
    println!("{pin}");
    Ok(())
}

fn ask(control: &Path, command: ControlCommand) -> Result<(), Failure> {
    ask_about(control, command, "")
}

fn ask_about(control: &Path, command: ControlCommand, argument: &str) -> Result<(), Failure> {
    let said = inquire(control, command, argument)?;
    Ok(io::stdout().write_all(format!("{said}\n").as_bytes())?)
}

fn complain(problem: &str) {
    eprintln!("dcv-splice: {problem}");
}

fn agents(control: &Path, as_json: bool) -> Result<(), Failure> {
    let agents = reports::agents(control, &mut complain)?;
    show(as_json.then_some(&agents), || agents.table())
}

fn sessions(wanted: &SessionFlags) -> Result<(), Failure> {
    let sessions = reports::sessions(&wanted.control.control, &wanted.filter, &mut complain)?;
    show(wanted.json.then_some(&sessions), || fleet::table_of_sessions(&sessions))
}

/// Says it of an agent, or of the proxy.
fn drain(at: &DrainFlags, of_agent: ControlCommand, of_proxy: ControlCommand) -> Result<(), Failure> {
    match &at.agent {
        Some(agent) => ask_about(&at.control.control, of_agent, agent),
        None => ask(&at.control.control, of_proxy),
    }?;
    std::thread::sleep(at.wait);
    Ok(())
}

fn end(wanted: &EndFlags) -> Result<(), Failure> {
    let filter = serde_json::to_string(&wanted.filter).map_err(|error| failed(&error))?;
    let ended: Vec<u64> = reports(&wanted.control.control, ControlCommand::End, &filter, &mut complain)?;
    println!("sessions ended: {}", ended.iter().sum::<u64>());
    Ok(())
}

/// Prints a document, or what people are shown.
fn show(document: Option<&impl Serialize>, table: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match document {
        Some(document) => serde_json::to_string_pretty(document).map_err(|error| failed(&error))? + "\n",
        None => table(),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Asks those that drain too; where one can't do it, the first such reason is the result.
fn send_to_all(control: &Path, command: ControlCommand) -> Result<(), Failure> {
    let all = socket::all(control);
    if all.is_empty() {
        return ask(control, command);
    }
    let asked = all.iter().map(|process| match ask(process, command) {
        // One that drained may have ended meanwhile, which is no failure.
        Err(_) if process != control && !socket::is_listened_to(process) => Ok(()),
        answer => answer,
    });
    asked.fold(Ok(()), Result::and)
}
