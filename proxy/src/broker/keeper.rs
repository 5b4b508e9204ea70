//! The broker's own side: waits for questions, and looks each second whether a file has changed.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::launch::start_next;
use super::{Line, Matter, Message, program};
use crate::config::{AccessLogTo, Config, Settings};
use crate::control;
use crate::files::{Disk, Files, Knowing, read_whole};
use crate::prepared::Prepared;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Serves whoever is on the other side of the standard input until it has gone.
pub fn keep(settings: Settings) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // They are meant for the serving process, with which this one ends.
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let _ignored = kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()?;
        let line = Line::new(io::stdin().as_fd().try_clone_to_owned()?)?;
        Keeper::new(settings)?.serve(&line).await
    })
}

struct Keeper {
    settings: Settings,
    program: PathBuf,
    serving: u32,
    sockets: Vec<OwnedFd>,
    /// What the configuration file said when it was asked for last: only then is it read.
    text: Option<(PathBuf, Vec<u8>)>,
    /// What the serving process goes by.
    config: Option<Config>,
    watched: BTreeMap<PathBuf, Option<Stamp>>,
}

/// By which a change is seen: when, how long, and which.
type Stamp = (i64, i64, u64, u64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino())
}

impl Keeper {
    fn new(settings: Settings) -> io::Result<Self> {
        Ok(Self {
            settings,
            program: program()?,
            serving: parent_id(),
            sockets: Vec::new(),
            text: None,
            config: None,
            watched: BTreeMap::new(),
        })
    }

    async fn serve(mut self, line: &Line) -> io::Result<()> {
        self.answer(line, Message::about(Matter::Reload)).await?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                question = line.receive() => match question {
                    Ok(Some(question)) => self.answer(line, question).await?,
                    Ok(None) => break,
                    Err(error) => {
                        self.leave();
                        return Err(error);
                    }
                },
                _ = looks.tick() => {
                    if let Some(message) = self.look() {
                        send(line, &message).await?;
                    }
                }
            }
        }
        self.leave();
        Ok(())
    }

    async fn answer(&mut self, line: &Line, question: Message) -> io::Result<()> {
        let matter = question.matter;
        let answer = match matter {
            Matter::Reload | Matter::Changed => self.reload(),
            Matter::Reopen => self.reopen(),
            Matter::Announce => Message::outcome(matter, self.announce()),
            Matter::Sockets => {
                self.sockets.extend(question.descriptors);
                return Ok(());
            }
            Matter::Upgrade => {
                let sockets = std::mem::take(&mut self.sockets);
                let started = start_next(&self.program, &self.settings, sockets, self.serving).await;
                Message::outcome(matter, started)
            }
        };
        send(line, &answer).await
    }

    fn reload(&mut self) -> Message {
        let disk = Disk::default();
        let prepared = Prepared::new(&self.settings, &disk).and_then(|prepared| self.allow(prepared));
        self.message(Matter::Reload, prepared, disk)
    }

    /// What a running process can go by.
    fn allow(&self, prepared: Prepared) -> Result<Prepared, String> {
        let fixed = self.config.as_ref().and_then(|config| config.fixed_setting_unlike(prepared.config()));
        match fixed {
            None => Ok(prepared),
            Some(key) => Err(prepared.resolved.blame_key(
                key,
                &format!("{key} can't change while it runs: `dcv-splice upgrade` takes it up"),
            )),
        }
    }

    /// Reads again what has changed, by the configuration of last time.
    fn look(&mut self) -> Option<Message> {
        let now = |path: &PathBuf| fs::metadata(path).ok().as_ref().map(stamp);
        if self.watched.iter().all(|(path, before)| now(path) == *before) {
            return None;
        }
        let disk = Disk::default();
        let files = Knowing { files: &disk, known: self.text.as_ref() };
        let prepared = Prepared::new(&self.settings, &files);
        Some(self.message(Matter::Changed, prepared, disk))
    }

    fn message(&mut self, matter: Matter, prepared: Result<Prepared, String>, disk: Disk) -> Message {
        match self.note(prepared, disk) {
            Ok(files) => Message::with_files(matter, files),
            Err(reason) => Message::outcome(matter, Err(reason)),
        }
    }

    /// Notes which files there are, so that the next change of them is seen; also of a configuration that can't be used.
    fn note(
        &mut self,
        prepared: Result<Prepared, String>,
        disk: Disk,
    ) -> Result<Vec<(PathBuf, File)>, String> {
        let asked = disk.into_asked();
        let stamps = asked.iter().map(|(path, file)| {
            let metadata = file.as_ref().ok().and_then(|file| file.metadata().ok());
            (path.clone(), metadata.as_ref().map(stamp))
        });
        match prepared {
            Ok(prepared) => {
                let config = prepared.config().clone();
                self.watched = stamps.collect();
                if let AccessLogTo::File(path) = &config.access_log {
                    self.watched.remove(path);
                }
                if let Some((path, opened)) = config.file.as_ref().and_then(|file| asked.get_key_value(file))
                {
                    self.watched.remove(path);
                    let text = opened.as_ref().ok().and_then(|opened| read_whole(opened).ok());
                    self.text = text.map(|text| (path.clone(), text));
                }
                self.config = Some(config);
            }
            Err(reason) => {
                let watched = stamps.filter(|(path, _)| self.watched.contains_key(path));
                let watched: Vec<_> = watched.collect();
                self.watched.extend(watched);
                return Err(reason);
            }
        }
        Ok(asked.into_iter().filter_map(|(path, file)| Some((path, file.ok()?))).collect())
    }

    fn reopen(&self) -> Message {
        let Some(AccessLogTo::File(path)) = self.config.as_ref().map(|config| &config.access_log) else {
            return Message::with_files(Matter::Reopen, Vec::new());
        };
        match Disk::default().append(path) {
            Ok(file) => Message::with_files(Matter::Reopen, vec![(path.clone(), file)]),
            Err(error) => {
                Message::outcome(Matter::Reopen, Err(format!("--access-log {}: {error}", path.display())))
            }
        }
    }

    fn control(&self) -> Option<&Path> {
        self.config.as_ref()?.control.as_deref()
    }

    fn announce(&self) -> Result<String, String> {
        let Some(path) = self.control() else { return Ok(String::new()) };
        let linked = link(path, self.serving);
        linked.map(|()| String::new()).map_err(|error| format!("--control {}: {error}", path.display()))
    }

    /// Tidies up after the serving process, however it has ended.
    fn leave(&self) {
        let Some(path) = self.control() else { return };
        let own = control::of_process(path, self.serving);
        // What is gone already need not be removed.
        let _ = fs::remove_file(&own);
        if fs::read_link(path).is_ok_and(|to| Some(to.as_os_str()) == own.file_name()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Sends the message, or why it can't be.
async fn send(line: &Line, message: &Message) -> io::Result<()> {
    match line.send(message).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            line.send(&Message::outcome(message.matter, Err(error.to_string()))).await
        }
        sent => sent,
    }
}

/// Makes `path` lead to the control socket of `process`, in one step.
fn link(path: &Path, process: u32) -> io::Result<()> {
    let own = control::of_process(path, process);
    let name = own.file_name().unwrap_or(own.as_os_str());
    let fresh = own.with_extension("new");
    // One that was left half done.
    let _ = fs::remove_file(&fresh);
    symlink(name, &fresh)?;
    fs::rename(&fresh, path)
}
