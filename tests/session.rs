//! `cargo xtask session` against a real SSH server, behind which a script stands in for the agent's `dcv`: what it
//! creates, what it leaves alone, what it refuses to send, and what it says when something is amiss.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use harness::sshd::Sshd;
use tokio::net::TcpSocket;

const PROXY: &str = "--proxy=https://proxy.example.com:8443";

/// An agent: an SSH server with a `dcv` that keeps its sessions in a folder.
struct Agent {
    sshd: Sshd,
    state: PathBuf,
}

/// What the command printed, and how it ended.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Agent {
    fn start() -> Self {
        let agent = Self::without_dcv();
        agent.command("dcv", include_str!("session/dcv.sh"));
        agent
    }

    fn without_dcv() -> Self {
        let sshd = Sshd::start();
        let state = sshd.bin().with_file_name("state");
        fs::create_dir(&state).unwrap();
        Self { sshd, state }
    }

    /// Puts a script in the way of the commands of that name.
    fn command(&self, name: &str, script: &str) {
        let file = self.sshd.bin().join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes the stand-in behave: see its first lines.
    fn set(&self, file: &str, text: &str) {
        fs::write(self.state.join(file), text).unwrap();
    }

    fn session(&self, flags: &[&str]) -> Ran {
        session(&self.sshd.key(), &self.sshd.known_hosts(), self.sshd.port(), flags)
    }

    /// The calls that changed something, or would have.
    fn created(&self) -> Vec<String> {
        self.calls()
            .into_iter()
            .filter(|call| !call.contains("list-") && !call.contains("describe-"))
            .collect()
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.state.join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// What it keeps of a session.
    fn kept(&self, id: &str) -> Option<String> {
        fs::read_to_string(self.state.join(format!("{id}.json"))).ok()
    }

    fn me(&self) -> &str {
        self.sshd.user()
    }
}

impl Ran {
    #[track_caller]
    fn succeeds(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    fn fails(self) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

/// Runs the command, built once, with the way to an SSH server on this machine.
fn session(key: &Path, known_hosts: &Path, port: u16, flags: &[&str]) -> Ran {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let output = Command::new(BINARY.get_or_init(|| harness::proxy::build("xtask")))
        .args(["session", "--agent=127.0.0.1", "--ssh-port", &port.to_string()])
        .args([Path::new("--key"), key, Path::new("--known-hosts"), known_hosts])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn a_missing_session_is_created_and_shown() {
    let agent = Agent::start();
    let shown = agent.session(&[PROXY]).succeeds();
    let me = agent.me();
    let created = format!("<create-session><--type=virtual><--owner><{me}><desktop-session>");
    assert_eq!(agent.created(), [created]);
    assert_eq!(
        shown,
        format!(
            "desktop-session on 127.0.0.1: created\n  type         virtual\n  owner        {me}\n  \
             connections  0\n  browser      https://proxy.example.com:8443/127.0.0.1/#desktop-session\n"
        )
    );
}

#[test]
fn a_second_run_creates_nothing_and_says_that_it_is_there() {
    let agent = Agent::start();
    let first = agent.session(&[PROXY]).succeeds();
    let second = agent.session(&[PROXY]).succeeds();
    assert_eq!(agent.created().len(), 1);
    assert_eq!(second, first.replace("created", "was there"));
}

#[test]
fn others_sessions_on_the_agent_are_left_alone() {
    let agent = Agent::start();
    agent.session(&["--name=one"]).succeeds();
    let one = agent.kept("one");
    agent.session(&["--name=two_2"]).succeeds();
    assert_eq!(agent.created().len(), 2);
    assert_eq!(agent.kept("one"), one);
}

#[test]
fn a_list_without_any_output_has_no_session() {
    let agent = Agent::start();
    agent.set("brief", "");
    says(&agent.session(&[]).succeeds(), &["created"]);
    says(&agent.session(&[]).succeeds(), &["was there"]);
}

#[test]
fn a_session_of_another_owner_or_type_is_reported_and_untouched() {
    let agent = Agent::start();
    agent.session(&[]).succeeds();
    let kept = agent.kept("desktop-session");
    let said = agent.session(&["--owner=alice"]).fails();
    says(
        &said,
        &[
            "127.0.0.1 has a session desktop-session already: virtual, of",
            agent.me(),
            "Wanted: virtual, of alice",
        ],
    );
    let said = agent.session(&["--type=console"]).fails();
    says(&said, &["already: virtual, of", "Wanted: console, of", "dcv close-session desktop-session"]);
    assert_eq!((agent.kept("desktop-session"), agent.created().len()), (kept, 1));
}

#[test]
fn root_starts_the_desktop_of_another_as_that_user() {
    let agent = Agent::start();
    agent.command("id", "#!/bin/sh\necho root\n");
    says(&agent.session(&["--owner=alice"]).succeeds(), &["owner        alice"]);
    let wanted = "<--type=virtual><--owner><alice><--user><alice><desktop-session>";
    says(&agent.created()[0], &[wanted]);
}

#[test]
fn who_is_not_root_is_told_to_become_root_for_the_desktop_of_another() {
    let agent = Agent::start();
    agent.command("id", "#!/bin/sh\necho bob\n");
    let said = agent.session(&["--owner=alice"]).fails();
    says(&said, &["bob can't start a desktop of alice's", "--sudo"]);
    assert_eq!(agent.created(), [""; 0]);
}

#[test]
fn a_console_session_is_created_without_another_user() {
    let agent = Agent::start();
    let shown = agent.session(&["--type=console", "--owner=alice", "--name=console"]).succeeds();
    says(&shown, &["type         console", "owner        alice", "https://PROXY:8443/127.0.0.1/#console"]);
    assert_eq!(agent.created(), ["<create-session><--type=console><--owner><alice><console>"]);
}

#[test]
fn sudo_runs_dcv_as_root_without_asking_for_a_password() {
    let agent = Agent::start();
    agent.command("id", "#!/bin/sh\necho bob\n");
    agent.command("sudo", "#!/bin/sh\n[ \"$1\" = -n ] && shift && exec \"$@\"\n");
    says(&agent.session(&["--sudo"]).succeeds(), &["owner        bob"]);
    says(&agent.created()[0], &["<--owner><bob><--user><bob>"]);
    agent.command("sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n");
    says(&agent.session(&["--sudo"]).fails(), &["sudo: a password is required", "NOPASSWD"]);
    agent.command("sudo", "#!/bin/sh\necho 'sudo: dcv: command not found' >&2\nexit 1\n");
    says(&agent.session(&["--sudo"]).fails(), &["no `dcv` on 127.0.0.1"]);
}

#[test]
fn hostile_values_are_refused_before_anything_is_run() {
    let agent = Agent::start();
    let mark = agent.state.join("touched");
    let touch = format!("$(touch {})", mark.display());
    let values = [
        "", "a b", "a'b", "a\"b", &touch, "`id`", "a;id", "a&&id", "a|id", "a\nid", "-x", "--help", "a>b",
        "*", "~",
    ];
    for flag in ["--name", "--owner", "--ssh-user", "--agent", "--type", "--proxy"] {
        for value in values {
            let ran = agent.session(&[&format!("{flag}={value}")]);
            assert_eq!(ran.code, Some(2), "{flag}={value:?}: {}{}", ran.stdout, ran.stderr);
            says(&ran.stderr, &["error: ", flag]);
        }
    }
    assert_eq!(agent.session(&["--agent=-oProxyCommand=true"]).code, Some(2));
    assert_eq!(agent.session(&[&format!("--name={}", "a".repeat(129))]).code, Some(2));
    assert!(!agent.sshd.log().contains("Accepted"), "{}", agent.sshd.log());
    assert_eq!((agent.calls(), mark.exists()), (Vec::new(), false));
}

#[test]
fn without_an_ssh_server_it_says_what_to_try() {
    let agent = Agent::start();
    // Bound and not listening: nobody else comes to listen there.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let said = session(&agent.sshd.key(), &agent.sshd.known_hosts(), port, &[]).fails();
    says(&said, &["no SSH to 127.0.0.1", "Connection refused", &format!("Try by hand: ssh -p {port} ")]);
}

#[test]
fn a_wrong_key_and_an_unknown_host_are_told_apart() {
    let (agent, other) = (Agent::start(), Agent::start());
    let (ssh, port) = (&agent.sshd, agent.sshd.port());
    let said = session(&ssh.stranger(), &ssh.known_hosts(), port, &[]).fails();
    says(&said, &["no SSH to 127.0.0.1", "Permission denied", "Try by hand: ssh"]);
    let said = session(&ssh.key(), &other.sshd.known_hosts(), port, &[]).fails();
    says(&said, &["no SSH to 127.0.0.1", "Host key verification failed", "Try by hand: ssh"]);
    assert_eq!(agent.calls(), [""; 0]);
}

#[test]
fn an_agent_without_dcv_is_named() {
    let agent = Agent::without_dcv();
    says(&agent.session(&[]).fails(), &["no `dcv` on 127.0.0.1", "nice-dcv-server"]);
}

#[test]
fn what_dcv_says_is_passed_on_with_where_to_look() {
    let agent = Agent::start();
    agent.set("fails", "Could not create session. No licenses.\u{1b}[2J");
    let said = agent.session(&[]).fails();
    says(
        &said,
        &["`dcv create-session` failed on 127.0.0.1", "No licenses.[2J", "nice-xdcv", "sessionlauncher.log"],
    );
    says(&agent.session(&["--type=console"]).fails(), &["No licenses.", "needs root", "server.log"]);
    agent.set("fails-list", "Could not get the system bus");
    let said = agent.session(&[]).fails();
    says(
        &said,
        &["`dcv list-sessions` failed", "Could not get the system bus", "systemctl status dcvserver"],
    );
}

#[test]
fn a_session_that_ends_as_soon_as_it_is_created_is_no_success() {
    let agent = Agent::start();
    agent.set("dies", "");
    let said = agent.session(&["--name=short"]).fails();
    says(
        &said,
        &["has ended since: its desktop did not start", &format!("dcv-session.{}.short.log", agent.me())],
    );
}

#[test]
fn a_session_that_another_creates_meanwhile_is_as_good() {
    let agent = Agent::start();
    agent.set("race", agent.me());
    says(&agent.session(&[]).succeeds(), &["desktop-session on 127.0.0.1: was there"]);
    let agent = Agent::start();
    agent.set("race", "alice");
    says(&agent.session(&[]).fails(), &["already: virtual, of alice"]);
}

#[test]
fn a_dcv_that_prints_something_else_is_not_believed() {
    let agent = Agent::start();
    agent.command("dcv", "#!/bin/sh\necho 'Session: desktop-session (owner:root type:virtual)'\n");
    says(&agent.session(&[]).fails(), &["`dcv list-sessions --json` printed", "Session: desktop-session"]);
}

/// A name that can't go into a command line is no default for one.
#[test]
fn an_account_whose_name_cannot_be_the_owner_wants_the_owner_named() {
    let agent = Agent::start();
    agent.command("id", "#!/bin/sh\necho root@example.com\n");
    says(&agent.session(&[]).fails(), &["root@example.com on 127.0.0.1 can't be the owner (--owner)"]);
    says(&agent.session(&["--owner=alice", "--type=console"]).succeeds(), &["owner        alice"]);
}

#[test]
fn the_agents_example_asks_for_a_password() {
    let example = include_str!("../packaging/agent/dcv.conf");
    let set: Vec<_> =
        example.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])).collect();
    assert!(set.iter().all(|line| line.contains('=')), "{set:?}");
    let authentication: Vec<_> = set.iter().filter(|line| line.starts_with("authentication")).collect();
    assert_eq!(authentication, [&"authentication=\"system\""]);
    let section = example.split("\n[").find(|section| section.contains("\nauthentication="));
    assert!(section.is_some_and(|section| section.starts_with("security]")));
}
