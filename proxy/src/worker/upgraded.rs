//! A client and an agent after the `101`: the session runs, and its end is written down. Moves no byte itself.

use crate::observe::access_log::EndReason;
use crate::observe::agent::AgentId;
use crate::runtime::drain::Phase;
use crate::runtime::scheduler::Class;
use crate::session::relay::{ByteCounts, RelayContext, relay};
use crate::transport::endpoint::Endpoint;
use crate::transport::net::Runtime;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::record_builder::RecordBuilder;

/// A client and an agent that speak to each other.
pub(super) struct Upgraded<N: Runtime> {
    pub(super) client: Box<Endpoint<N::Stream>>,
    pub(super) agent: Box<Endpoint<N::Stream>>,
    pub(super) builder: RecordBuilder,
}

impl<N: Runtime> Upgraded<N> {
    /// Runs the session to its end.
    pub(super) async fn relay(self: Box<Self>, generation: &Generation<N>) {
        let Self { mut client, mut agent, mut builder } = *self;
        let agent_id = builder.record.agent.map_or(AgentId::OTHERS, |agent| agent.id);
        let open = generation.worker.stats.begin_session(agent_id);
        let sessions = &generation.shared.process.sessions;
        let _listed = builder
            .record
            .agent
            .map(|agent| sessions.open(builder.desktop(agent.address), generation.net.now()));
        generation.net.set_class(Class::Session);
        let around = RelayContext {
            net: &generation.net,
            buffers: &generation.worker.buffers,
            pipes: &generation.worker.pipes,
            drain: &generation.drain,
            limits: generation.config().relay,
            open: &open,
        };
        let (end_reason, ByteCounts { to_agent, to_client }) = relay(&mut client, &mut agent, &around).await;
        (builder.record.to_agent, builder.record.to_client) = (to_agent, to_client);
        builder.close(generation, 101, end_reason);
        generation.net.set_class(Class::Setup);
        // A slow client may still have to take what the agent said last.
        let limit = match end_reason {
            EndReason::Idle | EndReason::Drained => CLOSE_TIMEOUT,
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
