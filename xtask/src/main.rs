//! The project's commands, as `cargo xtask COMMAND`.
//! This file only dispatches: a command is a module of its own and returns why it failed.

mod bench;
mod demo;
mod deploy;
mod dist;
mod docs;
mod ebpf;
mod licences;
mod packages;
mod session;
mod ssh;
mod test;
mod tidy;

use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The project's commands
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Compare the proxy with what else could do its work
    Bench(bench::Args),
    /// A process of a bench's own
    #[command(hide = true)]
    BenchPart(bench::part::Args),
    /// Show two stand-in desktops behind the proxy, in a browser of yours
    Demo(demo::Args),
    /// Bring a configuration and the package to a host, and have it served there
    Deploy(deploy::Args),
    /// Make the Debian package
    Dist(dist::Args),
    /// Write the tables of docs/configuration.md from the flags
    Docs,
    /// See to it that an agent has a DCV session to connect to
    Session(session::Args),
    /// Build the kernel's part of the account
    Ebpf,
    /// Install what the tests need, build and run all tests
    Test(test::Args),
    /// Check the repository's own rules
    Tidy,
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Bench(args) => bench::run(&args),
        Command::BenchPart(args) => bench::part::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Deploy(args) => deploy::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Docs => docs::run(),
        Command::Session(args) => session::run(&args),
        Command::Ebpf => ebpf::run(),
        Command::Test(args) => test::run(&args),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("cargo xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root, wherever the command was called.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR");
    chosen.map_or_else(|| root().join("target"), |folder| root().join(folder))
}
