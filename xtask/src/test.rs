//! `cargo xtask test`: everything from a bare machine to the last test's result.
//! Test targets are read from cargo, so that a new one needs no word here; only the packages it may need
//! stand in `packages.rs`. Cargo's exit code decides, the counts are for the reader.

use crate::{ebpf, packages};
use serde_json::Value;
use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// What the test command takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install nothing: skip, and name, each test target whose packages are missing
    #[arg(long)]
    no_install: bool,
    /// Test targets to run (all when none is named), or parts of the names of tests
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Installs, builds, tests; the error says which of these failed.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let plan = Plan::new(test_targets(&metadata()?), &args.filters);
    if !args.no_install {
        install(&plan.targets)?;
    }
    let (ready, skipped) = sort(&plan.targets)?;
    cargo(&["build", "-p", "dcv-splice"])?;
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for step in plan.steps(&ready) {
        let (counts, success) = cargo_test(&step)?;
        tally.add(&counts);
        if !success {
            failed.push(format!("cargo {} failed", step.join(" ")));
        }
    }
    println!("== {tally}, {} test targets skipped", skipped.len());
    for skip in &skipped {
        println!("== {skip}");
    }
    // Who asked for an install was promised every test; in CI a test that did not run is no test.
    let excused = match env::var("CI").as_deref() {
        Ok("true") => Excused::None,
        _ if args.no_install => Excused::All,
        _ => Excused::Optional,
    };
    verdict(failed, &skipped, excused)
}

/// What was asked for: the whole workspace, or some test targets only.
struct Plan {
    whole: bool,
    targets: Vec<String>,
    names: Vec<String>,
}

impl Plan {
    fn new(found: Vec<String>, filters: &[String]) -> Plan {
        let (chosen, names): (Vec<_>, Vec<_>) = filters.iter().cloned().partition(|it| found.contains(it));
        let whole = chosen.is_empty();
        Plan { whole, targets: if whole { found } else { chosen }, names }
    }

    /// The calls of cargo: doctests can't be run beside others, and a call without a selection runs all.
    fn steps(&self, ready: &[String]) -> Vec<Vec<String>> {
        let mut selection: Vec<&str> = if self.whole { vec!["--lib", "--bins"] } else { Vec::new() };
        selection.extend(ready.iter().flat_map(|target| ["--test", target]));
        let mut steps = Vec::new();
        if !selection.is_empty() {
            steps.push(self.step(&selection));
        }
        if self.whole {
            steps.push(self.step(&["--doc"]));
        }
        steps
    }

    fn step(&self, selection: &[&str]) -> Vec<String> {
        let mut words = vec!["test", "--workspace", "--no-fail-fast"];
        words.extend(selection);
        if !self.names.is_empty() {
            words.push("--");
            words.extend(self.names.iter().map(String::as_str));
        }
        words.into_iter().map(str::to_owned).collect()
    }
}

/// A test target that can't run here, and why.
struct Skipped {
    target: String,
    missing: Vec<&'static str>,
    /// It is about something that has to be asked for.
    is_optional: bool,
}

/// Which of them may be left out.
#[derive(Clone, Copy, PartialEq)]
enum Excused {
    None,
    Optional,
    All,
}

impl fmt::Display for Skipped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} skipped, not there: {}", self.target, self.missing.join(" "))
    }
}

/// How many tests ended how.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads a test program's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn read(line: &str) -> Option<Tally> {
        let mut tally = Tally::default();
        for part in line.strip_prefix("test result: ")?.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => tally.passed = count.parse().ok()?,
                Some((count, "failed")) => tally.failed = count.parse().ok()?,
                Some((count, "ignored")) => tally.ignored = count.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

fn verdict(mut failed: Vec<String>, skipped: &[Skipped], excused: Excused) -> Result<(), String> {
    let is_excused =
        |it: &&Skipped| excused == Excused::All || (excused == Excused::Optional && it.is_optional);
    failed.extend(skipped.iter().filter(|it| !is_excused(it)).map(Skipped::to_string));
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn metadata() -> Result<Value, String> {
    let output = cargo_command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|why| format!("cargo metadata: {why}"))?;
    serde_json::from_slice(&output.stdout).map_err(|why| format!("cargo metadata: {why}"))
}

/// The integration tests of all the workspace's packages, but for those their manifest turns off.
fn test_targets(metadata: &Value) -> Vec<String> {
    let is_test = |target: &&Value| target["kind"][0] == "test" && target["test"] != false;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| is_test(&target))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

/// Installs what the targets lack; what can't be had is skipped afterwards, and named there.
fn install(targets: &[String]) -> Result<(), String> {
    let mut lists = Vec::new();
    for target in targets {
        let missing = packages::missing(target)?;
        if !missing.is_empty() {
            lists.push(missing.join(" "));
        }
    }
    if lists.is_empty() {
        return Ok(());
    }
    println!("== installing {}", lists.join(" "));
    packages::install(&lists).or_else(|why| {
        eprintln!("cargo xtask: {why}");
        Ok(())
    })
}

/// Sorts the targets into those that can run and those that can't.
fn sort(targets: &[String]) -> Result<(Vec<String>, Vec<Skipped>), String> {
    let (mut ready, mut skipped) = (Vec::new(), Vec::new());
    for target in targets.iter().cloned() {
        let mut missing = packages::missing(&target)?;
        let is_optional = target == "ebpf" && !ebpf::object().exists();
        if is_optional {
            missing.push("what `cargo xtask ebpf` builds");
        }
        if missing.is_empty() {
            ready.push(target);
        } else {
            skipped.push(Skipped { target, missing, is_optional });
        }
    }
    Ok((ready, skipped))
}

fn cargo(words: &[&str]) -> Result<(), String> {
    println!("== cargo {}", words.join(" "));
    let status = cargo_command().args(words).status().map_err(|why| format!("cargo: {why}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", words.join(" "))) }
}

/// Runs the tests, showing what they print; returns their counts and whether cargo is content.
fn cargo_test(words: &[String]) -> Result<(Tally, bool), String> {
    println!("== cargo {}", words.join(" "));
    let mut child = cargo_command()
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|why| format!("cargo test: {why}"))?;
    let results = child.stdout.take().map(results);
    let status = child.wait().map_err(|why| format!("cargo test: {why}"))?;
    let mut tally = Tally::default();
    // A program that a test left behind may hold the pipe open for ever: cargo's end is the end.
    while let Some(Ok(counts)) = results.as_ref().map(|all| all.recv_timeout(Duration::from_secs(1))) {
        tally.add(&counts);
    }
    Ok((tally, status.success()))
}

/// Passes the output on as it comes and sends each test program's result.
fn results(output: impl Read + Send + 'static) -> Receiver<Tally> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // Bytes, as a test may print what is not UTF-8.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(tally) = Tally::read(&line) {
                let _ = sender.send(tally);
            }
        }
    });
    receiver
}

fn cargo_command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(crate::root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn steps(filters: &str, ready: &str) -> Vec<String> {
        let plan = Plan::new(words("conformance interop"), &words(filters));
        plan.steps(&words(ready)).iter().map(|step| step.join(" ")).collect()
    }

    #[test]
    fn without_a_filter_the_whole_workspace_is_tested() {
        let tests = "test --workspace --no-fail-fast --lib --bins --test conformance --test interop";
        assert_eq!(steps("", "conformance interop"), [tests, "test --workspace --no-fail-fast --doc"]);
    }

    #[test]
    fn a_skipped_target_is_not_selected() {
        assert_eq!(
            steps("", "conformance")[0],
            "test --workspace --no-fail-fast --lib --bins --test conformance"
        );
        assert_eq!(steps("interop", ""), [""; 0]);
    }

    #[test]
    fn a_filter_is_a_target_or_part_of_a_tests_name() {
        let all_of_interop = "test --workspace --no-fail-fast --test interop";
        assert_eq!(steps("interop", "interop"), [all_of_interop]);
        assert_eq!(steps("interop early", "interop"), [format!("{all_of_interop} -- early")]);
        assert_eq!(steps("early", "conformance")[1], "test --workspace --no-fail-fast --doc -- early");
    }

    #[test]
    fn test_targets_are_those_cargo_lists() {
        let metadata = serde_json::json!({"packages": [
            {"targets": [{"kind": ["lib"], "name": "harness"}, {"kind": ["test"], "name": "simulation", "test": true}]},
            {"targets": [{"kind": ["test"], "name": "interop"}, {"kind": ["test"], "name": "off", "test": false}]},
        ]});
        assert_eq!(test_targets(&metadata), ["simulation", "interop"]);
        assert_eq!(test_targets(&Value::Null), [""; 0]);
    }

    #[test]
    fn counts_are_read_from_the_closing_line() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; finished in 0.01s";
        assert_eq!(Tally::read(line), Some(Tally { passed: 3, failed: 2, ignored: 1 }));
        assert_eq!(Tally::read("test three_are_passed ... ok"), None);
    }

    #[test]
    fn results_are_counted_through_other_output() {
        let output = &b"running\n\xff\ntest result: ok. 2 passed; 0 failed\nmore\n"[..];
        let all: Vec<Tally> = results(output).iter().collect();
        assert_eq!(all, [Tally { passed: 2, failed: 0, ignored: 0 }]);
    }

    #[test]
    fn a_skipped_target_fails_unless_it_may() {
        let skipped = |is_optional| [Skipped { target: "wire".into(), missing: vec!["curl"], is_optional }];
        let fails = Err("wire skipped, not there: curl".into());
        for (is_optional, excused, expected) in [
            (false, Excused::All, Ok(())),
            (false, Excused::Optional, fails.clone()),
            (true, Excused::Optional, Ok(())),
            (true, Excused::None, fails),
        ] {
            assert_eq!(verdict(Vec::new(), &skipped(is_optional), excused), expected);
        }
        assert_eq!(
            verdict(vec!["cargo test failed".into()], &[], Excused::All),
            Err("cargo test failed".into())
        );
    }
}
