//! The SSH server that the commands for other machines are tested against: it lets in whom it should, runs what the
//! test has put in its way, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::process::eventually;
use harness::sshd::Sshd;
use nix::unistd::Uid;

fn ssh(arguments: &[String], command: &str) -> Output {
    Command::new("ssh").args(arguments).arg(command).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_command_runs_and_its_output_and_exit_status_come_back() {
    let sshd = Sshd::start();
    let output = ssh(&sshd.ssh_arguments(), "echo out; echo err >&2; exit 3");
    assert_eq!((text(&output.stdout), output.status.code()), ("out\n", Some(3)), "{}", sshd.log());
    assert_eq!(text(&output.stderr), "err\n");
}

#[test]
fn commands_are_first_looked_for_in_the_folder_of_the_test() {
    let sshd = Sshd::start();
    let script = sshd.bin().join("ls");
    fs::write(&script, "#!/bin/sh\necho \"not $1\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let output = ssh(&sshd.ssh_arguments(), "ls listed");
    assert_eq!(text(&output.stdout), "not listed\n", "{}", text(&output.stderr));
}

#[test]
fn another_key_and_an_unknown_host_are_refused() {
    let (sshd, other) = (Sshd::start(), Sshd::start());
    let right = sshd.ssh_arguments();
    let with = |old: &Path, new: &Path| -> Vec<String> {
        right.iter().map(|it| it.replace(old.to_str().unwrap(), new.to_str().unwrap())).collect()
    };
    let stranger = ssh(&with(&sshd.key(), &sshd.stranger()), "true");
    assert_eq!(stranger.status.code(), Some(255));
    assert!(text(&stranger.stderr).contains("Permission denied"), "{}", text(&stranger.stderr));
    let unknown = ssh(&with(&sshd.known_hosts(), &other.known_hosts()), "true");
    assert_eq!(unknown.status.code(), Some(255));
    assert!(text(&unknown.stderr).contains("Host key verification failed"), "{}", text(&unknown.stderr));
}

#[test]
fn the_server_and_its_files_end_with_the_test() {
    let sshd = Sshd::start();
    let (arguments, folder) = (sshd.ssh_arguments(), sshd.bin());
    assert!(ssh(&arguments, "true").status.success());
    drop(sshd);
    assert!(!folder.parent().unwrap().exists());
    let output = ssh(&arguments, "true");
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("Connection refused"), "{}", text(&output.stderr));
}

/// Only root has a namespace of its own for it.
#[test]
fn what_was_started_through_it_ends_with_it() {
    if !Uid::current().is_root() {
        return;
    }
    let sshd = Sshd::start();
    let mark = sshd.bin().display().to_string();
    let left = format!("setsid sh -c 'while :; do sleep 1; done' {mark} >/dev/null 2>&1 </dev/null &");
    assert!(ssh(&sshd.ssh_arguments(), &left).status.success());
    let runs = || commands().iter().any(|command| command.contains(&format!("\0{mark}\0")));
    eventually("it runs", || runs().then_some(()));
    drop(sshd);
    eventually("it has ended", || (!runs()).then_some(()));
}

/// The command lines of all processes.
fn commands() -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.filter_map(|it| fs::read_to_string(it.path().join("cmdline")).ok()).collect()
}
