//! The bench's own processes: this program again, by a hidden command, so that the CPU time of client, agent and
//! relay is counted apart. A part is told its plan as JSON; the client prints its outcome as JSON.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use harness::process::Process;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Builder;

use super::wan::{link, source, viewer};
use super::{agent, client, relay};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const LAST_WORDS: usize = 300;

/// Which part of a measurement this process is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Role {
    Agent,
    Client,
    Relay,
    Tied,
    WanAgent,
    WanLink,
    WanViewer,
}

/// A part of a measurement
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    role: Role,
    /// What to do, as JSON
    plan: String,
}

/// Is that part until it is done or killed.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    // Whatever becomes of the bench: its processes end with it.
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|why| why.to_string())?;
    let ended = match args.role {
        Role::Tied => become_program(&parse::<Vec<String>>(&args.plan)?),
        Role::Agent => one_thread()?.block_on(agent::serve(parse(&args.plan)?)),
        Role::Client => one_thread()?.block_on(client::run(parse(&args.plan)?)).and_then(|outcome| {
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(())
        }),
        Role::Relay => two_threads()?.block_on(relay::serve(parse(&args.plan)?)),
        Role::WanAgent => two_threads()?.block_on(source::serve(parse(&args.plan)?)),
        Role::WanLink => link::run(&parse(&args.plan)?),
        Role::WanViewer => one_thread()?.block_on(viewer::run(parse(&args.plan)?)).and_then(|view| {
            println!("{}", serde_json::to_string(&view)?);
            Ok(())
        }),
    };
    ended.map_err(|why| why.to_string())
}

/// The command of a part, not started yet.
pub(super) fn command(role: Role, plan: &impl Serialize) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|why| format!("this program has no path: {why}"))?;
    let plan = serde_json::to_string(plan).map_err(|why| format!("a plan is no JSON: {why}"))?;
    let name = role.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    Ok(from(own, &name, &plan))
}

fn from(own: PathBuf, role: &str, plan: &str) -> Command {
    let mut command = Command::new(own);
    command.args(["bench-part", role, plan]);
    command
}

/// The same program, which then ends with the bench as the bench's own parts do.
pub(super) fn tied(program: &Command) -> Result<Command, String> {
    let words = std::iter::once(program.get_program()).chain(program.get_args());
    command(Role::Tied, &words.map(OsStr::to_string_lossy).collect::<Vec<_>>())
}

fn become_program(words: &[String]) -> io::Result<()> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Err(Command::new(program).args(arguments).exec())
}

/// The process, once something listens there.
pub(super) fn listening(mut process: Process, address: SocketAddr) -> Result<Process, String> {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = process.ended() {
            return Err(format!("ended before it listened ({status}): {}", last_words(&process)));
        }
        if started.elapsed() > START {
            return Err(format!("does not listen on {address} after {} s", START.as_secs()));
        }
        sleep(POLL);
    }
    Ok(process)
}

/// What a client has measured.
pub(super) fn outcome<T: DeserializeOwned>(mut client: Process, limit: Duration) -> Result<T, String> {
    let started = Instant::now();
    while client.ended().is_none() {
        if started.elapsed() > limit {
            return Err(format!("the load is not over after {} s", limit.as_secs()));
        }
        sleep(POLL);
    }
    let status = client.wait();
    if !status.success() {
        return Err(last_words(&client));
    }
    serde_json::from_str(&client.output()).map_err(|why| format!("no outcome: {why}"))
}

/// Its last line on stderr, cut where it gets long.
pub(super) fn last_words(process: &Process) -> String {
    let log = process.log();
    let last = log.lines().next_back().unwrap_or_default();
    last.trim_start_matches("cargo xtask: ").chars().take(LAST_WORDS).collect()
}

fn parse<T: DeserializeOwned>(plan: &str) -> Result<T, String> {
    serde_json::from_str(plan).map_err(|why| format!("not a plan: {why}"))
}

fn one_thread() -> Result<tokio::runtime::Runtime, String> {
    Builder::new_current_thread().enable_all().build().map_err(|why| format!("no runtime: {why}"))
}

fn two_threads() -> Result<tokio::runtime::Runtime, String> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|why| format!("no runtime: {why}"))
}
