//! One way through a session: what has moved, what may stand, and since when bytes wait. Moves none itself.

use std::task::Context;
use std::time::{Duration, Instant};

use crate::observe::session_stats::HandedOn;
use crate::observe::side::Side;
use crate::observe::stats::OpenSession;
use crate::session::queue::{Queue, QueueBounds};
use crate::transport::endpoint::Endpoint;
use crate::transport::net::Runtime;
use crate::transport::pipes::Pipe;
use crate::transport::stream::Stream;

/// A direction that has used so many turns up in a row is bulk, and has its turns after those who are not. A turn
/// that is not used up makes it interactive again.
const BULK_TURNS: u8 = 4;

/// The state of a direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum State {
    #[default]
    Going,
    /// The sender's end was passed on.
    Done,
    /// The receiver takes no more.
    Broken,
}

/// One way through a session.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) moved: u64,
    pub(super) state: State,
    /// Turns used up in a row.
    pub(super) full_turns: u8,
    /// Bytes moved inside the kernel that the receiver has not taken yet.
    pub(super) piped: usize,
    /// The last of them: a record that may be the sender's close frame.
    pub(super) unseen: usize,
    pub(super) pipe: Option<Pipe>,
    pub(super) lane: Lane,
    /// Enough waits for the next bytes to go through the pipe.
    pub(super) spliced: bool,
    /// The last record was the sender's close frame; not known without TLS, where a FIN is an end in order anyway.
    pub(super) ends_with_close_frame: bool,
    /// Who takes its bytes.
    pub(super) to: Side,
    /// What may stand; none where that is not bounded.
    pub(super) queue: Option<Queue>,
    /// The receiver holds back, and it was counted what stands for it.
    pub(super) stands: bool,
    /// None where the sender had nothing more.
    pub(super) unread: Option<Unread>,
}

/// Bytes that can be read, or were, and that the receiver has not taken.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) since: Instant,
    /// The receiver had to make room for them.
    pub(super) has_waited: bool,
    /// There are some: where the last were handed on it is not known yet whether more are there.
    pub(super) has_bytes: bool,
}

impl Unread {
    pub(super) fn since(since: Instant) -> Self {
        Self { since, has_waited: false, has_bytes: false }
    }
}

/// How a direction's bytes are moved. Chosen once for a session, by what both ends can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    /// Through the worker's buffers, where TLS is opened and sealed.
    Copy,
    /// The same while little waits, and through a pipe inside the kernel otherwise: no end has TLS in this program, or soon
    /// none any more.
    Splice,
}

impl Lane {
    pub(super) fn between<S: Stream>(from: &Endpoint<S>, to: &Endpoint<S>) -> Self {
        if from.can_splice() && to.can_splice() { Self::Splice } else { Self::Copy }
    }
}

impl Direction {
    pub(super) fn between<S: Stream>(
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        receiver: Side,
        target: Option<Duration>,
    ) -> Self {
        let queue = target.map(|target| Queue::new(target, receiver.other(), from.stream().route()));
        if let Some(queue) = &queue {
            bound(from, to, queue.bounds());
        }
        Self {
            moved: 0,
            state: State::Going,
            full_turns: 0,
            piped: 0,
            unseen: 0,
            pipe: None,
            lane: Lane::between(from, to),
            spliced: false,
            ends_with_close_frame: false,
            to: receiver,
            queue,
            stands: false,
            unread: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state != State::Going
    }

    /// Bytes of one turn: no more than may stand for the receiver.
    pub(super) fn turn_bytes(&self, budget: usize) -> usize {
        self.queue.as_ref().map_or(budget, |queue| budget.min(queue.bounds().unsent))
    }

    /// Bounds what may stand anew, where it is time.
    pub(super) fn look<S: Stream>(
        &mut self,
        now: Instant,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        open: &OpenSession,
        is_blocked: bool,
    ) {
        let Some(queue) = &mut self.queue else { return };
        let Some(bounds) = queue.look(now, self.moved, is_blocked) else { return };
        bound(from, to, bounds);
        if is_blocked {
            let held = to.unsent() + self.piped;
            let bytes = from.stream().standing().unread + held as u64 + to.stream().standing().unsent;
            open.note_queue(self.to, bytes, queue.drain_time(bytes));
            self.stands = true;
        }
    }

    /// The sender has nothing for now.
    pub(super) fn starve(&mut self, open: &OpenSession) {
        if let Some(queue) = &mut self.queue {
            queue.starve();
        }
        self.end_queue(open);
        self.handed_on(open, None);
        if self.to == Side::Client {
            open.agent_pauses();
        }
    }

    /// Bytes are there that could be read since `arrived` at the earliest.
    pub(super) fn received(&mut self, open: &OpenSession, arrived: Instant) {
        open.note_moved(self.to, self.moved);
        if self.unread.is_none() && self.to == Side::Client {
            open.agent_speaks(arrived);
        }
        self.unread.get_or_insert(Unread::since(arrived)).has_bytes = true;
    }

    /// The receiver has all that was read. `since`: since when there may be more.
    pub(super) fn handed_on(&mut self, open: &OpenSession, since: Option<Instant>) {
        let next = since.map(Unread::since);
        let before = std::mem::replace(&mut self.unread, next);
        let Some(Unread { since, has_waited, has_bytes: true }) = before else { return };
        let how = match (has_waited, self.to) {
            (true, _) => HandedOn::AfterAWait,
            (false, Side::Agent) if !open.is_agent_speaking() => HandedOn::Question,
            (false, _) => HandedOn::AtOnce,
        };
        open.arrived(self.to, since, how);
    }

    pub(super) fn end_queue(&mut self, open: &OpenSession) {
        if self.stands {
            open.end_queue(self.to);
            self.stands = false;
        }
    }

    pub(super) fn is_full_sample(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.is_full_sample(self.moved))
    }

    /// Whether it may have a turn now; if not, the task will be polled again when it may.
    pub(super) fn may_go(&self, cx: &Context<'_>, net: &impl Runtime) -> bool {
        self.full_turns < BULK_TURNS || self.is_over() || net.may_move_bulk(cx)
    }
}

pub(super) fn bound<S: Stream>(from: &mut Endpoint<S>, to: &mut Endpoint<S>, bounds: QueueBounds) {
    to.stream().bound_unsent(bounds.unsent);
    if let Some(unread) = bounds.unread {
        from.stream().bound_unread(unread);
    }
}
