//! The real thing: two Xvnc desktops behind websockify, opened through the proxy in a headless Chromium, are drawn,
//! move, and take the keys typed into them, each its own.
//! Debian packages: chromium chromium-driver novnc tigervnc-standalone-server websockify x11-apps
//! x11-xserver-utils xterm
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use fantoccini::key::Key;
use fantoccini::wd::WindowHandle;
use harness::browser::Browser;
use harness::ports::unused_port;
use harness::process::{Process, eventually};
use harness::proxy::{Proxy, target_directory};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn two_desktops_are_drawn_moving_and_take_their_own_keys() {
    let port = unused_port();
    let blue = Desktop::start("127.0.0.2", port, "#204080", "cadmium");
    let green = Desktop::start("127.0.0.3", port, "#206040", "orthodox");
    let mut proxy = start_proxy(port, &[]);
    let browser = start_browser();

    let blue_tab = browser.open(&blue.url(&proxy));
    let green_tab = browser.open(&green.url(&proxy));
    let tabs = [(&blue, blue_tab), (&green, green_tab)];

    for (desktop, tab) in &tabs {
        browser.show(tab);
        desktop.is_drawn(&browser);
        browser.click(CANVAS);
    }
    type_in_turn(&browser, &tabs);
    for (desktop, tab) in &tabs {
        browser.show(tab);
        desktop.has_taken_its_word_only();
        desktop.moves(&browser);
        // Still there, and still its own.
        assert_eq!(browser.colour(DESKTOP), Some(desktop.colour.into()));
        browser.screenshot(&format!("{}.png", desktop.address)).unwrap();
    }
    drop(browser);
    assert!(proxy.terminate().success());
    let log = proxy.output();
    // Pages come by HTTP/2; a WebSocket has a connection of its own, and so a display does not stand in its input's way.
    let ended = || log.lines().filter(|line| !line.ends_with(" end_reason=started"));
    let lines = |what: &str| ended().filter(|line| line.contains(what)).count();
    assert!(lines("HTTP/2.0\" 200 ") >= 2 && lines("HTTP/1.1\" 200 ") == 0, "{log}");
    assert_eq!((lines("HTTP/1.1\" 101 "), lines("HTTP/2.0\" 101 ")), (2, 0), "{log}");
}

/// A browser opens its WebSocket over HTTP/2 too where it may (RFC 8441), on the connection that it has its page from.
#[test]
fn a_desktop_is_drawn_moving_and_takes_keys_over_http2() {
    let port = unused_port();
    let desktop = Desktop::start("127.0.0.2", port, "#204080", "cadmium");
    let mut proxy = start_proxy(port, &["--http2-websocket=on"]);
    let browser = start_browser();
    let tab = browser.open(&desktop.url(&proxy));
    desktop.is_drawn(&browser);
    browser.click(CANVAS);
    for letter in desktop.word.chars().chain([Key::Enter.into()]) {
        browser.press(letter);
    }
    browser.show(&tab);
    desktop.has_taken_its_word_only();
    desktop.moves(&browser);
    browser.screenshot("http2.png").unwrap();
    drop(browser);
    assert!(proxy.terminate().success());
    let log = proxy.output();
    assert!(log.contains("HTTP/2.0\" 101 ") && !log.contains("HTTP/1.1\" "), "{log}");
}

/// A pixel of the bare desktop.
const DESKTOP: [u32; 2] = [790, 470];
/// The clock's area, and a clock that fills it.
const CLOCK: [u32; 4] = [100, 60, 240, 60];
const CLOCK_COMMAND: &str =
    "xclock -digital -strftime %H:%M:%S -face Monospace-20 -update 1 -geometry 240x60+100+60";
/// A pixel of the terminal away from text and pointer, and a terminal that lies there and in the middle.
const TERMINAL: [u32; 2] = [600, 320];
const TERMINAL_COLOUR: &str = "#fff0d0";
const TERMINAL_COMMAND: &str = "xterm -geometry 48x8+100+160 -fa Monospace -fs 14 -bg #fff0d0 -e sh -c";
/// Says whose terminal it is and keeps what is typed into it.
const TERMINAL_SCRIPT: &str = "echo this is $0; cat > typed";
/// Where noVNC draws the remote desktop.
const CANVAS: &str = "#noVNC_container canvas";

fn start_proxy(agent_port: u16, more: &[&str]) -> Proxy {
    let port = format!("--agent-port={agent_port}");
    let flags = [
        "--listen=127.0.0.1:0",
        "--agents=127.0.0.2/32",
        "--agents=127.0.0.3/32",
        "--default-agent=127.0.0.2",
        &port,
        "--access-log=stdout",
    ];
    Proxy::start(&[&flags[..], more].concat())
}

/// One letter here, one there: what is mixed up between the two sessions ends up in the wrong file.
fn type_in_turn(browser: &Browser, tabs: &[(&Desktop, WindowHandle); 2]) {
    let longest = tabs.iter().map(|(desktop, _)| desktop.word.len()).max().unwrap();
    for at in 0..longest {
        for (desktop, tab) in tabs {
            browser.show(tab);
            if let Some(letter) = desktop.word.chars().nth(at) {
                browser.press(letter);
            }
        }
    }
    for (_, tab) in tabs {
        browser.show(tab);
        browser.press(Key::Enter.into());
    }
}

/// A remote desktop as an agent offers it: an X server with a clock and a terminal, and TLS in front of it.
/// The fields are dropped in order: the clients end before their server, and the files after all of them.
struct Desktop {
    address: Ipv4Addr,
    colour: &'static str,
    word: &'static str,
    _clients: [Process; 2],
    _front: Process,
    _server: Process,
    folder: TempDir,
}

impl Desktop {
    fn start(address: &str, port: u16, colour: &'static str, word: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, display) = start_x_server(folder.path());
        let front = start_front(folder.path(), address, port);
        let client = |line: &str, script: &[&str]| {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().unwrap());
            command.current_dir(&folder).env("DISPLAY", &display).args(words).args(script);
            Process::start(command)
        };
        assert!(client(&format!("xsetroot -solid {colour}"), &[]).wait().success());
        // A key must not repeat because its release comes late.
        assert!(client("xset r off", &[]).wait().success());
        let clock = client(CLOCK_COMMAND, &[]);
        let terminal = client(TERMINAL_COMMAND, &[TERMINAL_SCRIPT, address]);
        let address = address.parse().unwrap();
        Self { address, colour, word, _clients: [clock, terminal], _front: front, _server: server, folder }
    }

    fn url(&self, proxy: &Proxy) -> String {
        let agent = self.address;
        format!("https://{}/{agent}/vnc.html?autoconnect=true&path={agent}/websockify", proxy.address())
    }

    /// Its own colour, and its terminal: the browser shows this desktop and no other, and the terminal takes keys.
    fn is_drawn(&self, browser: &Browser) {
        eventually(&format!("desktop {} is drawn", self.address), || {
            let seen = (browser.colour(DESKTOP)?, browser.colour(TERMINAL)?);
            (seen == (self.colour.into(), TERMINAL_COLOUR.into())).then_some(())
        });
    }

    /// The clock takes several different looks: more than one second's drawing of it.
    fn moves(&self, browser: &Browser) {
        let mut looks = HashSet::new();
        eventually(&format!("the clock of {} goes", self.address), || {
            looks.insert(browser.look(CLOCK)?);
            (looks.len() >= 5).then_some(())
        });
    }

    /// What was typed arrives, whole and in order, and nothing else does.
    fn has_taken_its_word_only(&self) {
        let typed = eventually(&format!("a line is typed at {}", self.address), || {
            fs::read_to_string(self.folder.path().join("typed")).ok().filter(|typed| typed.ends_with('\n'))
        });
        assert_eq!(typed.trim_end(), self.word);
    }
}

/// Picks a display nobody has and waits until clients can connect. It speaks RFB on a socket in the folder only.
fn start_x_server(folder: &Path) -> (Process, String) {
    let mut command = Command::new("Xvnc");
    command.args("-displayfd 1 -geometry 800x480 -depth 24 -nolisten tcp".split(' '));
    command.args("-SecurityTypes None -rfbport -1 -rfbunixpath".split(' ')).arg(folder.join("rfb"));
    let mut server = Process::start(command);
    let display = server.until("has a display", |server| server.output().lines().next().map(str::to_owned));
    (server, format!(":{display}"))
}

/// The agent's side of the wire: TLS with a self-signed certificate, the page, and the RFB stream in a WebSocket.
fn start_front(folder: &Path, address: &str, port: u16) -> Process {
    let identity = rcgen::generate_simple_self_signed([address.to_owned()]).unwrap();
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    fs::write(&certificate, identity.cert.pem()).unwrap();
    fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new("websockify");
    command.arg("--cert").arg(certificate).arg("--key").arg(key).arg("--unix-target").arg(folder.join("rfb"));
    command.args(["--ssl-only", "--web", "/usr/share/novnc"]).arg(format!("{address}:{port}"));
    let mut front = Process::start(command);
    front.until("takes connections", |_| TcpStream::connect((address, port)).ok());
    front
}

/// What is seen of a remote desktop.
trait Screen {
    /// The colour of one pixel; none before it is connected.
    fn colour(&self, at: [u32; 2]) -> Option<String>;

    /// A number that stands for what a part looks like; none before it is connected.
    fn look(&self, area: [u32; 4]) -> Option<i64>;
}

impl Screen for Browser {
    fn colour(&self, [x, y]: [u32; 2]) -> Option<String> {
        let pixel = pixels(
            self,
            [x, y, 1, 1],
            "'#' + [...pixels].slice(0, 3).map(byte => byte.toString(16).padStart(2, '0')).join('')",
        );
        pixel.as_str().map(str::to_owned)
    }

    fn look(&self, area: [u32; 4]) -> Option<i64> {
        pixels(self, area, "pixels.reduce((hash, byte) => (31 * hash + byte) | 0, 0)").as_i64()
    }
}

/// What a JavaScript expression makes of the pixels in an area of the remote desktop.
fn pixels(browser: &Browser, area: [u32; 4], expression: &str) -> Value {
    let script = format!(
        "const canvas = document.querySelector('{CANVAS}');
         if (!canvas || !canvas.width || !canvas.height) return null;
         const pixels = canvas.getContext('2d').getImageData(...arguments).data;
         return {expression};"
    );
    browser.run(&script, area.map(Value::from).to_vec())
}

/// A browser whose screenshots are kept among what is built.
fn start_browser() -> Browser {
    Browser::start(target_directory().join("desktop"))
}
