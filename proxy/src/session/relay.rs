//! The hot path: bytes between client and agent after the `101`, each way on its own until both have ended.
//! One turn of a direction reads once or more into the worker's buffer, opens every record in it, seals into
//! one outgoing buffer and sends that at once. While a side can't take its bytes, the other is not read.
//! Nothing here locks, logs or looks at the clock per message, and nothing is allocated but the place for a record that
//! came in part, or for what a side can't take yet.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::observe::access_log::EndReason;
use crate::observe::side::Side;
use crate::observe::stats::OpenSession;
use crate::runtime::drain::{Drain, Phase};
use crate::session::close_frame::{self, CLOSE_FRAME_BYTES_MAX};
use crate::session::direction::{Direction, Lane, State};
use crate::tls::TlsError;
use crate::transport::endpoint::{Endpoint, EndpointError, RECEIVE_BYTES_MAX, StreamEnd, WorkerBuffers};
use crate::transport::net::Runtime;
use crate::transport::pipes::{PIPE_BYTES, Pipes};
use crate::transport::stream::{Piped, Stream};

/// Limits of a relay.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Bytes that one direction may move before others who wait have their turn.
    pub budget: usize,
    /// How long a session may move no byte at all; looked at once in this time, so it may last up to twice.
    pub idle_timeout: Duration,
    /// The same once one direction has ended.
    pub half_closed_timeout: Duration,
    /// The time in which a side should be able to take what stands for it; none: as much stands as fits.
    pub queue_target: Option<Duration>,
}

/// Bytes that one direction moves before it looks around again, where nobody waits.
const BUDGET_ALONE: usize = RECEIVE_BYTES_MAX;
/// Receives of one turn. A sender of small segments has the worker busy for longer than its bytes tell.
const TURN_RECEIVES: usize = 32;
/// Below this many bytes waiting, copying costs no more than `splice(2)`.
const SPLICE_BYTES_MIN: usize = 16 * 1024;

/// Bytes that a relay has moved, as plaintext.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ByteCounts {
    /// From the client to the agent.
    pub to_agent: u64,
    /// From the agent to the client.
    pub to_client: u64,
}

/// The parts of a worker that a relay uses.
#[derive(Debug)]
pub struct RelayContext<'a, N> {
    /// For letting others have their turn.
    pub net: &'a N,
    /// The worker's buffers.
    pub buffers: &'a RefCell<WorkerBuffers>,
    /// The worker's spare pipes.
    pub pipes: &'a RefCell<Pipes>,
    /// Ending once the session is to end.
    pub drain: &'a Drain,
    /// The limits.
    pub limits: RelayLimits,
    /// Where it is counted what stands.
    pub open: &'a OpenSession,
}

/// Which side of a transfer failed, the one that bytes come from or the one they go to.
enum TransferError {
    From(EndpointError),
    To(EndpointError),
}

/// How a turn ended short of an error.
enum Turn {
    /// Nothing to do until a side is ready, or ever again.
    Over,
    /// The budget is used up and there may be more.
    Again,
}

struct Relay<'a, S> {
    client: &'a mut Endpoint<S>,
    agent: &'a mut Endpoint<S>,
    to_agent: Direction,
    to_client: Direction,
    /// The reason why the first direction ended.
    first: Option<EndReason>,
}

/// Relays until both directions have ended, a side fails, a limit runs out or the worker ends.
pub async fn relay<N: Runtime>(
    client: &mut Endpoint<N::Stream>,
    agent: &mut Endpoint<N::Stream>,
    context: &RelayContext<'_, N>,
) -> (EndReason, ByteCounts) {
    client.offload();
    agent.offload();
    let target = context.limits.queue_target;
    let to_agent = Direction::between(client, agent, Side::Agent, target);
    let to_client = Direction::between(agent, client, Side::Client, target);
    let mut relay = Relay { client, agent, to_agent, to_client, first: None };
    let end_reason = relay.run(context).await;
    let end_reason = relay.in_order(end_reason);
    relay.return_pipes(&mut context.pipes.borrow_mut());
    let moved = ByteCounts { to_agent: relay.to_agent.moved, to_client: relay.to_client.moved };
    (end_reason, moved)
}

impl<S: Stream> Relay<'_, S> {
    async fn run<N: Runtime<Stream = S>>(&mut self, context: &RelayContext<'_, N>) -> EndReason {
        if let Err((side, error)) = self.pass_early_bytes() {
            return error.ending(side);
        }
        let mut watch = context.drain.watch();
        let mut idle = pin!(context.net.sleep(context.limits.idle_timeout));
        let mut seen = self.progress();
        loop {
            let turn = poll_fn(|cx| {
                if watch.poll(cx, Phase::Ending).is_ready() {
                    return Poll::Ready(Step::Drained);
                }
                if let Poll::Ready(step) = self.turn(cx, context) {
                    return Poll::Ready(step);
                }
                // The timer is set once and looked at when it fires, so that a message costs no clock.
                idle.as_mut().poll(cx).map(|()| Step::TimeUp)
            });
            match turn.await {
                Step::Again => context.net.yield_now().await,
                Step::TimeUp if self.progress() == seen => {
                    let gone = self.first.filter(|_| self.to_client.state == State::Broken);
                    return self.close(context.net, gone.unwrap_or(EndReason::Idle)).await;
                }
                Step::TimeUp | Step::TimeoutShortened => {
                    seen = self.progress();
                    idle.set(context.net.sleep(self.idle_limit(&context.limits)));
                }
                Step::Ended(end_reason) => return end_reason,
                Step::Failed(side, error) => return self.failed(context.net, side, &error).await,
                Step::Drained => return self.close(context.net, EndReason::Drained).await,
            }
        }
    }

    /// Sends the bytes first that were read together with the heads.
    fn pass_early_bytes(&mut self) -> Result<(), (Side, EndpointError)> {
        pass_early(self.client, self.agent, &mut self.to_agent).map_err(|error| (Side::Agent, error))?;
        pass_early(self.agent, self.client, &mut self.to_client).map_err(|error| (Side::Client, error))
    }

    fn progress(&self) -> u64 {
        self.to_agent.moved + self.to_client.moved
    }

    fn idle_limit(&self, limits: &RelayLimits) -> Duration {
        match self.first {
            // An agent that waits for a client who is gone to listen takes nothing itself.
            Some(_) if self.to_client.state == State::Broken => limits.half_closed_timeout.min(CLOSE_TIMEOUT),
            Some(_) => limits.half_closed_timeout,
            None => limits.idle_timeout,
        }
    }

    /// One turn of each direction that has not ended.
    fn turn<N: Runtime<Stream = S>>(
        &mut self,
        cx: &mut Context<'_>,
        context: &RelayContext<'_, N>,
    ) -> Poll<Step> {
        let mut buffers = context.buffers.borrow_mut();
        let budget = context.limits.budget;
        let budget = if context.net.is_idle() { budget.max(BUDGET_ALONE) } else { budget };
        let RelayContext { pipes, net, open, .. } = *context;
        let mut pump = Pump { cx, buffers: &mut buffers, pipes, net, open, budget };
        let limit = self.idle_limit(&context.limits);
        // Input events are small and somebody waits for what they do: they go first.
        let up = pump.turn(self.client, self.agent, &mut self.to_agent);
        let up = settle(up, Side::Client, &mut self.to_agent, &mut self.first);
        // Who leaves in order often takes no more either: the end is what counts. Of one who breaks TLS it is not the end.
        if up.is_ok() {
            self.note_first_end();
        }
        let down = pump.turn(self.agent, self.client, &mut self.to_client);
        let down = settle(down, Side::Agent, &mut self.to_client, &mut self.first);
        let (up, down) = match (up, down) {
            (Ok(up), Ok(down)) => (up, down),
            (Err(failed), _) | (_, Err(failed)) => return Poll::Ready(failed),
        };
        self.note_first_end();
        if self.to_agent.is_over() && self.to_client.is_over() {
            return Poll::Ready(Step::Ended(self.first.unwrap_or(EndReason::Idle)));
        }
        match (up, down) {
            _ if self.idle_limit(&context.limits) < limit => Poll::Ready(Step::TimeoutShortened),
            (Turn::Again, _) | (_, Turn::Again) => Poll::Ready(Step::Again),
            _ => Poll::Pending,
        }
    }

    fn note_first_end(&mut self) {
        if self.first.is_none() {
            let client = self.client.end().map(|end| (Side::Client, end));
            let ended = client.or_else(|| self.agent.end().map(|end| (Side::Agent, end)));
            self.first = ended.map(|(side, end)| match end {
                StreamEnd::Clean => EndReason::Ended(side),
                StreamEnd::Truncated => EndReason::Truncated(side),
            });
        }
    }

    /// What a side sent before it failed is still brought to the other, but not called a clean end. The
    /// failed side is told why, if it is still there (a TLS alert), and that nothing follows (RFC 8446 6.2).
    async fn failed<N: Runtime>(&mut self, net: &N, side: Side, error: &EndpointError) -> EndReason {
        for side in [side.other(), side] {
            let last_bytes = poll_fn(|cx| self.poll_close(cx, side, false));
            let _ = net.timeout(CLOSE_TIMEOUT, last_bytes).await;
        }
        match self.first {
            Some(ended @ (EndReason::Ended(_) | EndReason::Truncated(_))) => ended,
            _ => error.ending(side),
        }
    }

    /// A side that has said that it ends, by `close_notify` or a WebSocket's close frame, has ended in order: many close
    /// the connection then without another word, or with what they have not read (a reset).
    fn in_order(&self, end_reason: EndReason) -> EndReason {
        let has_said_so = |side| match side {
            Side::Client => {
                self.to_agent.ends_with_close_frame || self.client.end() == Some(StreamEnd::Clean)
            }
            Side::Agent => self.to_client.ends_with_close_frame || self.agent.end() == Some(StreamEnd::Clean),
        };
        match end_reason {
            EndReason::Truncated(side) | EndReason::Reset(side) if has_said_so(side) => {
                EndReason::Ended(side)
            }
            end_reason => end_reason,
        }
    }

    /// Both sides are told that it is over, as far as they listen.
    async fn close<N: Runtime>(&mut self, net: &N, end_reason: EndReason) -> EndReason {
        let mut open = vec![Side::Client, Side::Agent];
        let close = poll_fn(|cx| {
            open.retain(|side| self.poll_close(cx, *side, true).is_pending());
            if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = net.timeout(CLOSE_TIMEOUT, close).await;
        end_reason
    }

    /// Brings a side what was taken for it, and that it was the last.
    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        clean: bool,
    ) -> Poll<Result<(), EndpointError>> {
        let (to, direction) = match side {
            Side::Client => (&mut *self.client, &mut self.to_client),
            Side::Agent => (&mut *self.agent, &mut self.to_agent),
        };
        ready!(to.poll_flush(cx))?;
        ready!(drain_pipe(cx, to, direction))?;
        to.poll_finish(cx, clean)
    }

    fn return_pipes(&mut self, pipes: &mut Pipes) {
        for direction in [&mut self.to_agent, &mut self.to_client] {
            if let Some(pipe) = direction.pipe.take()
                && direction.piped == 0
            {
                pipes.give_back(pipe);
            }
        }
    }
}

fn pass_early<S: Stream>(
    from: &mut Endpoint<S>,
    to: &mut Endpoint<S>,
    direction: &mut Direction,
) -> Result<(), EndpointError> {
    let early = from.read_buf.len();
    let bytes = from.read_buf.filled();
    // They are of several records.
    direction.ends_with_close_frame = !from.is_clean_by_fin()
        && (close_frame::ends_with_close(bytes) || close_frame::seems_to_end_with_close(bytes));
    to.write(from.read_buf.filled())?;
    from.read_buf.consume(early);
    from.release_buffers();
    direction.moved += early as u64;
    Ok(())
}

/// How long a side that is to be left has to take its last bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

enum Step {
    Again,
    TimeUp,
    /// Less time is left from now on.
    TimeoutShortened,
    Ended(EndReason),
    Failed(Side, EndpointError),
    Drained,
}

/// A side that takes no more may still have something to say, so it is read to its end; one that can't be read
/// ends the session.
fn settle(
    turn: Poll<Result<Turn, TransferError>>,
    from: Side,
    direction: &mut Direction,
    first: &mut Option<EndReason>,
) -> Result<Turn, Step> {
    match turn {
        Poll::Pending => Ok(Turn::Over),
        Poll::Ready(Ok(turn)) => Ok(turn),
        Poll::Ready(Err(TransferError::From(error))) => Err(Step::Failed(from, error)),
        Poll::Ready(Err(TransferError::To(error))) => {
            direction.state = State::Broken;
            first.get_or_insert_with(|| error.ending(from.other()));
            Ok(Turn::Over)
        }
    }
}

/// The tools of one turn.
struct Pump<'a, 'c, N> {
    cx: &'a mut Context<'c>,
    buffers: &'a mut WorkerBuffers,
    pipes: &'a RefCell<Pipes>,
    net: &'a N,
    open: &'a OpenSession,
    budget: usize,
}

impl<N: Runtime> Pump<'_, '_, N> {
    /// A turn, if it is the direction's.
    fn turn<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        direction: &mut Direction,
    ) -> Poll<Result<Turn, TransferError>> {
        if !direction.may_go(self.cx, self.net) {
            return Poll::Pending;
        }
        let turn = self.pass(from, to, direction);
        let is_used_up = matches!(turn, Poll::Ready(Ok(Turn::Again)));
        direction.full_turns = if is_used_up { direction.full_turns.saturating_add(1) } else { 0 };
        turn
    }

    fn pass<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        direction: &mut Direction,
    ) -> Poll<Result<Turn, TransferError>> {
        if direction.is_over() {
            return Poll::Ready(Ok(Turn::Over));
        }
        let (mut left, mut receives) = (direction.turn_bytes(self.budget), 0);
        loop {
            ready!(self.make_room(from, to, direction)).map_err(TransferError::To)?;
            if let Some(end) = from.end() {
                ready!(to.poll_finish(self.cx, end == StreamEnd::Clean)).map_err(TransferError::To)?;
                direction.state = State::Done;
                return Poll::Ready(Ok(Turn::Over));
            }
            if direction.unread.as_ref().is_some_and(|unread| unread.has_waited) {
                direction.handed_on(self.open, Some(self.net.arrived()));
            }
            if left == 0 || receives == TURN_RECEIVES {
                direction.handed_on(self.open, Some(self.net.now()));
                return Poll::Ready(Ok(Turn::Again));
            }
            receives += 1;
            let moved = if direction.spliced {
                ready!(self.splice(from, to, direction)).map_err(TransferError::From)?
            } else {
                ready!(self.copy(from, to, direction, left))?
            };
            if moved > 0 {
                direction.received(self.open, self.net.arrived());
            }
            if direction.is_full_sample() {
                direction.look(self.net.now(), from, to, self.open, false);
                direction.end_queue(self.open);
            }
            left = left.saturating_sub(moved);
        }
    }

    /// Sends what is left of the bytes taken before. A receiver that takes no more for now decides how much may stand.
    fn make_room<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        direction: &mut Direction,
    ) -> Poll<Result<(), EndpointError>> {
        let room = match to.poll_flush(self.cx) {
            Poll::Ready(Ok(())) => drain_pipe(self.cx, to, direction),
            room => room,
        };
        if room.is_pending() && !to.is_put_off() {
            if let Some(unread) = &mut direction.unread {
                unread.has_waited = true;
            }
            direction.look(self.net.now(), from, to, self.open, true);
        }
        room
    }

    /// Receives once and sends once.
    fn copy<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        direction: &mut Direction,
        bytes_max: usize,
    ) -> Poll<Result<usize, TransferError>> {
        let tracks_close_frame = !from.is_clean_by_fin();
        let may_splice = direction.lane == Lane::Splice && from.gives_plaintext() && to.takes_plaintext();
        let bytes_max = if may_splice { SPLICE_BYTES_MIN } else { bytes_max };
        let WorkerBuffers { incoming, outgoing, .. } = &mut *self.buffers;
        let mut sealed: Result<(), TlsError> = Ok(());
        let mut sink = |plain: &[u8]| {
            direction.moved += plain.len() as u64;
            direction.ends_with_close_frame = tracks_close_frame && close_frame::ends_with_close(plain);
            if sealed.is_ok() {
                sealed = to.seal(plain, outgoing);
            }
        };
        let received = from.poll_open(self.cx, incoming, bytes_max, &mut sink);
        // What came before a fault, or before a key was used up, still goes out.
        let sent = to.send_sealed(self.cx, outgoing);
        if received.is_pending() && !from.is_put_off() {
            direction.starve(self.open);
        }
        let received = ready!(received).map_err(TransferError::From)?;
        sealed.map_err(|error| TransferError::To(error.into()))?;
        sent.map_err(TransferError::To)?;
        // Opening can oblige to an answer (a key update). Where it has to wait, a later turn sends it.
        let _ = from.poll_flush(self.cx);
        direction.spliced = may_splice && received == SPLICE_BYTES_MIN && self.ensure_pipe(direction);
        Poll::Ready(Ok(received))
    }

    /// Whether a pipe is there for this direction.
    fn ensure_pipe(&self, direction: &mut Direction) -> bool {
        if direction.pipe.is_none() {
            direction.pipe = self.pipes.borrow_mut().take().ok();
        }
        direction.pipe.is_some()
    }

    /// Moves what waits into the empty pipe; a short move leads back to copying.
    fn splice<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        to: &Endpoint<S>,
        direction: &mut Direction,
    ) -> Poll<Result<usize, EndpointError>> {
        if !to.takes_plaintext() {
            direction.spliced = false;
            return Poll::Ready(Ok(0));
        }
        let limit = direction.turn_bytes(PIPE_BYTES);
        let moved = direction.pipe.as_ref().and_then(|pipe| from.poll_recv_pipe(self.cx, pipe, limit));
        let Some(moved) = moved else {
            direction.spliced = false;
            return Poll::Ready(Ok(0));
        };
        let Poll::Ready(moved) = moved else {
            direction.spliced = false;
            self.keep_pipe_for_others(direction);
            // Copying registers for the next bytes.
            return Poll::Ready(Ok(0));
        };
        let Piped { bytes, last_record } = moved?;
        if bytes == 0 {
            from.note_end();
        }
        direction.piped = bytes;
        direction.moved += bytes as u64;
        direction.ends_with_close_frame = false;
        direction.unseen = if last_record <= CLOSE_FRAME_BYTES_MAX { last_record } else { 0 };
        Poll::Ready(Ok(bytes))
    }

    fn keep_pipe_for_others(&self, direction: &mut Direction) {
        if let Some(pipe) = direction.pipe.take() {
            self.pipes.borrow_mut().give_back(pipe);
        }
    }
}

/// Sends what the pipe holds.
fn drain_pipe<S: Stream>(
    cx: &mut Context<'_>,
    to: &mut Endpoint<S>,
    direction: &mut Direction,
) -> Poll<Result<(), EndpointError>> {
    while direction.piped > direction.unseen {
        let Some(pipe) = &direction.pipe else { break };
        let whole = direction.piped - direction.unseen;
        let Some(sent) = to.poll_send_pipe(cx, pipe, whole) else { break };
        direction.piped -= ready!(sent)?;
    }
    if direction.unseen > 0 { drain_last_record(cx, to, direction) } else { Poll::Ready(Ok(())) }
}

/// Sends the last record in the pipe, which may be a close frame.
fn drain_last_record<S: Stream>(
    cx: &mut Context<'_>,
    to: &mut Endpoint<S>,
    direction: &mut Direction,
) -> Poll<Result<(), EndpointError>> {
    let Some(pipe) = &direction.pipe else { return Poll::Ready(Ok(())) };
    let mut record = [0; CLOSE_FRAME_BYTES_MAX];
    let taken = pipe.take(&mut record[..direction.unseen])?;
    direction.piped -= taken;
    direction.unseen = 0;
    direction.ends_with_close_frame = close_frame::ends_with_close(&record[..taken]);
    to.send(cx, &record[..taken])?;
    to.poll_flush(cx)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Pending, pending};
    use std::io;
    use std::rc::Rc;
    use std::task::Waker;
    use std::time::Instant;

    use super::*;
    use crate::observe::agent::{Agent, AgentId};
    use crate::observe::session_stats::LiveSession;
    use crate::observe::stats::WorkerStats;
    use crate::runtime::scheduler::Class;
    use crate::tls::TlsEnd;
    use crate::transport::any_stream::AnyStream;

    const BUDGET: usize = 64 * 1024;

    /// A side that has so much to say, in segments of at most that size, and takes everything.
    #[derive(Clone)]
    struct Talker {
        left: Rc<Cell<usize>>,
        taken: Rc<Cell<usize>>,
        segment_bytes: usize,
    }

    impl Default for Talker {
        fn default() -> Self {
            Self { left: Rc::default(), taken: Rc::default(), segment_bytes: usize::MAX }
        }
    }

    impl Stream for Talker {
        fn poll_recv(&mut self, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
            let said = into.len().min(self.left.get()).min(self.segment_bytes);
            self.left.set(self.left.get() - said);
            if said == 0 { Poll::Pending } else { Poll::Ready(Ok(said)) }
        }

        fn poll_send(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.taken.set(self.taken.get() + bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A worker that others wait for too, and that gives so many turns to bulk transfers.
    struct Busy {
        bulk_turns: Cell<usize>,
    }

    impl Runtime for Busy {
        type Stream = AnyStream<Talker>;
        type Sleep = Pending<()>;

        async fn connect(&self, _: Agent) -> io::Result<Self::Stream> {
            Ok(AnyStream::Outside(Talker::default()))
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
            let left = self.bulk_turns.get();
            self.bulk_turns.set(left.saturating_sub(1));
            left > 0
        }

        fn is_idle(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_flood_waits_for_its_turns_after_four_in_a_row_and_input_does_not() {
        floods(&Talker::default(), BUDGET);
    }

    #[test]
    fn a_flood_of_small_segments_has_turns_of_so_many_receives() {
        floods(&Talker { segment_bytes: 100, ..Talker::default() }, TURN_RECEIVES * 100);
    }

    /// The agent is a flood that moves so many bytes in a turn.
    fn floods(agent: &Talker, budget: usize) {
        let client = Talker::default();
        let mut client_endpoint = Endpoint::new(AnyStream::Outside(client.clone()), TlsEnd::plain());
        let mut agent_endpoint = Endpoint::new(AnyStream::Outside(agent.clone()), TlsEnd::plain());
        let net = Busy { bulk_turns: Cell::new(0) };
        let (buffers, pipes, stop) = (RefCell::default(), RefCell::default(), Drain::default());
        let limits = RelayLimits {
            budget: BUDGET,
            idle_timeout: Duration::MAX,
            half_closed_timeout: Duration::MAX,
            queue_target: None,
        };
        let open = WorkerStats::default().begin_session(
            AgentId::OTHERS,
            LiveSession::default(),
            [None, None],
            Instant::now(),
        );
        let (net, buffers, pipes, drain, open) = (&net, &buffers, &pipes, &stop, &open);
        let context = RelayContext { net, buffers, pipes, drain, limits, open };
        let mut session = pin!(relay(&mut client_endpoint, &mut agent_endpoint, &context));
        let mut runs =
            || assert!(session.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let to_client = || client.taken.get();

        agent.left.set(usize::MAX);
        runs();
        assert_eq!(to_client(), 4 * budget);
        client.left.set(40);
        runs();
        assert_eq!((agent.taken.get(), to_client()), (40, 4 * budget));
        net.bulk_turns.set(2);
        runs();
        assert_eq!(to_client(), 6 * budget);

        // A turn that is not used up ends the flood: the next bytes don't wait.
        agent.left.set(100);
        net.bulk_turns.set(1);
        runs();
        agent.left.set(usize::MAX);
        runs();
        assert_eq!(to_client(), (6 + 4) * budget + 100);
    }
}
