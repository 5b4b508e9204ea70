//! Which agent has a session, as a session resolver says (Amazon DCV Connection Gateway, "Session Resolver"): what it has said lately, and who
//! waits for it to say something. Asks nobody itself: questions come out at the other end.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Sessions that are asked for at a time; users of further ones are told to come again.
const ASKED_MAX: usize = 1024;
/// Requests that wait for one of them.
const WAITING_MAX: usize = 256;
/// A question that has had no answer for so long has got lost.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Bytes of what stands before paths.
const PATH_BYTES_MAX: usize = 256;
/// Sessions whose agent is remembered.
const KNOWN_MAX: usize = 16_384;
/// For how long: a desktop that opens asks about a hundred times within that.
const KNOWN_TIME: Duration = Duration::from_secs(30);
/// The same of a session that nobody knows. It may be about to begin.
const UNKNOWN_TIME: Duration = Duration::from_secs(2);

/// Where a session is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionPlace {
    /// The agent.
    pub agent: SocketAddr,
    /// What stands before its paths there, with a slash in front and none behind; empty for nothing.
    pub web_url_path: String,
}

/// Why it is not known where.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ResolveError {
    /// There is no such session.
    Unknown,
    /// It is at an agent that may not be reached.
    NotAllowed,
    /// The resolver can't be asked, or says what can't be understood.
    Failed(String),
    /// Too many wait for it.
    Busy,
}

/// What stands before an agent's paths, with a slash in front and none behind; empty for the root. It gets into heads of
/// requests.
pub fn web_url_path(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte);
    let is_path = path.is_empty() || path.starts_with('/') && !path.starts_with("//");
    if is_path && path.len() <= PATH_BYTES_MAX && path.bytes().all(is_inner) {
        return Ok(path.to_owned());
    }
    Err("its answer names a WebUrlPath that is no path".to_owned())
}

/// What comes of a question.
pub type Resolution = Result<SessionPlace, ResolveError>;

/// A question.
#[derive(Debug)]
pub struct ResolveQuestion {
    /// The session.
    pub session: String,
    /// Who asks.
    pub client: IpAddr,
}

/// What is known of sessions. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub struct SessionResolver {
    lists: Arc<Mutex<Lists>>,
    questions: mpsc::Sender<ResolveQuestion>,
}

#[derive(Debug, Default)]
struct Lists {
    /// By the session and who asks: a resolver may say something else to others.
    known: HashMap<(String, IpAddr), (Resolution, Instant)>,
    waiting: HashMap<(String, IpAddr), Waiting>,
}

/// Who waits for one session.
#[derive(Debug)]
struct Waiting {
    asked: Instant,
    answers: Vec<oneshot::Sender<Resolution>>,
}

impl SessionResolver {
    /// With where its questions come out.
    pub fn new() -> (Self, mpsc::Receiver<ResolveQuestion>) {
        let (questions, asked) = mpsc::channel(ASKED_MAX);
        (Self { lists: Arc::default(), questions }, asked)
    }

    /// Where a session is. Waits for as long as it takes to ask; a session is asked for once at a time.
    pub async fn resolve(&self, session: &str, client: IpAddr, now: Instant) -> Resolution {
        let answered = {
            let mut lists = self.lists();
            let key = (session.to_owned(), client);
            match lists.known.get(&key) {
                Some((known, until)) if now < *until => return known.clone(),
                _ => {}
            }
            let (answer, answered) = oneshot::channel();
            let is_fresh = |it: &Waiting| now.duration_since(it.asked) < ASK_AGAIN;
            let is_asked = lists.waiting.get(&key).is_some_and(is_fresh);
            if !is_asked {
                if lists.waiting.len() >= ASKED_MAX {
                    lists.waiting.retain(|_, it| is_fresh(it));
                }
                if lists.waiting.len() >= ASKED_MAX {
                    return Err(ResolveError::Busy);
                }
                let question = ResolveQuestion { session: session.to_owned(), client };
                self.questions.try_send(question).map_err(|_| ResolveError::Busy)?;
            }
            let none = || Waiting { asked: now, answers: Vec::new() };
            let waiting = lists.waiting.entry(key).or_insert_with(none);
            if !is_asked {
                waiting.asked = now;
            }
            // Some may have gone.
            waiting.answers.retain(|other| !other.is_closed());
            if waiting.answers.len() >= WAITING_MAX {
                return Err(ResolveError::Busy);
            }
            waiting.answers.push(answer);
            answered
        };
        answered.await.unwrap_or(Err(ResolveError::Busy))
    }

    /// Takes what has come of a question.
    pub fn answer(&self, session: &str, client: IpAddr, resolution: &Resolution, now: Instant) {
        let mut lists = self.lists();
        let key = (session.to_owned(), client);
        // What nobody has asked for is not believed.
        let Some(waiting) = lists.waiting.remove(&key) else { return };
        for answer in waiting.answers {
            // Whoever asked may have gone.
            let _ = answer.send(resolution.clone());
        }
        let time = match resolution {
            Ok(_) | Err(ResolveError::NotAllowed) => KNOWN_TIME,
            Err(ResolveError::Unknown) => UNKNOWN_TIME,
            Err(ResolveError::Failed(_) | ResolveError::Busy) => return,
        };
        if lists.known.len() >= KNOWN_MAX {
            lists.known.retain(|_, (_, until)| now < *until);
        }
        if lists.known.len() < KNOWN_MAX {
            lists.known.insert(key, (resolution.clone(), now + time));
        }
    }

    /// All that was asked will have no answer.
    pub fn fail_all(&self, why: &str) {
        let waiting: Vec<_> = self.lists().waiting.drain().collect();
        for answer in waiting.into_iter().flat_map(|(_, waiting)| waiting.answers) {
            let _ = answer.send(Err(ResolveError::Failed(why.to_owned())));
        }
    }

    /// Forgets what is known: another resolver is asked from now on, or others agents may be reached. What is under way is given up.
    pub fn forget(&self) {
        self.lists().known.clear();
        self.fail_all("the configuration has changed");
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SessionResolver {
    /// One whose questions nobody answers.
    fn default() -> Self {
        Self::new().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn place(number: u8) -> SessionPlace {
        SessionPlace { agent: SocketAddr::from(([10, 0, 0, number], 8443)), web_url_path: String::new() }
    }

    #[test]
    fn what_stands_before_paths_is_a_path() {
        for (path, wanted) in [("", ""), ("/", ""), ("/my", "/my"), ("/my/desk/", "/my/desk")] {
            assert_eq!(web_url_path(path).as_deref(), Ok(wanted), "{path}");
        }
        let long = format!("/{}", "a".repeat(300));
        for path in ["my", "//evil.example", "/a b", "/a\r\nX: y", "/a?b", "/\u{e9}", &long] {
            assert!(web_url_path(path).is_err(), "{path}");
        }
    }

    #[tokio::test]
    async fn what_nobody_has_asked_for_is_not_believed() {
        let (resolver, mut questions) = SessionResolver::new();
        let now = Instant::now();
        resolver.answer("a", CLIENT, &Ok(place(9)), now);
        let other = IpAddr::from([192, 0, 2, 2]);
        let answer = async {
            questions.recv().await.expect("a question");
            resolver.answer("a", other, &Ok(place(9)), now);
            resolver.answer("a", CLIENT, &Ok(place(1)), now);
        };
        let (told, ()) = tokio::join!(resolver.resolve("a", CLIENT, now), answer);
        assert_eq!(told, Ok(place(1)));
    }

    #[tokio::test]
    async fn a_session_is_asked_for_once_and_known_for_a_while() {
        let (resolver, mut questions) = SessionResolver::new();
        let now = Instant::now();
        let answer = async {
            let question = questions.recv().await.expect("a question");
            assert_eq!((&*question.session, question.client), ("a", CLIENT));
            resolver.answer("a", CLIENT, &Ok(place(1)), now);
        };
        let ask = |at| resolver.resolve("a", CLIENT, at);
        let (one, other, ()) = tokio::join!(ask(now), ask(now), answer);
        assert_eq!((one, other), (Ok(place(1)), Ok(place(1))));
        assert_eq!(ask(now + KNOWN_TIME / 2).await, Ok(place(1)));
        assert!(questions.try_recv().is_err());
        // Later it may be elsewhere.
        let later = now + KNOWN_TIME;
        let answer = async {
            questions.recv().await.expect("a question");
            resolver.answer("a", CLIENT, &Err(ResolveError::Unknown), later);
        };
        let (again, ()) = tokio::join!(ask(later), answer);
        assert_eq!(again, Err(ResolveError::Unknown));
        assert_eq!(ask(later + UNKNOWN_TIME / 2).await, Err(ResolveError::Unknown));
    }

    #[tokio::test]
    async fn a_failure_is_told_and_not_remembered() {
        let (resolver, mut questions) = SessionResolver::new();
        let now = Instant::now();
        let failed = Err(ResolveError::Failed("x".to_owned()));
        let answer = async {
            questions.recv().await.expect("a question");
            resolver.fail_all("x");
            questions.recv().await.expect("another question");
            resolver.answer("a", CLIENT, &failed, now);
        };
        let ask =
            async { [resolver.resolve("a", CLIENT, now).await, resolver.resolve("a", CLIENT, now).await] };
        let (told, ()) = tokio::join!(ask, answer);
        assert_eq!(told, [failed.clone(), failed]);
    }

    #[tokio::test]
    async fn a_question_that_has_got_lost_is_asked_again() {
        let (resolver, mut questions) = SessionResolver::new();
        let now = Instant::now();
        let ask = |at| tokio::time::timeout(Duration::from_millis(10), resolver.resolve("a", CLIENT, at));
        for (at, count) in [(now, 1), (now + ASK_AGAIN / 2, 0), (now + ASK_AGAIN, 1)] {
            assert!(ask(at).await.is_err(), "nobody answers");
            assert_eq!(std::iter::from_fn(|| questions.try_recv().ok()).count(), count);
        }
    }

    #[tokio::test]
    async fn more_sessions_than_can_be_asked_for_are_told_so() {
        let (resolver, questions) = SessionResolver::new();
        let now = Instant::now();
        let mut waiting = Vec::new();
        for number in 0..ASKED_MAX {
            let resolver = resolver.clone();
            waiting
                .push(tokio::spawn(async move { resolver.resolve(&number.to_string(), CLIENT, now).await }));
        }
        while questions.len() < ASKED_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(resolver.resolve("one more", CLIENT, now).await, Err(ResolveError::Busy));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
