//! A browser for tests: a headless Chromium that does what a user does.
//! Debian packages: chromium chromium-driver
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use fantoccini::actions::{
    InputSource, KeyAction, KeyActions, MOUSE_BUTTON_LEFT, MouseActions, PointerAction,
};
use fantoccini::wd::{Capabilities, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

use crate::process::Process;

/// A headless Chromium with an empty profile that can reach nothing but this machine. The session is closed before
/// the driver ends, and what both have written removed after that.
#[derive(Debug)]
pub struct Browser {
    runtime: Runtime,
    client: Client,
    /// Where screenshots go.
    screenshots: PathBuf,
    _driver: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts one whose screenshots go there.
    pub fn start(screenshots: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").env("TMPDIR", folder.path());
        let mut driver = Process::start(driver);
        let port: u16 = driver.until("has a port", |driver| {
            driver.output().split_once("successfully on port ")?.1.split('.').next()?.parse().ok()
        });
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime
            .block_on(
                ClientBuilder::new(HttpConnector::new())
                    .capabilities(capabilities(&folder.path().join("profile")))
                    .connect(&format!("http://127.0.0.1:{port}")),
            )
            .expect("a browser");
        Self { runtime, client, screenshots, _driver: driver, _folder: folder }
    }

    /// Opens an address in a tab of its own.
    pub fn open(&self, url: &str) -> WindowHandle {
        let tab = self.runtime.block_on(self.client.new_window(true)).expect("a tab").handle;
        self.show(&tab);
        self.runtime.block_on(self.client.goto(url)).expect("a page");
        tab
    }

    /// Goes to that tab.
    pub fn show(&self, tab: &WindowHandle) {
        self.runtime.block_on(self.client.switch_to_window(tab.clone())).expect("a tab");
    }

    /// Makes the window so large.
    pub fn resize(&self, width: u32, height: u32) {
        self.runtime.block_on(self.client.set_window_size(width, height)).expect("a window");
    }

    /// Clicks the middle of an element.
    pub fn click(&self, selector: &str) {
        let element = self.runtime.block_on(self.client.find(Locator::Css(selector))).expect("an element");
        self.runtime.block_on(element.click()).expect("an element that is seen");
    }

    /// Presses the button on an element, and lets it go a while later.
    pub fn click_slowly(&self, selector: &str, held: Duration) {
        let element = self.runtime.block_on(self.client.find(Locator::Css(selector))).expect("an element");
        let to = PointerAction::MoveToElement { element, duration: None, x: 0.0, y: 0.0 };
        let pointer = MouseActions::new("mouse".into())
            .then(to)
            .then(PointerAction::Down { button: MOUSE_BUTTON_LEFT })
            .then(PointerAction::Pause { duration: held })
            .then(PointerAction::Up { button: MOUSE_BUTTON_LEFT });
        self.runtime.block_on(self.client.perform_actions(pointer)).expect("a page");
    }

    /// Presses a key and lets it go.
    pub fn press(&self, key: char) {
        let keys = KeyActions::new("keyboard".into());
        let keys = keys.then(KeyAction::Down { value: key }).then(KeyAction::Up { value: key });
        self.runtime.block_on(self.client.perform_actions(keys)).expect("a page");
    }

    /// What a script gives.
    pub fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.runtime.block_on(self.client.execute(script, arguments)).expect("a script")
    }

    /// Keeps what the tab shows, for people to look at.
    pub fn screenshot(&self, name: &str) -> Result<(), Box<dyn Error>> {
        fs::create_dir_all(&self.screenshots)?;
        fs::write(self.screenshots.join(name), self.runtime.block_on(self.client.screenshot())?)?;
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.screenshot("failed.png");
        }
        // Where the driver is gone there is no session left to close.
        let _ = self.runtime.block_on(self.client.clone().close());
    }
}

fn capabilities(profile: &Path) -> Capabilities {
    let arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--ignore-certificate-errors",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1000,700",
        &format!("--user-data-dir={}", profile.display()),
    ];
    let logs = json!({ "browser": "ALL" });
    [("goog:chromeOptions".to_owned(), json!({ "args": arguments })), ("goog:loggingPrefs".to_owned(), logs)]
        .into_iter()
        .collect()
}
