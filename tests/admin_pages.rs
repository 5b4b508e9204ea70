//! The admin pages in a real browser: they change by themselves, keys do what a mouse does, and they fit a telephone.
//! Debian packages: chromium chromium-driver
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use fantoccini::key::Key;
use harness::browser::Browser;
use harness::channel::{Channel, EchoAgent};
use harness::process::eventually;
use harness::proxy::{Proxy, target_directory};
use tempfile::TempDir;

/// As wide as a telephone, as far as the browser lets its window be.
const NARROW: u32 = 500;

/// A proxy of agents, and a browser that looks at its page.
struct Scene {
    proxy: Proxy,
    browser: Browser,
    _folder: TempDir,
}

impl Scene {
    /// `agents`: the file of them, if there are any; `port`: theirs.
    fn start(agents: &str, port: u16, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agents.toml");
        fs::write(&file, agents).unwrap();
        let port = format!("--agent-port={port}");
        let file = format!("--agents-file={}", file.display());
        let file = if agents.is_empty() { None } else { Some(&*file) };
        let flags =
            ["--listen-plain=127.0.0.1:0", "--admin=127.0.0.1:0", "--agents=127.0.0.0/8", "--agent-tls=off"];
        let proxy = Proxy::start(&[&flags[..], file.as_slice(), &[&*port], more].concat());
        // Screenshots for the documents go where they are wanted.
        let screens = std::env::var_os("DCV_SPLICE_SCREENS");
        let screens = screens.map_or_else(|| target_directory().join("admin"), Into::into);
        let browser = Browser::start(screens);
        let scene = Self { proxy, browser, _folder: folder };
        scene.browser.open(&scene.url("/"));
        scene.becomes_live();
        scene
    }

    fn url(&self, path: &str) -> String {
        let log = self.proxy.log();
        let address = log.split("admin page at http://").nth(1).unwrap().split('/').next().unwrap();
        format!("http://{address}{path}")
    }

    /// What a JavaScript expression gives, as text.
    fn sees(&self, expression: &str) -> String {
        let value = self.browser.run(&format!("return String({expression})"), Vec::new());
        value.as_str().unwrap().to_owned()
    }

    /// Waits until the page has the text; gives all of the page's.
    #[track_caller]
    fn shows(&self, text: &str) -> String {
        eventually(&format!("the page shows {text}"), || {
            Some(self.sees("document.body.innerText")).filter(|page| page.contains(text))
        })
    }

    #[track_caller]
    fn becomes_live(&self) {
        eventually("the page is live", || {
            (self.sees("document.querySelector('#live').innerText") == "live").then_some(())
        });
    }

    /// Waits until an expression is true.
    #[track_caller]
    fn holds(&self, expression: &str) {
        eventually(&format!("{expression} holds"), || (self.sees(expression) == "true").then_some(()));
    }

    fn press(&self, keys: &[char]) {
        for key in keys {
            self.browser.press(*key);
        }
    }
}

/// The text of the cells of the first table, row by row.
const ROWS: &str =
    "[...document.querySelector('table').querySelectorAll('tbody tr')].map(row => row.innerText).join('\\n')";

/// The ids that are there more than once.
const DOUBLE_IDS: &str = "[...document.querySelectorAll('[id]')].map(it => it.id).filter((id, at, all) => all.indexOf(id) !== at).join()";

#[test]
fn a_slow_agent_is_found_and_its_session_looked_at_with_keys_alone() {
    let (fast, slow) = (EchoAgent::start([127, 0, 0, 1].into()), EchoAgent::start([127, 0, 0, 2].into()));
    slow.answers_after(Duration::from_millis(80));
    let agents = [("fast", &fast), ("slow", &slow)].map(|(name, agent)| {
        let (ip, port) = (agent.address.ip(), agent.address.port());
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{ip}\"\nport = {port}\n")
    });
    let ports = format!("--agent-ports={},{}", fast.address.port(), slow.address.port());
    let mut scene = Scene::start(&agents.concat(), fast.address.port(), &[&ports]);
    assert!(scene.sees(ROWS).starts_with("fast"), "{}", scene.sees(ROWS));
    scene.sees("window.wasNeverLoadedAgain = true");

    // Sessions appear, and the slow agent comes first with the place that it is slow at.
    let channels =
        ["/fast/ws", "/fast/ws", "/slow/ws"].map(|path| Channel::open(scene.proxy.address(), path));
    scene.holds(&format!("{ROWS}.startsWith('slow')"));
    scene.shows("3 sessions");
    let bar = "document.querySelector('tbody tr svg').getAttribute('aria-label')";
    eventually("the bar names the agent", || scene.sees(bar).contains(", agent 8").then_some(()));
    assert_eq!(scene.sees("window.wasNeverLoadedAgain"), "true");
    scene.holds("getComputedStyle(document.querySelector('.place3')).fill.startsWith('rgb(')");
    scene.browser.screenshot("overview.png").unwrap();

    // Nothing of the page is there twice, and what somebody has the button down on stays.
    assert_eq!(scene.sees(DOUBLE_IDS), "");
    scene.browser.click_slowly("tbody a", Duration::from_millis(2500));
    scene.shows("Since the process began");
    scene.press(&['u']);
    scene.shows("Processes and workers");
    scene.becomes_live();
    // What is being copied stays too, and that is said.
    scene.sees("getSelection().selectAllChildren(document.querySelector('main h2'))");
    scene.holds("document.querySelector('#live').innerText === 'paused: text is selected'");
    scene.sees("getSelection().removeAllRanges()");
    scene.becomes_live();

    // What has the focus keeps it while the page changes.
    scene.press(&['j']);
    scene.holds("document.activeElement.innerText === 'slow'");
    scene.sees("document.querySelector('tbody').id = 'former'");
    scene.holds("!document.getElementById('former')");
    assert_eq!(scene.sees("document.activeElement.innerText"), "slow");
    scene.press(&[Key::Enter.into()]);
    scene.shows("Since the process began");
    assert_eq!(scene.sees("document.querySelector('h1').innerText"), "slow");
    scene.becomes_live();
    scene.browser.screenshot("agent.png").unwrap();
    scene.press(&['j', Key::Enter.into()]);
    scene.shows("The last five minutes");
    scene.becomes_live();
    scene.holds("document.querySelectorAll('figure').length === 4");
    scene.holds("document.querySelectorAll('figure rect').length >= 3");
    scene.browser.screenshot("session.png").unwrap();
    scene.press(&['u']);
    scene.shows("Since the process began");
    scene.press(&['u']);
    scene.shows("Processes and workers");

    // A filter, written behind its key.
    scene.press(&['/', 'f', 'a', 's', 't', Key::Enter.into()]);
    scene.shows("Sessions with “fast”");
    assert!(!scene.sees(ROWS).contains("slow"), "{}", scene.sees(ROWS));
    drop(channels);
    scene.browser.open(&scene.url("/"));
    scene.shows("client-");
    // The proxy goes, and it is said.
    scene.proxy.terminate();
    scene.shows("no connection, trying again");
}

#[test]
fn a_page_fits_a_telephone_with_many_agents_and_with_none() {
    let mut agents = String::new();
    for number in 1..=200 {
        writeln!(agents, "[[agent]]\nname = \"gpu-{number:03}\"\naddress = \"127.9.0.{number}\"").unwrap();
    }
    for (agents, rows) in [(&*agents, 200), ("", 0)] {
        let scene = Scene::start(agents, 9, &[]);
        let shown =
            "[...document.querySelectorAll('tbody a')].filter(it => it.href.includes('/agent/')).length";
        assert_eq!(scene.sees(shown), rows.to_string());
        if rows == 0 {
            scene.shows("None has a name, and none has a session.");
        }
        for width in [NARROW, 1280] {
            scene.browser.resize(width, 900);
            scene.holds("document.documentElement.scrollWidth <= document.documentElement.clientWidth");
            scene.browser.screenshot(&format!("{rows}-agents-{width}.png")).unwrap();
        }
    }
}
