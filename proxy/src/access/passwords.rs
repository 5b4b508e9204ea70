//! Password checks, where the operator wants them: asks [`Users`] on a thread of its own. A password that was found good is
//! remembered as a keyed digest, so that a password costs its tens of milliseconds once. Who guesses has to wait longer
//! each time. No password is kept or logged.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use tokio::sync::oneshot;

use crate::access::htpasswd::{Credentials, LineError, Users};
use crate::access::rejections::RejectReason;
use crate::http::local_response::LocalResponse;
use crate::os::files::Files;
use crate::os::seccomp;
use crate::transport::networks::Networks;
use crate::transport::networks::client_network;

/// Passwords that wait to be compared, of all clients and of one.
const REQUESTS_MAX: usize = 64;
const CHECKS_PER_CLIENT_MAX: u32 = 8;
/// Passwords that are remembered as good.
const KNOWN_MAX: usize = 4096;
/// Wrong passwords of one client before it has to wait, and the longest it has to.
const FREE_FAILURES: u32 = 5;
const WAIT_MAX: Duration = Duration::from_mins(1);
/// How long a client's last wrong password is remembered, and how many clients are.
const REMEMBERED: Duration = Duration::from_mins(10);
const REMEMBERED_MAX: usize = 16_384;

/// The operator's settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PasswordRules {
    /// The htpasswd file.
    pub file: PathBuf,
    /// The agents it is for; all where none is named.
    pub agents: Networks,
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    /// It can't be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of it is wrong.
    #[error("{}: {source}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// The problem.
        source: LineError,
    },
}

/// Why a client's request is not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuthError {
    /// It shows no password.
    Missing,
    /// It shows a wrong one.
    Wrong,
    /// It has shown too many wrong ones, and has to wait for so many seconds.
    TooOften(u64),
    /// Too many wait to be compared, of all clients or of this one.
    Busy,
}

impl AuthError {
    /// How it is counted.
    pub fn why(self) -> RejectReason {
        match self {
            Self::Missing => RejectReason::AuthMissing,
            Self::Wrong => RejectReason::AuthFailed,
            Self::TooOften(_) => RejectReason::AuthBackoff,
            Self::Busy => RejectReason::AuthBusy,
        }
    }

    /// The response for the client.
    pub fn reply(self) -> LocalResponse {
        match self {
            Self::Missing | Self::Wrong => LocalResponse::new(401, "This proxy wants a name and a password.")
                .with_header("WWW-Authenticate: Basic realm=\"dcv-splice\", charset=\"UTF-8\""),
            Self::TooOften(seconds) => LocalResponse::new(429, "Too many wrong passwords: wait.")
                .with_header(format!("Retry-After: {seconds}")),
            Self::Busy => LocalResponse::new(503, "Too many passwords are being looked at: try again.")
                .with_header("Retry-After: 1"),
        }
    }
}

/// Compares passwords. Cheap to clone; its thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Passwords(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agents: Networks,
    questions: SyncSender<PasswordCheck>,
    book: Arc<KnownPasswords>,
}

/// The state that workers and the thread share.
#[derive(Debug)]
struct KnownPasswords {
    key: hmac::Key,
    users: Mutex<Arc<Users>>,
    known: Mutex<HashSet<[u8; 32]>>,
    clients: Mutex<HashMap<IpAddr, Client>>,
}

#[derive(Debug)]
struct PasswordCheck {
    credentials: Credentials,
    digest: [u8; 32],
    answer: oneshot::Sender<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    asking: u32,
    failures: u32,
    /// When it may try again.
    until: Instant,
}

impl PasswordRules {
    /// Reads the file.
    pub fn read(&self, files: &dyn Files) -> Result<Users, PasswordFileError> {
        let unreadable = |source| PasswordFileError::Unreadable { file: self.file.clone(), source };
        let text = files.read(&self.file).map_err(unreadable)?;
        if text.starts_with(&[0xff, 0xfe]) || text.starts_with(&[0xfe, 0xff]) {
            let wide = "is UTF-16 text: `iconv -f UTF-16 -t UTF-8 FILE` has it in UTF-8";
            return Err(unreadable(io::Error::other(wide)));
        }
        // What can't be read in a comment does not matter; in a name it is refused.
        String::from_utf8_lossy(&text)
            .parse()
            .map_err(|source| PasswordFileError::Line { file: self.file.clone(), source })
    }
}

impl Passwords {
    /// Compares with `users`. Starts a thread.
    pub fn start(rules: &PasswordRules, users: Users) -> io::Result<Self> {
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
        let book = Arc::new(KnownPasswords {
            key: hmac::Key::new(hmac::HMAC_SHA256, &random),
            users: Mutex::new(Arc::new(users)),
            known: Mutex::default(),
            clients: Mutex::default(),
        });
        let (questions, asked) = sync_channel(REQUESTS_MAX);
        let shared = book.clone();
        let work = move || {
            seccomp::forbid_rings();
            shared.compare(&asked);
        };
        std::thread::Builder::new().name("passwords".into()).spawn(work)?;
        Ok(Self(Arc::new(Inner { agents: rules.agents.clone(), questions, book })))
    }

    /// The same with other users and rules, also for whoever still goes by the old ones. Who has guessed wrong is
    /// remembered.
    #[must_use]
    pub fn renewed(&self, rules: &PasswordRules, users: Users) -> Self {
        let Inner { questions, book, .. } = &*self.0;
        book.renew(users);
        let inner = Inner { agents: rules.agents.clone(), questions: questions.clone(), book: book.clone() };
        Self(Arc::new(inner))
    }

    /// Whether there is a user of that name.
    pub fn has_user(&self, name: &str) -> bool {
        self.0.book.users().has(name)
    }

    /// Whether requests to `agent` need a password; those that name no agent do wherever any does.
    pub fn guard(&self, agent: Option<IpAddr>) -> bool {
        let agents = &self.0.agents;
        agents.is_empty() || agent.is_none_or(|agent| agents.contains(agent))
    }

    /// Whether the client may ask, going by the value of its `Authorization` header. Gives its name.
    pub async fn check(
        &self,
        client: IpAddr,
        header: Option<&[u8]>,
        now: impl Fn() -> Instant,
    ) -> Result<String, AuthError> {
        let credentials = header.and_then(Credentials::from_header).ok_or(AuthError::Missing)?;
        let book = &self.0.book;
        let client = client_network(client);
        let digest = book.digest(client, &credentials);
        if book.known().contains(&digest) {
            return Ok(credentials.name);
        }
        let asking = book.begin(client, now())?;
        let name = credentials.name.clone();
        let (answer, answered) = oneshot::channel();
        match self.0.questions.try_send(PasswordCheck { credentials, digest, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return Err(AuthError::Busy),
        }
        let is_known = answered.await.map_err(|_| AuthError::Busy)?;
        asking.judge(is_known, now());
        if is_known { Ok(name) } else { Err(AuthError::Wrong) }
    }
}

impl KnownPasswords {
    /// Says nothing of the password to who has not the key of this run. The address is part of it: nobody else may try
    /// passwords against it, which takes no time. The length keeps name and password apart.
    fn digest(&self, client: IpAddr, credentials: &Credentials) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        match client {
            IpAddr::V4(v4) => context.update(&v4.octets()),
            IpAddr::V6(v6) => context.update(&v6.octets()),
        }
        context.update(&credentials.name.len().to_be_bytes());
        context.update(credentials.name.as_bytes());
        context.update(credentials.password());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    fn known(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client wants to be compared.
    fn begin(&self, address: IpAddr, now: Instant) -> Result<AuthAttempt<'_>, AuthError> {
        let mut clients = self.clients();
        if clients.len() >= REMEMBERED_MAX && !clients.contains_key(&address) {
            clients.retain(|_, client| client.asking > 0 || now < client.until + REMEMBERED);
            // Who has so many addresses keeps nobody else out: each is new again.
            if clients.len() >= REMEMBERED_MAX {
                clients.retain(|_, client| client.asking > 0);
            }
        }
        let client = clients.entry(address).or_insert(Client { asking: 0, failures: 0, until: now });
        if client.asking == 0 && now >= client.until + REMEMBERED {
            client.failures = 0;
        }
        let wait = client.until.saturating_duration_since(now);
        if !wait.is_zero() {
            return Err(AuthError::TooOften(wait.as_secs() + 1));
        }
        // Who may be guessing does so one at a time.
        let max = if client.failures > 0 { 1 } else { CHECKS_PER_CLIENT_MAX };
        if client.asking >= max {
            return Err(AuthError::Busy);
        }
        client.asking += 1;
        Ok(AuthAttempt { book: self, address })
    }
}

/// A client whose password is being compared.
struct AuthAttempt<'a> {
    book: &'a KnownPasswords,
    address: IpAddr,
}

impl AuthAttempt<'_> {
    fn judge(&self, is_known: bool, now: Instant) {
        let mut clients = self.book.clients();
        let Some(client) = clients.get_mut(&self.address) else { return };
        // Who knows one password may still be guessing another: failures are forgotten with time alone.
        if is_known {
            return;
        }
        client.failures = client.failures.saturating_add(1);
        client.until = client.until.max(now);
        if client.failures >= FREE_FAILURES {
            let doubled = 1 << (client.failures - FREE_FAILURES).min(16);
            client.until = client.until.max(now + Duration::from_secs(doubled).min(WAIT_MAX));
        }
    }
}

impl Drop for AuthAttempt<'_> {
    fn drop(&mut self) {
        let mut clients = self.book.clients();
        let Some(client) = clients.get_mut(&self.address) else { return };
        client.asking -= 1;
        if client.asking == 0 && client.failures == 0 {
            clients.remove(&self.address);
        }
    }
}

impl KnownPasswords {
    fn users(&self) -> MutexGuard<'_, Arc<Users>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was known of the old ones is forgotten, also what is being found out.
    fn renew(&self, users: Users) {
        let mut known = self.known();
        *self.users() = Arc::new(users);
        known.clear();
    }

    /// Answers until nobody can ask any more.
    fn compare(&self, asked: &Receiver<PasswordCheck>) {
        while let Ok(question) = asked.recv() {
            self.answer(question);
        }
    }

    fn answer(&self, question: PasswordCheck) {
        let PasswordCheck { credentials, digest, answer } = question;
        // Who has gone meanwhile costs nothing, and the connections of one page ask the same.
        if answer.is_closed() {
            return;
        }
        // In two steps: workers want the lock meanwhile.
        let users = self.users().clone();
        let was_known = self.known().contains(&digest);
        let is_known = was_known || users.know(&credentials);
        if is_known {
            let mut known = self.known();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            if Arc::ptr_eq(&users, &self.users()) {
                known.insert(digest);
            }
        }
        // It may have gone by now.
        let _ = answer.send(is_known);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn passwords(file: &Path, agents: &[&str]) -> Passwords {
        let agents = agents.iter().map(|net| net.parse().expect("a net")).collect::<Vec<_>>().into();
        let rules = PasswordRules { file: file.to_owned(), agents };
        let users = rules.read(&crate::os::files::FileSystem::default()).expect("users");
        Passwords::start(&rules, users).expect("a thread")
    }

    fn line(password: &str) -> String {
        format!("ann:{}\n", bcrypt::hash(password, 4).expect("a hash"))
    }

    fn file(password: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(line(password).as_bytes()).expect("room");
        file
    }

    fn check(
        passwords: &Passwords,
        client: IpAddr,
        password: &str,
        now: Instant,
    ) -> Result<String, AuthError> {
        let header = format!("Basic {}", BASE64_STANDARD.encode(format!("ann:{password}")));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(passwords.check(client, Some(header.as_bytes()), || now))
    }

    #[test]
    fn who_guesses_waits_longer_each_time_and_keeps_nobody_else_out() {
        let file = file("one");
        let passwords = passwords(file.path(), &[]);
        let mut now = Instant::now();
        assert_eq!(check(&passwords, CLIENT, "one", now), Ok("ann".to_owned()));
        for _ in 0..FREE_FAILURES {
            assert_eq!(check(&passwords, CLIENT, "two", now), Err(AuthError::Wrong));
        }
        let mut waits = Vec::new();
        while waits.len() < 9 {
            let denial = check(&passwords, CLIENT, "two", now).expect_err("wrong");
            let AuthError::TooOften(seconds) = denial else { panic!("{denial:?}") };
            waits.push(seconds - 1);
            now += Duration::from_secs(seconds);
            assert_eq!(check(&passwords, CLIENT, "two", now), Err(AuthError::Wrong));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // What is known already is never asked again, and others are others.
        assert_eq!(check(&passwords, CLIENT, "one", now), Ok("ann".to_owned()));
        assert_eq!(check(&passwords, IpAddr::from([192, 0, 2, 2]), "two", now), Err(AuthError::Wrong));
        // Nobody finds out at another address what is known, but by the same way.
        let guesser = IpAddr::from([192, 0, 2, 3]);
        for _ in 0..FREE_FAILURES {
            assert_eq!(check(&passwords, guesser, "two", now), Err(AuthError::Wrong));
        }
        assert!(matches!(check(&passwords, guesser, "one", now), Err(AuthError::TooOften(_))));
        now += WAIT_MAX + REMEMBERED;
        assert_eq!(check(&passwords, CLIENT, "two", now), Err(AuthError::Wrong));
        assert_eq!(
            check(&passwords, CLIENT, "two", now),
            Err(AuthError::Wrong),
            "its failures are forgotten"
        );
    }

    #[test]
    fn other_users_are_known_at_once_and_the_old_ones_no_longer() {
        let file = file("one");
        let old = passwords(file.path(), &[]);
        let now = Instant::now();
        assert_eq!(check(&old, CLIENT, "one", now), Ok("ann".to_owned()));
        assert_eq!(check(&old, CLIENT, "two", now), Err(AuthError::Wrong));
        let rules = PasswordRules { file: file.path().to_owned(), agents: Networks::default() };
        let new = old.renewed(&rules, line("two").parse().expect("users"));
        for passwords in [&new, &old] {
            assert_eq!(check(passwords, CLIENT, "one", now), Err(AuthError::Wrong));
            assert_eq!(check(passwords, CLIENT, "two", now), Ok("ann".to_owned()));
        }
        // One wrong password so far, and the old one twice.
        for _ in 3..FREE_FAILURES {
            assert_eq!(check(&new, CLIENT, "one", now), Err(AuthError::Wrong));
        }
        assert!(
            matches!(check(&new, CLIENT, "three", now), Err(AuthError::TooOften(_))),
            "what was guessed before counts"
        );
    }

    #[test]
    fn agents_may_be_named() {
        let file = file("one");
        let agent = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        let some = passwords(file.path(), &["10.0.0.0/24"]);
        assert!(some.guard(agent("10.0.0.5")) && some.guard(None) && !some.guard(agent("10.0.1.5")));
        assert!(some.guard(agent("::ffff:10.0.0.5")));
        let all = passwords(file.path(), &[]);
        assert!(all.guard(agent("10.0.1.5")) && all.guard(None));
    }

    /// A comparison takes tens of milliseconds, and workers are not to wait for it.
    #[test]
    fn a_password_is_compared_without_the_lock_that_workers_take() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let hash = bcrypt::hash("one", 10).expect("a hash");
        write!(file, "ann:{hash}").expect("room");
        let passwords = passwords(file.path(), &[]);
        let book = passwords.0.book.clone();
        let comparing = std::thread::spawn(move || check(&passwords, CLIENT, "two", Instant::now()));
        let mut taken = 0;
        while !comparing.is_finished() {
            taken += 1;
            drop(book.known());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(comparing.join().expect("no panic"), Err(AuthError::Wrong));
        assert!(taken > 5, "the lock could be taken {taken} times");
    }

    #[test]
    fn so_many_addresses_keep_nobody_out() {
        let file = file("one");
        let passwords = passwords(file.path(), &[]);
        let now = Instant::now();
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        let failed = Client { asking: 0, failures: 9, until: now };
        let many = (0..).take(REMEMBERED_MAX).map(|number| (client(number), failed));
        passwords.0.book.clients().extend(many);
        assert_eq!(check(&passwords, client(u32::MAX), "one", now), Ok("ann".to_owned()));
        assert!(passwords.0.book.clients().is_empty());
    }

    #[test]
    fn nobody_asks_for_more_than_a_few_at_once() {
        let file = file("one");
        let passwords = passwords(file.path(), &[]);
        let now = Instant::now();
        let book = &passwords.0.book;
        let asking: Vec<_> =
            (0..CHECKS_PER_CLIENT_MAX).map(|_| book.begin(CLIENT, now).expect("room")).collect();
        assert_eq!(book.begin(CLIENT, now).err(), Some(AuthError::Busy));
        assert!(book.begin(IpAddr::from([192, 0, 2, 2]), now).is_ok());
        drop(asking);
        assert!(book.begin(CLIENT, now).is_ok());
        assert!(book.clients().is_empty(), "who has done nothing wrong is not remembered");
    }
}
