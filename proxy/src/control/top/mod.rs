//! `dcv-splice top`: agents and sessions in a terminal, where their time goes, the slowest first. Changes nothing of what it shows.
//! Uses the control socket and `observe`.

mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::config::{SessionFilter, TopFlags};
use crate::control::exit::{Failure, failed};
use crate::control::reports;

/// How often it looks again.
const LOOK: Duration = Duration::from_secs(1);
/// Keys that wait to be handled.
const KEYS_MAX: usize = 64;

/// Runs until it is ended by a key.
pub(super) fn run(wanted: &TopFlags) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        let help = "top wants a terminal: `dcv-splice sessions --json` is for programs";
        return Err(failed(&help));
    }
    let mut view = view::View::default();
    let control = &wanted.control.control;
    // What can't be asked is said before the screen is taken.
    look(&mut view, control, &wanted.filter)?;
    let mut terminal = ratatui::try_init()?;
    let keys = keys();
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| screen::draw(frame, &mut view)) {
            break Err(error.into());
        }
        match keys.recv_timeout(LOOK) {
            Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                if view.press(key.code, key.modifiers) == view::Pressed::Quit {
                    break Ok(());
                }
                // What another view shows is not there yet.
                if let Err(failure) = look(&mut view, control, &wanted.filter) {
                    view.problem = Some(failure.reason);
                }
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                // A proxy that is being restarted comes back.
                if let Err(failure) = look(&mut view, control, &wanted.filter) {
                    view.problem = Some(failure.reason);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
        }
    };
    ratatui::try_restore()?;
    ended
}

fn look(view: &mut view::View, control: &Path, filter: &SessionFilter) -> Result<(), Failure> {
    let mut problem = None;
    let complain = &mut |it: &str| problem = Some(it.to_owned());
    view.agents = reports::agents(control, complain)?.agent;
    view.sessions = reports::sessions(control, filter, complain)?;
    view.history = match &view.watched {
        Some(id) => reports::history(control, id, complain)?,
        None => Vec::new(),
    };
    view.problem = problem;
    Ok(())
}

/// Keys, from a thread that ends with the program.
fn keys() -> Receiver<Event> {
    let (pressed, keys) = mpsc::sync_channel(KEYS_MAX);
    std::thread::spawn(move || read_keys(&pressed));
    keys
}

fn read_keys(pressed: &SyncSender<Event>) {
    while let Ok(event) = event::read() {
        if pressed.send(event).is_err() {
            return;
        }
    }
}
