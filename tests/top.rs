//! `dcv-splice top` in a real terminal of 80 columns and 24 lines: what it shows, and what keys do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::channel::{Channel, EchoAgent};
use harness::proxy::{self, Proxy};

/// A terminal that tmux keeps, on a server of its own.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(folder: &std::path::Path, command: &str) -> Self {
        let terminal = Self { socket: folder.join("tmux").display().to_string() };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", command]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-S", &self.socket]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until all of them are on the screen; gives it.
    fn until(&self, wanted: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if wanted.iter().all(|text| screen.contains(text)) {
                // For the documents.
                if let Ok(folder) = std::env::var("DCV_SPLICE_SCREENS") {
                    let name = wanted[0].trim().replace(|it: char| !it.is_ascii_alphanumeric(), "-");
                    fs::write(format!("{folder}/top-{name}.txt"), &screen).unwrap();
                }
                return screen;
            }
            assert!(start.elapsed() < Duration::from_mins(1), "{wanted:?} is not on\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

#[test]
fn agents_and_sessions_are_shown_the_slowest_first_and_one_can_be_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (fast, slow) = (EchoAgent::start([127, 0, 0, 1].into()), EchoAgent::start([127, 0, 0, 2].into()));
    slow.answers_after(Duration::from_millis(80));
    let agents = [("fast", &fast), ("slow", &slow)].map(|(name, agent)| {
        let (ip, port) = (agent.address.ip(), agent.address.port());
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{ip}\"\nport = {port}\n")
    });
    fs::write(path("agents.toml"), agents.concat()).unwrap();
    let flags = [
        "--listen-plain=127.0.0.1:0".to_owned(),
        "--agents=127.0.0.0/8".to_owned(),
        format!("--agents-file={}", path("agents.toml")),
        format!("--agent-ports={},{}", fast.address.port(), slow.address.port()),
        format!("--agent-port={}", fast.address.port()),
        "--agent-tls=off".to_owned(),
        format!("--control={}", path("control")),
    ];
    let mut proxy = Proxy::start(&flags.each_ref().map(String::as_str));
    proxy.until("serves", |log| log.contains("control socket opened").then_some(()));
    let channels = ["/fast/ws", "/fast/ws", "/slow/ws"].map(|path| Channel::open(proxy.address(), path));
    // What it leaves behind is seen on the screen that was there before.
    let top = format!("{} top --control {}", proxy::binary().display(), path("control"));
    let command = format!("{top}; echo \"exit code $?\"; exec sleep 600");
    let terminal = Terminal::start(folder.path(), &command);

    // The slow agent is first, and the place that it is slow at is shown.
    let screen = terminal.until(&[" agents: 2 ", "CLIENT NET", "PROXY", "AGENT NET", "80 ms", "3 sessions"]);
    assert!(screen.find("slow").unwrap() < screen.find("fast").unwrap(), "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    terminal.press(&["s", "s"]);
    let screen = terminal.until(&["s sort: name"]);
    assert!(screen.find("fast").unwrap() < screen.find("slow").unwrap(), "{screen}");
    // One agent's sessions, one of them, and back.
    terminal.press(&["Enter"]);
    terminal.until(&[" sessions of 127.0.0.1:", ": 2 ", "127.0.0.1", "B/s"]);
    terminal.press(&["Enter"]);
    terminal.until(&[
        "lag:",
        "RTT to the client, up to",
        "queue",
        "time in the proxy, up to",
        "agent 127.0.0.1:",
    ]);
    terminal.press(&["Escape"]);
    terminal.until(&[" sessions of "]);
    // All of them, by a filter.
    terminal.press(&["l"]);
    terminal.until(&[" sessions: 3 "]);
    terminal.press(&["/", "s", "l", "o"]);
    terminal.until(&[" sessions: 1 ", "filter: slo_"]);
    terminal.press(&["Enter"]);
    terminal.press(&["Enter"]);
    terminal.until(&["agent 127.0.0.2:", "lag:"]);
    drop(channels);
    terminal.until(&["It has ended."]);
    // The proxy goes, and it is said.
    proxy.terminate();
    terminal.until(&["no answer: "]);
    terminal.press(&["q"]);
    terminal.until(&["exit code 0"]);
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let output = Command::new(proxy::binary()).args(["top", "--control", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("sessions --json"), "{error}");
}
