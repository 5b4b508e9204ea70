//! The peers `l4` and `l4-splice`: a plain TCP relay on tokio, two worker threads, no TLS and no HTTP.
//! It is the floor: what any relay on this machine has to pay. `l4` copies through 64 KiB buffers,
//! `l4-splice` moves pages through pipes with `splice(2)`.

use std::io;
use std::net::SocketAddr;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const COPY_BYTES: usize = 64 * 1024;
const PIPE_BYTES: usize = 1024 * 1024;

/// What the relay's process is told.
#[derive(Deserialize, Serialize)]
pub(super) struct RelayPlan {
    /// Where it listens, and the agents behind that.
    pub(super) routes: Vec<(SocketAddr, SocketAddr)>,
    pub(super) splice: bool,
}

/// Serves until it is killed.
pub(super) async fn serve(plan: RelayPlan) -> io::Result<()> {
    let mut routes = JoinSet::new();
    for (listen, agent) in plan.routes {
        routes.spawn(route(listen, agent, plan.splice));
    }
    while let Some(ended) = routes.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn route(listen: SocketAddr, agent: SocketAddr, splice: bool) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            // Either side ends as it likes; what it means is for the client to say.
            let _ = relay(client, agent, splice).await;
        });
    }
}

async fn relay(mut client: TcpStream, agent: SocketAddr, splice: bool) -> io::Result<()> {
    let mut agent = TcpStream::connect(agent).await?;
    client.set_nodelay(true)?;
    agent.set_nodelay(true)?;
    if splice {
        tokio::try_join!(one_way(&client, &agent), one_way(&agent, &client))?;
    } else {
        copy_bidirectional_with_sizes(&mut client, &mut agent, COPY_BYTES, COPY_BYTES).await?;
    }
    Ok(())
}

async fn one_way(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    // Past the user's limit a pipe stays at its default size.
    let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let read = || Ok(splice(from, None, &writer, None, PIPE_BYTES, flags)?);
        let mut waiting = from.async_io(Interest::READABLE, read).await?;
        if waiting == 0 {
            return Ok(rustix::net::shutdown(to, rustix::net::Shutdown::Write)?);
        }
        while waiting > 0 {
            let write = || Ok(splice(&reader, None, to, None, waiting, flags)?);
            waiting -= to.async_io(Interest::WRITABLE, write).await?;
        }
    }
}
