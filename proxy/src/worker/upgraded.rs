//! A client and an agent after the `101`: the session runs, and its end is written down. Moves no byte itself.

use crate::observe::access_log::EndReason;
use crate::observe::agent::Agent;
use crate::observe::session_stats::{LiveSession, SharedProbe, TcpProbe};
use crate::runtime::drain::Phase;
use crate::runtime::scheduler::Class;
use crate::session::relay::{ByteCounts, RelayContext, relay};
use crate::transport::endpoint::Endpoint;
use crate::transport::net::Runtime;
use crate::transport::stream::Stream as _;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::record_builder::RecordBuilder;

/// A client and an agent that speak to each other.
pub(super) struct Upgraded<N: Runtime> {
    pub(super) client: Box<Endpoint<N::Stream>>,
    pub(super) agent: Box<Endpoint<N::Stream>>,
    /// Which agent it is.
    pub(super) target: Agent,
    pub(super) builder: RecordBuilder,
    /// The client's connection, where it shares it with other requests.
    pub(super) probe: Option<SharedProbe>,
}

impl<N: Runtime> Upgraded<N> {
    /// Runs the session to its end.
    pub(super) async fn relay(self: Box<Self>, generation: &Generation<N>) {
        let Self { mut client, mut agent, target, mut builder, probe } = *self;
        let (now, live) = (generation.net.now(), LiveSession::default());
        let of_shared = || probe.map(|probe| -> TcpProbe { Box::new(move || probe()) });
        let probes = [client.stream().probe().or_else(of_shared), agent.stream().probe()];
        builder.log_session_start(generation);
        let open = generation.worker.stats.begin_session(target.id, live.clone(), probes, now);
        let entry = generation.shared.process.sessions.open(builder.desktop(target.address), live, now);
        let until = generation.config().session_max.map(|limit| now + limit);
        let slot = generation.worker.sessions.enter(entry.number(), until);
        if generation.drain.phase() == Phase::Ending {
            generation.worker.sessions.end_all();
        }
        generation.net.set_class(Class::Session);
        let around = RelayContext {
            net: &generation.net,
            buffers: &generation.worker.buffers,
            pipes: &generation.worker.pipes,
            drain: slot.drain(),
            limits: generation.config().relay,
            open: &open,
        };
        let (end_reason, ByteCounts { to_agent, to_client }) = relay(&mut client, &mut agent, &around).await;
        let end_reason = if end_reason == EndReason::Drained { slot.reason() } else { end_reason };
        open.sample(generation.net.now(), generation.worker.stats.wake_up_us());
        builder.record.session = Some(open.latest());
        drop((entry, slot));
        (builder.record.to_agent, builder.record.to_client) = (to_agent, to_client);
        builder.close(generation, 101, end_reason);
        generation.net.set_class(Class::Setup);
        // A slow client may still have to take what the agent said last.
        let limit = match end_reason {
            EndReason::Idle
            | EndReason::Drained
            | EndReason::EndedByOperator
            | EndReason::Revoked
            | EndReason::MaxDuration => CLOSE_TIMEOUT,
            _ => generation.config().limits.tcp_user_timeout,
        };
        let linger = async {
            tokio::join!(
                client.linger(&generation.net, &generation.worker.buffers, limit),
                agent.linger(&generation.net, &generation.worker.buffers, CLOSE_TIMEOUT)
            )
        };
        tokio::select! {
            _ = linger => {}
            () = generation.drain.reached(Phase::Ending) => {}
        }
    }
}
