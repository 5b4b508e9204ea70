//! One turn of the relay: a desktop's frame of 20 kB is received, opened, sealed and sent, between streams in memory,
//! so that what is left is the relay's own cost. With TLS on both sides, and with none.

mod ends;

use std::cell::RefCell;
use std::future::{Pending, pending};
use std::hint::black_box;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dcv_splice::observe::agent::{Agent, AgentId};
use dcv_splice::observe::session_stats::LiveSession;
use dcv_splice::observe::stats::WorkerStats;
use dcv_splice::runtime::buffer::Buffer;
use dcv_splice::runtime::drain::Drain;
use dcv_splice::runtime::scheduler::Class;
use dcv_splice::session::relay::{RelayContext, RelayLimits, relay};
use dcv_splice::tls::TlsEnd;
use dcv_splice::transport::any_stream::AnyStream;
use dcv_splice::transport::endpoint::{Endpoint, WorkerBuffers};
use dcv_splice::transport::net::Runtime;
use dcv_splice::transport::pipes::Pipes;
use dcv_splice::transport::stream::Stream;

const FRAME_BYTES: usize = 20_000;
const LIMITS: RelayLimits = RelayLimits {
    budget: 64 * 1024,
    idle_timeout: Duration::MAX,
    half_closed_timeout: Duration::MAX,
    queue_target: None,
};

/// Bytes on their way to the relay and from it.
#[derive(Clone, Default)]
struct Memory {
    to_relay: Rc<RefCell<Buffer>>,
    from_relay: Rc<RefCell<Buffer>>,
}

impl Stream for Memory {
    fn poll_recv(&mut self, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut waiting = self.to_relay.borrow_mut();
        let length = waiting.len().min(into.len());
        if length == 0 {
            return Poll::Pending;
        }
        into[..length].copy_from_slice(&waiting.filled()[..length]);
        waiting.consume(length);
        Poll::Ready(Ok(length))
    }

    fn poll_send(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.from_relay.borrow_mut().push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn endpoint(stream: &Memory, tls: TlsEnd) -> Endpoint<AnyStream<Memory>> {
    Endpoint::new(AnyStream::Outside(stream.clone()), tls)
}

/// A worker on which nothing else happens.
struct Quiet;

impl Runtime for Quiet {
    type Stream = AnyStream<Memory>;
    type Sleep = Pending<()>;

    async fn connect(&self, _: Agent) -> io::Result<Self::Stream> {
        Ok(AnyStream::Outside(Memory::default()))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, _: Duration) -> Self::Sleep {
        pending()
    }

    fn spawn(&self, _: impl Future<Output = ()> + 'static) {}

    async fn yield_now(&self) {}

    fn set_class(&self, _: Class) {}

    fn may_move_bulk(&self, _: &Context<'_>) -> bool {
        true
    }

    fn is_idle(&self) -> bool {
        true
    }
}

fn turn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a turn of the relay");
    group.throughput(Throughput::Bytes(FRAME_BYTES as u64));
    for is_secure in [true, false] {
        let ends = || if is_secure { ends::connected() } else { (TlsEnd::plain(), TlsEnd::plain()) };
        let ((to_agent, mut agent), (mut client, to_client)) = (ends(), ends());
        let (near, far) = (Memory::default(), Memory::default());
        let (mut client_endpoint, mut agent_endpoint) =
            (endpoint(&near, to_client), endpoint(&far, to_agent));
        let (buffers, pipes, stop) =
            (RefCell::<WorkerBuffers>::default(), RefCell::<Pipes>::default(), Drain::default());
        let open = WorkerStats::default().begin_session(
            AgentId::OTHERS,
            LiveSession::default(),
            [None, None],
            Instant::now(),
        );
        let (net, buffers, pipes, drain, open) = (&Quiet, &buffers, &pipes, &stop, &open);
        let context = RelayContext { net, buffers, pipes, drain, limits: LIMITS, open };
        let mut session = pin!(relay(&mut client_endpoint, &mut agent_endpoint, &context));
        let frame: Vec<u8> = (0..FRAME_BYTES).map(|at| at.to_le_bytes()[0]).collect();
        let mut pass = || {
            agent.seal(&frame, &mut far.to_relay.borrow_mut()).expect("an open end");
            let started = Instant::now();
            let polled = session.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let took = started.elapsed();
            assert!(polled.is_pending());
            let mut sent = near.from_relay.borrow_mut();
            let arrived = ends::open(&mut client, sent.filled()).0;
            sent.clear();
            (took, arrived)
        };
        assert_eq!(pass().1, frame);
        let name = if is_secure { "TLS on both sides" } else { "plain" };
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| black_box(pass()).0).sum::<Duration>());
        });
    }
}

criterion_group!(benches, turn);
criterion_main!(benches);
