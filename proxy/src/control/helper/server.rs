//! The helper's own side: waits for questions, and looks each second whether a file has changed.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::agents_command::AgentsCommand;
use super::channel::{HelperChannel, LIST, Message, MessageKind, STATES, STATS, in_memory, program};
use super::ebpf::KernelCounters;
use super::exec::{predecessors, start_network_helper, start_next};
use crate::config::{AccessLogTo, Config, Resolved, Settings};
use crate::control::agent_states::AgentStates;
use crate::control::signals::Signals;
use crate::control::socket;
use crate::control::validation::Prepared;
use crate::os::files::{CachedText, DryRun, FileSystem, Files, read_whole};
use crate::os::sandbox;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long files that have changed have to fit together before they are refused: tools that renew certificates write
/// the certificate, and the key some seconds later.
const SETTLE: Duration = Duration::from_secs(10);

/// Bytes of the states of all agents.
const STATES_BYTES_MAX: usize = 16 << 20;

/// Serves whoever is on the other side of the standard input until it has gone.
pub(crate) fn serve(settings: Settings) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // They are meant for the serving process, with which this one ends.
        let _ignored = Signals::new()?;
        // It sees private keys too.
        sandbox::forbid_core_dumps()?;
        let line = HelperChannel::new(io::stdin().as_fd().try_clone_to_owned()?)?;
        let mut server = HelperServer::new(settings)?;
        let ended = server.serve(&line).await;
        server.leave();
        ended
    })
}

struct HelperServer {
    settings: Settings,
    program: PathBuf,
    serving: u32,
    /// The process that hands over to the serving one, until it has.
    predecessor: Option<u32>,
    sockets: Vec<OwnedFd>,
    /// The configuration of the serving process.
    kept: Option<ActiveConfig>,
    /// The one that it will have, if it accepts it.
    offered: Option<ActiveConfig>,
    /// By which the next change is seen.
    watched: BTreeMap<PathBuf, Option<Stamp>>,
    /// Since when they do not fit together.
    unfit: Option<Instant>,
    /// Questions that came while an upgrade was under way, or an offer was out.
    later: VecDeque<Message>,
    /// Another process serves.
    handed_over: bool,
    /// What has come of states that are to be saved.
    unsaved: Vec<u8>,
    agents_command: AgentsCommand,
    /// Programs that it has started, until they have ended.
    children: Vec<Child>,
    /// The eBPF program, and the cgroup that it counts in.
    account: Option<(KernelCounters, PathBuf)>,
}

/// A configuration, what its file said when it was asked for, and what its other files were then.
struct ActiveConfig {
    config: Config,
    text: Option<(PathBuf, Vec<u8>)>,
    watched: BTreeMap<PathBuf, Option<Stamp>>,
}

/// By which a change is seen: when, how long, and which.
type Stamp = (i64, i64, u64, u64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ctime(), metadata.ctime_nsec(), metadata.len(), metadata.ino())
}

impl HelperServer {
    fn new(settings: Settings) -> io::Result<Self> {
        Ok(Self {
            settings,
            program: program()?,
            serving: parent_id(),
            predecessor: predecessors()?.and_then(|processes| processes.first().copied()),
            sockets: Vec::new(),
            kept: None,
            offered: None,
            watched: BTreeMap::new(),
            unfit: None,
            later: VecDeque::new(),
            handed_over: false,
            unsaved: Vec::new(),
            agents_command: AgentsCommand::default(),
            children: Vec::new(),
            account: None,
        })
    }

    async fn serve(&mut self, line: &HelperChannel) -> io::Result<()> {
        self.answer(line, Message::about(MessageKind::Reload)).await?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.offered.is_none()
                && let Some(question) = self.later.pop_front()
            {
                self.answer(line, question).await?;
                continue;
            }
            tokio::select! {
                question = line.receive() => match question? {
                    Some(question) => self.answer(line, question).await?,
                    None => return Ok(()),
                },
                _ = looks.tick() => {
                    self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
                    let may_look = !self.handed_over && self.offered.is_none();
                    if let Some(message) = may_look.then(|| self.look(Instant::now())).flatten() {
                        send(line, &message).await?;
                    }
                }
                listed = self.agents_command.next() => {
                    let kind = MessageKind::AgentsCommand;
                    let message = match listed.and_then(|list| in_memory(&list).map_err(|error| error.to_string())) {
                        Ok(file) => Message::with_files(kind, vec![(LIST.into(), file)]),
                        Err(reason) => Message::outcome(kind, Err(reason)),
                    };
                    send(line, &message).await?;
                }
            }
        }
    }

    async fn answer(&mut self, line: &HelperChannel, question: Message) -> io::Result<()> {
        let kind = question.kind;
        let answer = match kind {
            MessageKind::Reload | MessageKind::Upgrade if self.handed_over => {
                Message::outcome(kind, Err("another process serves by now".to_owned()))
            }
            MessageKind::Reload if self.offered.is_some() => {
                // Or it would not be clear which of the two is gone by.
                self.later.push_back(question);
                return Ok(());
            }
            MessageKind::Reload => self.reload(),
            MessageKind::Rejected => {
                self.offered = None;
                return Ok(());
            }
            MessageKind::Applied => {
                self.take();
                return Ok(());
            }
            MessageKind::Changed => {
                // What was sent has not arrived: it has changed still.
                self.watched.values_mut().for_each(|stamp| *stamp = None);
                return Ok(());
            }
            // It is the helper that says so.
            MessageKind::Unfit => return Ok(()),
            MessageKind::AgentsCommand => {
                // What was sent has not arrived.
                self.agents_command.forget();
                return Ok(());
            }
            MessageKind::Reopen => self.reopen(),
            MessageKind::Announce => Message::outcome(kind, self.announce()),
            MessageKind::Withdraw => Message::outcome(kind, self.withdraw().map(|()| String::new())),
            MessageKind::Serving => {
                self.predecessor = None;
                return Ok(());
            }
            MessageKind::EnableEbpf => Message::outcome(kind, self.begin_account(&question.text)),
            MessageKind::Stats => self.stats(),
            MessageKind::NetworkHelper => self.start_network_helper(),
            MessageKind::States => self.states(),
            MessageKind::SaveStates => {
                self.unsaved.extend_from_slice(&question.text);
                if !question.good && self.unsaved.len() <= STATES_BYTES_MAX {
                    return Ok(());
                }
                let text = std::mem::take(&mut self.unsaved);
                Message::outcome(kind, self.save_states(&text))
            }
            MessageKind::Sockets => {
                self.sockets.extend(question.descriptors);
                return Ok(());
            }
            MessageKind::Upgrade => Message::outcome(kind, self.upgrade(line).await),
        };
        send(line, &answer).await
    }

    fn reload(&mut self) -> Message {
        let disk = FileSystem::default();
        // Of settings that are wrong, the files are told of too.
        let all = |text| Prepared::new(&self.settings, &disk).err().unwrap_or(text);
        let resolved = self.settings.resolve(&disk).map_err(all).and_then(|resolved| self.allow(resolved));
        let prepared = resolved.and_then(|resolved| Prepared::of(resolved, &disk));
        let offered = prepared.and_then(|prepared| Candidate::new(prepared.config(), disk, None));
        match offered {
            Ok(Candidate { kept, files }) => {
                self.offered = Some(kept);
                Message::with_files(MessageKind::Reload, files)
            }
            Err(reason) => Message::outcome(MessageKind::Reload, Err(reason)),
        }
    }

    /// Goes by what was offered.
    fn take(&mut self) {
        if let Some(offered) = self.offered.take() {
            self.watched.clone_from(&offered.watched);
            self.unfit = None;
            self.agents_command.set(offered.config.agents_command.clone());
            self.kept = Some(offered);
        }
    }

    /// A configuration that a running process can change to.
    fn allow(&self, resolved: Resolved) -> Result<Resolved, String> {
        let fixed = self.kept.as_ref().and_then(|kept| kept.config.fixed_setting_unlike(&resolved.config));
        match fixed {
            None => Ok(resolved),
            Some(key) => {
                let what = format!("{key} can't change while it runs: `dcv-splice upgrade` takes it up");
                Err(resolved.at_key(key, &what))
            }
        }
    }

    /// Reads again what has changed, by the configuration of last time.
    fn look(&mut self, now: Instant) -> Option<Message> {
        let stamped = |path: &PathBuf| (path.clone(), fs::metadata(path).ok().as_ref().map(stamp));
        let seen: BTreeMap<_, _> = self.watched.keys().map(stamped).collect();
        let is_overdue = self.unfit.is_some_and(|since| now.duration_since(since) >= SETTLE);
        if seen == self.watched && !is_overdue {
            return None;
        }
        let disk = FileSystem::default();
        let text = self.kept.as_ref().and_then(|kept| kept.text.as_ref());
        let prepared = Prepared::new(&self.settings, &CachedText { files: &disk, known: text });
        let offered = prepared.and_then(|prepared| Candidate::new(prepared.config(), disk, text));
        match offered {
            Ok(Candidate { kept, files }) => {
                self.watched = kept.watched;
                self.unfit = None;
                Some(Message::with_files(MessageKind::Changed, files))
            }
            // Whatever changes next is tried again.
            Err(reason) => {
                self.watched = seen;
                self.wait(reason, is_overdue, now)
            }
        }
    }

    /// Files that can't be used are refused once they had their time; that they are waited for is told once.
    fn wait(&mut self, reason: String, is_overdue: bool, now: Instant) -> Option<Message> {
        if is_overdue {
            self.unfit = None;
            return Some(Message::outcome(MessageKind::Changed, Err(reason)));
        }
        let is_known = self.unfit.replace(self.unfit.unwrap_or(now)).is_some();
        (!is_known).then(|| Message::outcome(MessageKind::Unfit, Ok(reason)))
    }

    fn reopen(&self) -> Message {
        let access_log = self.kept.as_ref().map(|kept| &kept.config.access_log);
        let Some(AccessLogTo::File(path)) = access_log else {
            return Message::with_files(MessageKind::Reopen, Vec::new());
        };
        match FileSystem::default().append(path) {
            Ok(file) => Message::with_files(MessageKind::Reopen, vec![(path.clone(), file)]),
            Err(error) => Message::outcome(
                MessageKind::Reopen,
                Err(format!("--access-log {}: {error}", path.display())),
            ),
        }
    }

    /// Starts the next binary, unless the serving process ends meanwhile.
    async fn upgrade(&mut self, line: &HelperChannel) -> Result<String, String> {
        let sockets = std::mem::take(&mut self.sockets);
        let mut started = pin!(start_next(&self.program, &self.settings, sockets, self.serving));
        let started = loop {
            tokio::select! {
                started = &mut started => break started?,
                question = line.receive() => match question {
                    // Whoever looks at it now wants to see it now.
                    Ok(Some(Message { kind: MessageKind::Stats, .. })) => {
                        send(line, &self.stats()).await.map_err(|error| error.to_string())?;
                    }
                    Ok(Some(question)) => self.later.push_back(question),
                    Ok(None) | Err(_) => return Err("this process ends".to_owned()),
                },
            }
        };
        self.handed_over = true;
        self.agents_command.stop();
        Ok(started)
    }

    /// Once, before anything has been accepted.
    fn begin_account(&mut self, cgroup: &[u8]) -> Result<String, String> {
        let config = match (&self.offered, &self.kept, &self.account) {
            (Some(offered), None, None) => &offered.config,
            _ => return Err("it counts already, or is too late to".to_owned()),
        };
        let cgroup = PathBuf::from(OsStr::from_bytes(cgroup));
        self.account = Some((KernelCounters::begin(config, &cgroup)?, cgroup));
        Ok(String::new())
    }

    fn stats(&self) -> Message {
        let read = self.account.as_ref().map(|(account, _)| account.read()).unwrap_or_default();
        let file = serde_json::to_vec(&read).map_err(io::Error::from).and_then(|text| in_memory(&text));
        match file {
            Ok(file) => Message::with_files(MessageKind::Stats, vec![(STATS.into(), file)]),
            Err(error) => Message::outcome(MessageKind::Stats, Err(error.to_string())),
        }
    }

    /// The former one has ended, or does when it sees that nobody speaks to it any more.
    fn start_network_helper(&mut self) -> Message {
        let kind = MessageKind::NetworkHelper;
        match start_network_helper(&self.program) {
            Ok((child, socket)) => {
                self.children.push(child);
                Message { descriptors: vec![socket], ..Message::about(kind) }
            }
            Err(error) => Message::outcome(kind, Err(error.to_string())),
        }
    }

    fn state_file(&self) -> Option<&Path> {
        self.kept.as_ref().or(self.offered.as_ref())?.config.state_file.as_deref()
    }

    /// Nothing was saved where there is no file.
    fn states(&self) -> Message {
        let read = self.state_file().map_or(Ok(Vec::new()), |path| match DryRun.read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        });
        match read.and_then(|text| in_memory(&text)) {
            Ok(file) => Message::with_files(MessageKind::States, vec![(STATES.into(), file)]),
            Err(error) => Message::outcome(MessageKind::States, Err(error.to_string())),
        }
    }

    /// Whatever the serving process has become, nothing but states of agents gets to that file.
    fn save_states(&self, text: &[u8]) -> Result<String, String> {
        if self.handed_over {
            return Err("another process serves by now".to_owned());
        }
        let Some(path) = self.state_file() else { return Ok(String::new()) };
        let told = |error: &dyn std::fmt::Display| {
            format!("the state holds until this process ends; --state-file {}: {error}", path.display())
        };
        let text = AgentStates::parse(&String::from_utf8_lossy(text)).and_then(|states| states.text());
        let text = text.map_err(|error| told(&error))?;
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let written = File::create(&fresh).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&fresh, path)).map_err(|error| told(&error))?;
        Ok(String::new())
    }

    fn control(&self) -> Option<&Path> {
        self.kept.as_ref()?.config.control.as_deref()
    }

    fn announce(&self) -> Result<String, String> {
        let Some(path) = self.control() else { return Ok(String::new()) };
        let linked = link(path, self.serving);
        linked.map(|()| String::new()).map_err(|error| format!("--control {}: {error}", path.display()))
    }

    /// Tidies up after the serving process, however it has ended.
    fn leave(&mut self) {
        if let Some((account, cgroup)) = self.account.take() {
            drop(account);
            remove_cgroup(&cgroup);
        }
        let Some(path) = self.control() else { return };
        let own = socket::of_process(path, self.serving);
        // What is gone already need not be removed.
        if socket::linked(path).as_ref() == Some(&own) && self.withdraw().is_err() {
            let _ = fs::remove_file(path);
        }
        let _ = socket::remove_socket(&own);
    }

    /// Has the control path lead to who serves on, where this process has not taken over.
    fn withdraw(&self) -> Result<(), String> {
        let (Some(path), Some(before)) = (self.control(), self.predecessor) else {
            return Err("nobody is to be reached instead".to_owned());
        };
        fs::metadata(socket::of_process(path, before))
            .and_then(|_| link(path, before))
            .map_err(|error| format!("--control {}: {error}", path.display()))
    }
}

/// A configuration that can be run by, and its files.
struct Candidate {
    kept: ActiveConfig,
    files: Vec<(PathBuf, File)>,
}

impl Candidate {
    /// `disk`: where its files were read. `known`: what its own file said, where that was known before.
    fn new(config: &Config, disk: FileSystem, known: Option<&(PathBuf, Vec<u8>)>) -> Result<Self, String> {
        let mut asked = disk.into_asked();
        let read = |path: &PathBuf| {
            let file = asked.remove(path)?.ok()?;
            Some((path.clone(), read_whole(&file).ok()?))
        };
        let text = known.cloned().or_else(|| config.file.as_ref().and_then(read));
        let mut files: Vec<_> =
            asked.into_iter().filter_map(|(path, file)| Some((path, file.ok()?))).collect();
        let is_log = |path: &Path| matches!(&config.access_log, AccessLogTo::File(log) if log == path);
        let watched = files.iter().filter(|(path, _)| !is_log(path));
        let watched = watched.map(|(path, file)| (path.clone(), file.metadata().ok().as_ref().map(stamp)));
        let watched = watched.collect();
        if let Some((path, text)) = &text {
            // What was validated, whatever the file says by now.
            let file = in_memory(text).map_err(|error| format!("{}: {error}", path.display()))?;
            files.push((path.clone(), file));
        }
        Ok(Self { kept: ActiveConfig { config: config.clone(), text, watched }, files })
    }
}

/// Nobody is in it once the serving process has gone altogether.
fn remove_cgroup(cgroup: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(LOOK / 50),
            // What is left is empty and does no harm.
            _ => return,
        }
    }
}

/// Sends the message, or why it can't be.
async fn send(line: &HelperChannel, message: &Message) -> io::Result<()> {
    match line.send(message).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            line.send(&Message::outcome(message.kind, Err(error.to_string()))).await
        }
        sent => sent,
    }
}

/// Makes `path` lead to the control socket of `process`, in one step.
fn link(path: &Path, process: u32) -> io::Result<()> {
    socket::check(path)?;
    let own = socket::of_process(path, process);
    let name = own.file_name().unwrap_or(own.as_os_str());
    let mut fresh = own.clone().into_os_string();
    fresh.push(".new");
    if fs::symlink_metadata(&fresh).is_ok_and(|found| found.is_symlink()) {
        // One that was left half done.
        fs::remove_file(&fresh)?;
    }
    symlink(name, &fresh)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::net::UnixListener;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// Or it would not be clear which of two is gone by.
    #[tokio::test]
    async fn one_configuration_is_offered_at_a_time() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (one, other) = pair.expect("a pair");
        let (one, serving) =
            (HelperChannel::new(one).expect("a line"), HelperChannel::new(other).expect("a line"));
        let mut server = HelperServer::new(Settings::of([OsString::from("dcv-splice")])).expect("a server");
        let told = async {
            let ask = async |kind| serving.send(&Message::about(kind)).await.expect("room");
            let hear = async || serving.receive().await.expect("a message").expect("a message").kind;
            assert_eq!(hear().await, MessageKind::Reload, "the first configuration");
            ask(MessageKind::Reload).await;
            ask(MessageKind::Reopen).await;
            assert_eq!(hear().await, MessageKind::Reopen, "the second waits for what becomes of the first");
            ask(MessageKind::Applied).await;
            assert_eq!(hear().await, MessageKind::Reload);
            ask(MessageKind::Rejected).await;
            ask(MessageKind::Reload).await;
            assert_eq!(hear().await, MessageKind::Reload);
            drop(serving);
        };
        let both = async { tokio::join!(server.serve(&one), told) };
        let (ended, ()) = tokio::time::timeout(Duration::from_mins(1), both).await.expect("it answers");
        ended.expect("an end");
    }

    /// One that goes by these flags.
    fn keeping(flags: &[String]) -> HelperServer {
        let words = ["dcv-splice".to_owned()].into_iter().chain(flags.iter().cloned()).map(OsString::from);
        let mut server = HelperServer::new(Settings::of(words)).expect("a server");
        let offer = server.reload();
        assert!(offer.good, "{}", String::from_utf8_lossy(&offer.text));
        server.take();
        server
    }

    #[test]
    fn one_that_has_not_taken_over_leaves_the_control_path_to_who_serves_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let own = socket::of_process(&path, parent_id());
        let before = socket::of_process(&path, 1);
        for (predecessor, is_there, left) in
            [(Some(1), true, Some(&before)), (Some(1), false, None), (None, true, None)]
        {
            let mut server = keeping(&[format!("--control={}", path.display())]);
            server.predecessor = predecessor;
            UnixListener::bind(&own).expect("a folder");
            if is_there {
                UnixListener::bind(&before).expect("a folder");
            }
            server.announce().expect("a link");
            assert_eq!(socket::linked(&path).as_ref(), Some(&own));
            server.leave();
            assert_eq!(socket::linked(&path).as_ref(), left, "{predecessor:?}, {is_there}");
            assert!(!own.exists() && before.exists() == is_there);
            let _ = fs::remove_file(&before);
        }
    }

    struct Pair {
        folder: tempfile::TempDir,
    }

    impl Pair {
        /// A certificate and its key in a folder, and who keeps them.
        fn kept() -> (Self, HelperServer) {
            let pair = Self { folder: tempfile::tempdir().expect("a folder") };
            let [certificate, key] = Self::fresh();
            pair.replace("cert", &certificate);
            pair.replace("key", &key);
            let flag = |name: &str| format!("--{name}={}", pair.folder.path().join(name).display());
            let server = keeping(&[flag("cert"), flag("key")]);
            (pair, server)
        }

        fn fresh() -> [String; 2] {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
            [made.cert.pem(), made.signing_key.serialize_pem()]
        }

        fn replace(&self, name: &str, text: &str) {
            let fresh = self.folder.path().join("fresh");
            fs::write(&fresh, text).expect("room");
            fs::rename(fresh, self.folder.path().join(name)).expect("a folder");
        }
    }

    fn told(message: Option<Message>) -> Option<(MessageKind, bool)> {
        message.map(|message| (message.kind, message.good))
    }

    #[test]
    fn a_key_that_follows_its_certificate_within_ten_seconds_is_waited_for() {
        let (pair, mut server) = Pair::kept();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(told(server.look(start)), None);
        let [certificate, key] = Pair::fresh();
        pair.replace("cert", &certificate);
        assert_eq!(told(server.look(after(1000))), Some((MessageKind::Unfit, true)));
        assert_eq!(told(server.look(after(2000))), None);
        // Another change that does not help is not told again.
        pair.replace("cert", &certificate);
        assert_eq!(told(server.look(after(3000))), None);
        pair.replace("key", &key);
        assert_eq!(told(server.look(after(3500))), Some((MessageKind::Changed, true)));
        assert_eq!(told(server.look(after(60_000))), None);
    }

    #[test]
    fn files_that_do_not_fit_in_time_are_refused_once_and_tried_again_when_they_change() {
        let (pair, mut server) = Pair::kept();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let [certificate, key] = Pair::fresh();
        pair.replace("cert", &certificate);
        assert_eq!(told(server.look(start)), Some((MessageKind::Unfit, true)));
        assert_eq!(told(server.look(after(9999))), None);
        assert_eq!(told(server.look(after(10_000))), Some((MessageKind::Changed, false)));
        assert_eq!(told(server.look(after(30_000))), None);
        pair.replace("cert", &certificate);
        assert_eq!(told(server.look(after(31_000))), Some((MessageKind::Unfit, true)));
        pair.replace("key", &key);
        assert_eq!(told(server.look(after(32_000))), Some((MessageKind::Changed, true)));
        assert_eq!(told(server.look(after(60_000))), None);
    }

    #[test]
    fn a_reload_ends_the_wait_for_files_that_did_not_fit() {
        let (pair, mut server) = Pair::kept();
        let start = Instant::now();
        let [certificate, key] = Pair::fresh();
        pair.replace("cert", &certificate);
        assert_eq!(told(server.look(start)), Some((MessageKind::Unfit, true)));
        pair.replace("key", &key);
        assert!(server.reload().good);
        server.take();
        assert_eq!(told(server.look(start + Duration::from_mins(1))), None);
    }
}
