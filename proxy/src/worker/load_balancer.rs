//! Which worker serves a connection. The kernel spreads them by a hash (`SO_REUSEPORT`, socket(7)), so that of a few
//! long sessions most may land on one core; here each new one goes to the worker that has the fewest. Looked at when
//! a connection comes or goes, never in between.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};

use crate::observe::client::ConnectionId;

/// A connection that was accepted.
#[derive(Debug)]
pub struct Connection {
    /// Its socket, which doesn't block.
    pub socket: OwnedFd,
    /// Where it comes from.
    pub client: SocketAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
    /// Its number.
    pub id: ConnectionId,
    /// Its place among those of a worker.
    pub counted: ConnectionSlot,
    /// Where there are as many connections as may be: workers that may still have one that gives way to it, the one it
    /// is brought to among them. 0: there is room.
    pub workers_to_try: usize,
}

/// How many connections each worker has. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LoadBalancer(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    all: AtomicUsize,
    /// Whoever may still bring connections to any worker.
    acceptors: AtomicUsize,
    workers: Box<[Share]>,
}

#[derive(Debug)]
struct Share {
    count: AtomicUsize,
    /// Grows while the worker's loop goes round.
    beats: AtomicUsize,
    /// Told when the last one has gone, or can come no more.
    empty: Notify,
    /// At most as many wait as connections are allowed, and some that look for one that gives way to them.
    arrivals: mpsc::UnboundedSender<Connection>,
}

/// Where one worker's connections arrive.
#[derive(Debug)]
pub struct WorkerInbox {
    /// The worker's number.
    pub worker: usize,
    /// Connections that other workers have accepted for it.
    pub arrivals: mpsc::UnboundedReceiver<Connection>,
}

impl LoadBalancer {
    /// Nobody is there yet.
    pub fn new(workers: usize) -> (Self, Vec<WorkerInbox>) {
        let (shares, inboxes) = (0..workers)
            .map(|worker| {
                let (sender, arrivals) = mpsc::unbounded_channel();
                let share = Share {
                    count: AtomicUsize::new(0),
                    beats: AtomicUsize::new(0),
                    empty: Notify::new(),
                    arrivals: sender,
                };
                (share, WorkerInbox { worker, arrivals })
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        (
            Self(Arc::new(Shares {
                all: AtomicUsize::new(0),
                acceptors: AtomicUsize::new(0),
                workers: shares.into(),
            })),
            inboxes,
        )
    }

    /// A place with the worker that has the fewest connections, `own` where it is one of those; none where there are
    /// `max` in all.
    pub fn place(&self, own: usize, max: usize) -> Option<ConnectionSlot> {
        let count = |worker: usize| self.0.workers[worker].count.load(Ordering::Relaxed);
        let others = (0..self.0.workers.len()).filter(|worker| count(*worker) < count(own));
        let worker = others.min_by_key(|worker| count(*worker)).unwrap_or(own);
        self.0.workers[worker].count.fetch_add(1, Ordering::Relaxed);
        let before = self.0.all.fetch_add(1, Ordering::Relaxed);
        // Where it is one too many, dropping it gives the place back.
        Some(ConnectionSlot { balance: self.clone(), worker }).filter(|_| before < max)
    }

    /// A place with that worker beyond what is allowed, for a connection that another one gives way to.
    pub fn place_beyond(&self, worker: usize) -> ConnectionSlot {
        self.0.workers[worker].count.fetch_add(1, Ordering::Relaxed);
        self.0.all.fetch_add(1, Ordering::Relaxed);
        ConnectionSlot { balance: self.clone(), worker }
    }

    /// Brings a connection for which there was no room with its worker to the next one; gives it back where that has
    /// ended.
    pub fn pass_on(&self, connection: Connection) -> Result<(), Connection> {
        let worker = (connection.counted.worker + 1) % self.0.workers.len();
        let counted = self.place_beyond(worker);
        self.hand_over(Connection { counted, workers_to_try: connection.workers_to_try - 1, ..connection })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.0.workers.len()
    }

    /// Somebody accepts connections, for any worker, until it drops this.
    pub fn open_acceptor(&self) -> Accepting {
        self.0.acceptors.fetch_add(1, Ordering::Relaxed);
        Accepting(self.clone())
    }

    /// Hands a connection to the worker that its place is with; gives it back where that has ended.
    pub fn hand_over(&self, connection: Connection) -> Result<(), Connection> {
        let worker = connection.counted.worker;
        self.0.workers[worker].arrivals.send(connection).map_err(|unsent| unsent.0)
    }

    /// Connections in all.
    pub fn connections(&self) -> usize {
        self.0.all.load(Ordering::Relaxed)
    }

    /// Connections of each worker.
    pub fn counts(&self) -> Vec<usize> {
        self.0.workers.iter().map(|share| share.count.load(Ordering::Relaxed)).collect()
    }

    /// A sign of life of that worker.
    pub fn beat(&self, worker: usize) {
        self.0.workers[worker].beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The signs of life of all workers so far.
    pub fn beats(&self) -> Vec<usize> {
        self.0.workers.iter().map(|share| share.beats.load(Ordering::Relaxed)).collect()
    }

    /// Waits until that worker has no connection and nobody can bring it one.
    pub async fn gone(&self, worker: usize) {
        let share = &self.0.workers[worker];
        // Whoever goes through a acceptor has its place before the acceptor is closed.
        while self.0.acceptors.load(Ordering::Acquire) > 0 || share.count.load(Ordering::Relaxed) > 0 {
            share.empty.notified().await;
        }
    }
}

/// Somebody who accepts connections.
#[derive(Debug)]
pub struct Accepting(LoadBalancer);

impl Drop for Accepting {
    fn drop(&mut self) {
        let shares = &self.0.0;
        if shares.acceptors.fetch_sub(1, Ordering::Release) == 1 {
            shares.workers.iter().for_each(|share| share.empty.notify_one());
        }
    }
}

/// A connection's place, for as long as it lives.
#[derive(Debug)]
pub struct ConnectionSlot {
    balance: LoadBalancer,
    /// The worker.
    pub worker: usize,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let shares = &self.balance.0;
        shares.all.fetch_sub(1, Ordering::Relaxed);
        let share = &shares.workers[self.worker];
        if share.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Kept for a worker that is about to wait.
            share.empty.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::observe::client::ConnectionIds;

    fn workers(places: &[Option<ConnectionSlot>], of: usize) -> Vec<usize> {
        let count = |worker| places.iter().flatten().filter(|place| place.worker == worker).count();
        (0..of).map(count).collect()
    }

    #[test]
    fn sessions_are_spread_wherever_they_arrive() {
        let (balance, _inboxes) = LoadBalancer::new(4);
        let mut places: Vec<_> = (0..10).map(|_| balance.place(2, 100)).collect();
        assert_eq!(workers(&places, 4), [3, 2, 3, 2]);
        places.retain(|place| place.as_ref().is_some_and(|place| place.worker != 0));
        places.extend((0..2).map(|_| balance.place(3, 100)));
        assert_eq!(workers(&places, 4), [2, 2, 3, 2]);
    }

    #[test]
    fn a_connection_stays_where_it_came_in_unless_another_worker_has_fewer() {
        let (balance, _inboxes) = LoadBalancer::new(3);
        let places = [2, 1, 0].map(|own| balance.place(own, 100));
        assert_eq!(places.map(|place| place.map(|place| place.worker)), [Some(2), Some(1), Some(0)]);
    }

    /// Or it would be dropped unseen, and its place lost.
    #[test]
    fn a_connection_that_no_worker_takes_is_given_back() {
        let (balance, mut inboxes) = LoadBalancer::new(2);
        let connection = |counted| Connection {
            socket: std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
            client: SocketAddr::from(([192, 0, 2, 1], 4000)),
            secure: true,
            id: ConnectionIds::default().next(),
            counted,
            workers_to_try: 2,
        };
        balance.hand_over(connection(balance.place_beyond(1))).unwrap();
        assert!(inboxes.pop().unwrap().arrivals.try_recv().is_ok(), "a worker that is there");
        assert_eq!(balance.connections(), 0, "the inbox of worker 1 has ended, with what was in it");
        let back = balance.hand_over(connection(balance.place_beyond(1))).unwrap_err();
        assert_eq!((back.counted.worker, back.workers_to_try, balance.connections()), (1, 2, 1));
        drop(back);
        let back = balance.pass_on(connection(balance.place_beyond(0))).unwrap_err();
        assert_eq!((back.counted.worker, back.workers_to_try, balance.connections()), (1, 1, 1));
        drop(back);
        assert_eq!(workers_of(&balance), [0, 0]);
    }

    fn workers_of(balance: &LoadBalancer) -> Vec<usize> {
        balance.0.workers.iter().map(|share| share.count.load(Ordering::Relaxed)).collect()
    }

    /// Or a connection that one worker has accepted for another would be lost when both stop.
    #[test]
    fn a_worker_has_not_gone_while_any_acceptor_is_open() {
        let (balance, _inboxes) = LoadBalancer::new(2);
        let acceptors = [balance.open_acceptor(), balance.open_acceptor()];
        let mut gone = std::pin::pin!(balance.gone(1));
        let mut poll = || gone.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending());
        let place = [balance.place(0, 9), balance.place(0, 9)];
        drop(acceptors);
        assert!(poll().is_pending());
        drop(place);
        assert!(poll().is_ready());
    }

    #[test]
    fn no_more_than_allowed_find_a_place_and_each_gives_its_own_back() {
        let (balance, _inboxes) = LoadBalancer::new(2);
        let places: Vec<_> = (0..5).map(|_| balance.place(0, 3)).collect();
        assert_eq!(places.iter().flatten().count(), 3);
        drop(places);
        assert_eq!((0..5).filter_map(|_| balance.place(0, 3).map(std::mem::forget)).count(), 3);
    }
}
