//! A network in memory on virtual time: streams that cut, delay, hold back and break what passes through them as
//! a seed says. It stands under the proxy's real code through its `Runtime` and `Stream` traits; no socket, no real
//! clock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dcv_splice::observe::agent::Agent;
use dcv_splice::runtime::scheduler::{Class, SETUP_CALLS};
use dcv_splice::transport::any_stream::AnyStream;
use dcv_splice::transport::net::Runtime;
use dcv_splice::transport::stream::{Route, Standing, Stream};
use dcv_splice::worker::connection;
use dcv_splice::worker::context::Generation;

/// Payload of a segment on an Ethernet, in bytes.
const SEGMENT: usize = 1448;

/// How a wire treats what passes through it.
#[derive(Clone, Copy, Debug)]
pub struct NetworkConditions {
    /// The most bytes that one receive or send moves.
    pub chunk_max: usize,
    /// Bytes that wait in one direction before the sender is held back.
    pub capacity: usize,
    /// Of 100 receives or sends, how many find nothing at first.
    pub reluctance: u8,
}

impl NetworkConditions {
    /// Some conditions between calm and foul, for a life in which `bytes` are on their way. The more they are, the
    /// larger the pieces: a few hundred cuts find what a million would.
    pub fn of(rng: &mut fastrand::Rng, bytes: usize) -> Self {
        let chunk_max = [1, 7, 100, 1500, 20_000, 1 << 20][rng.usize(..6)].max(bytes / 250);
        // A capacity far below a record makes every send a partial one.
        let capacity = [64, 1000, 40_000, 1 << 20][rng.usize(..4)].max(bytes / 250);
        Self { chunk_max, capacity, reluctance: rng.u8(..40) }
    }
}

/// One direction of a wire.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<u8>,
    /// The sender has said that nothing more comes.
    ended: bool,
    /// Either end is gone.
    reset: bool,
    /// What the proxy allows to wait, below the wire's own capacity.
    bound: Option<usize>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// One end of a wire.
pub struct Wire {
    incoming: Rc<RefCell<Lane>>,
    outgoing: Rc<RefCell<Lane>>,
    conditions: NetworkConditions,
    rng: fastrand::Rng,
    /// Receives and sends until the wire breaks; none: never.
    breaks_in: Option<Rc<Cell<u32>>>,
    /// The calls that the proxy's task may make; none at the far end.
    budget: Option<Rc<Budget>>,
    route: Option<Route>,
}

/// The calls that one run of the proxy's task may make, as the real loop counts them.
#[derive(Debug)]
struct Budget {
    left: Cell<u32>,
    of_a_run: Cell<u32>,
}

impl Budget {
    /// Whether one more call may be made; if not, the task has been woken for another run.
    fn may_call(&self, cx: &Context<'_>) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 0 {
            cx.waker().wake_by_ref();
        }
        left > 0
    }
}

/// A wire with its two ends. Only the first breaks after `breaks_in` receives and sends.
pub fn wire(conditions: NetworkConditions, seed: u64, breaks_in: Option<Rc<Cell<u32>>>) -> (Wire, Wire) {
    let (one, two) = <(Rc<RefCell<Lane>>, Rc<RefCell<Lane>>)>::default();
    let mut rng = fastrand::Rng::with_seed(seed);
    let near = Wire {
        incoming: one.clone(),
        outgoing: two.clone(),
        conditions,
        rng: rng.fork(),
        breaks_in,
        budget: None,
        route: None,
    };
    let far =
        Wire { incoming: two, outgoing: one, conditions, rng, breaks_in: None, budget: None, route: None };
    (near, far)
}

impl Wire {
    /// Breaks the wire, as a reset does: what waits is lost to both ends.
    pub fn reset(&mut self) {
        for lane in [&self.incoming, &self.outgoing] {
            let mut lane = lane.borrow_mut();
            lane.reset = true;
            lane.waiting.clear();
            lane.wake();
        }
    }

    /// Whether the call is to be put off; then the task has been woken for another try.
    fn is_reluctant(&mut self, cx: &Context<'_>) -> bool {
        if self.budget.as_ref().is_some_and(|budget| !budget.may_call(cx)) {
            return true;
        }
        let reluctant = self.rng.u8(..100) < self.conditions.reluctance;
        if reluctant {
            cx.waker().wake_by_ref();
        }
        reluctant
    }

    fn wear(&mut self) {
        let Some(left) = &self.breaks_in else { return };
        left.set(left.get().saturating_sub(1));
        if left.get() == 0 {
            self.reset();
        }
    }
}

impl Stream for Wire {
    fn is_put_off(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.left.get() == 0)
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_reluctant(cx) {
            return Poll::Pending;
        }
        self.wear();
        let mut lane = self.incoming.borrow_mut();
        if lane.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if lane.waiting.is_empty() {
            if lane.ended {
                return Poll::Ready(Ok(0));
            }
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let take = self.rng.usize(1..=self.conditions.chunk_max).min(into.len()).min(lane.waiting.len());
        into.iter_mut().zip(lane.waiting.drain(..take)).for_each(|(to, byte)| *to = byte);
        lane.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(take))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_reluctant(cx) {
            return Poll::Pending;
        }
        self.wear();
        let mut lane = self.outgoing.borrow_mut();
        if lane.reset || lane.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let capacity = lane.bound.unwrap_or(usize::MAX).min(self.conditions.capacity);
        let room = capacity.saturating_sub(lane.waiting.len());
        if room == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let take = self.rng.usize(1..=self.conditions.chunk_max).min(room).min(bytes.len());
        lane.waiting.extend(&bytes[..take]);
        lane.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(take))
    }

    fn bound_unsent(&mut self, bytes: usize) {
        self.outgoing.borrow_mut().bound = Some(bytes);
    }

    fn bound_unread(&mut self, bytes: usize) {
        self.incoming.borrow_mut().bound = Some(bytes);
    }

    fn route(&self) -> Option<Route> {
        self.route
    }

    fn standing(&self) -> Standing {
        let bytes = |lane: &RefCell<Lane>| lane.borrow().waiting.len() as u64;
        Standing { unread: bytes(&self.incoming), unsent: bytes(&self.outgoing) }
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut lane = self.outgoing.borrow_mut();
        if lane.reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        lane.ended = true;
        lane.wake();
        Ok(())
    }
}

/// A closed socket: its own bytes still arrive, those for it are answered by a reset.
impl Drop for Wire {
    fn drop(&mut self) {
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.ended = true;
        outgoing.wake();
        let mut incoming = self.incoming.borrow_mut();
        incoming.reset = true;
        incoming.wake();
    }
}

/// What happens to a connection that the proxy makes.
pub type OnConnect = dyn Fn(SocketAddr) -> io::Result<Wire>;

/// The world around a proxy: whom its connections reach.
pub struct World {
    /// Called for each connection to an agent; the far end is the test's.
    pub on_connect: Box<OnConnect>,
    /// How long a connection takes.
    pub connect_time: Duration,
    /// Connections that were asked for.
    pub asked: RefCell<Vec<SocketAddr>>,
    /// Whether who asked last had the turn to move bulk.
    pub bulk: Cell<bool>,
    budget: Rc<Budget>,
    /// How often somebody has let the others have their turn.
    pub breaths: Cell<usize>,
    /// The task that runs, or ran last.
    task: Rc<RefCell<Option<Waker>>>,
}

impl World {
    /// One in which nothing has been asked for yet.
    pub fn new(
        connect_time: Duration,
        on_connect: impl Fn(SocketAddr) -> io::Result<Wire> + 'static,
    ) -> Self {
        Self {
            on_connect: Box::new(on_connect),
            connect_time,
            asked: RefCell::default(),
            bulk: Cell::default(),
            budget: Rc::new(Budget { left: Cell::new(SETUP_CALLS), of_a_run: Cell::new(SETUP_CALLS) }),
            breaths: Cell::default(),
            task: Rc::default(),
        }
    }

    /// Takes on the near end of a wire: what its task may do in a run is bounded from now on.
    pub fn adopt(&self, mut wire: Wire) -> AnyStream<Wire> {
        wire.budget = Some(self.budget.clone());
        wire.route = Some(Route { round_trip: self.connect_time, segment: SEGMENT });
        AnyStream::Outside(wire)
    }

    /// Bounds each run to fewer calls than the real loop does.
    pub fn tighten(&self, calls: u32) {
        self.budget.of_a_run.set(calls);
    }

    /// Runs `work` as a task of the real loop's: each run begins with all its calls.
    fn in_runs<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let (task, budget) = (self.task.clone(), self.budget.clone());
        let mut work = Box::pin(work);
        poll_fn(move |cx| {
            task.replace(Some(cx.waker().clone()));
            budget.left.set(budget.of_a_run.get());
            work.as_mut().poll(cx)
        })
    }
}

/// Serves the near end of a wire to its end, in runs as the real loop bounds them.
pub async fn serve(generation: &Rc<Generation<World>>, near: Wire, client: SocketAddr, secure: bool) {
    let (net, id) = (&generation.net, generation.shared.process.connection_ids.next());
    net.in_runs(connection::serve(generation, net.adopt(near), client, secure, false, id)).await;
}

impl Runtime for World {
    type Stream = AnyStream<Wire>;
    type Sleep = tokio::time::Sleep;

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        tokio::time::sleep(time)
    }

    async fn connect(&self, agent: Agent) -> io::Result<Self::Stream> {
        let agent = agent.address;
        self.asked.borrow_mut().push(agent);
        tokio::time::sleep(self.connect_time).await;
        Ok(self.adopt((self.on_connect)(agent)?))
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(self.in_runs(work));
    }

    fn set_class(&self, _: Class) {}

    /// Every other time that somebody asks; whoever has to wait is polled again.
    fn may_move_bulk(&self, _: &Context<'_>) -> bool {
        self.bulk.update(|bulk| !bulk);
        if !self.bulk.get() {
            self.task.borrow().iter().for_each(Waker::wake_by_ref);
        }
        self.bulk.get()
    }

    fn is_idle(&self) -> bool {
        self.bulk.get()
    }

    async fn yield_now(&self) {
        self.breaths.update(|breaths| breaths + 1);
        tokio::task::yield_now().await;
    }
}
