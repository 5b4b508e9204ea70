//! The load's client: opens its connections, keeps them busy, and measures one window in the middle of it.
//! It reads the CPU clocks of all processes itself, so that the window is the same for work and cost. Paced loads
//! are open loops: latency counts from when a message was meant to be sent. Any wrong byte fails the run.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::agent::{ACKNOWLEDGED, FLOOD_BYTES};
use super::attack::attack;
use super::http2::Client;
use super::latency::Latency;
pub(super) use super::load::{ClientPlan, Load};
use super::load::{Shared, Window};
use super::system::{self, Usage};
use super::wire::{Header, Pace, Wire, nanos, now, wrong};

/// From the last connection's opening to the window's start.
const WARM_UP: Duration = Duration::from_millis(700);
/// For opening everything, and again for the last answers after the window.
const PATIENCE: Duration = Duration::from_secs(20);
const INPUT_BYTES: usize = 40;
/// For a peer to put away what it no longer needs.
const SETTLE: Duration = Duration::from_secs(1);
/// For how long system calls are counted, and for how long the load goes on for that.
const COUNTED: Duration = Duration::from_millis(300);
const COUNTING: Duration = Duration::from_millis(600);

/// What one window has shown.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Outcome {
    pub(super) seconds: f64,
    /// Echoes, frames, bytes, requests, connections or sessions.
    pub(super) units: u64,
    pub(super) peer: Usage,
    pub(super) agent: Usage,
    pub(super) load: Usage,
    /// The share of the machine that none of ours has used.
    pub(super) foreign: f64,
    pub(super) latencies: BTreeMap<String, Latency>,
    /// Of an idle load: what the sessions have added to the peer's memory and to the kernel's, machine-wide.
    pub(super) memory_kib: f64,
    pub(super) slab_kib: f64,
    /// The share of the handshakes that resumed a session.
    pub(super) resumed: f64,
    /// System calls of the peer for each of the load's own units, where they could be counted.
    pub(super) syscalls: Option<f64>,
    /// Descriptors the peer holds after the load beyond those before.
    pub(super) descriptors: i64,
}

/// Does all of it; the error is what went wrong first.
pub(super) async fn run(plan: ClientPlan) -> io::Result<Outcome> {
    let shared = Arc::new(Shared::new(&plan)?);
    let before = system::descriptors(&plan.peer);
    let mut outcome = match plan.load {
        Load::Idle { sessions, bytes } => {
            idle(&shared, &plan, sessions, move |shared| async move { spoken(&shared, bytes, 5).await })
                .await?
        }
        Load::IdleHttp2 { connections, bytes } => {
            let open = move |shared: Arc<Shared>| async move {
                let client = shared.open_http2().await?;
                client.get(&format!("{}/get/{bytes}", shared.prefix()), bytes).await?;
                Ok(client)
            };
            idle(&shared, &plan, connections, open).await?
        }
        _ => busy(&shared, &plan).await?,
    };
    outcome.latencies = shared.latencies.read();
    let handshakes = shared.handshakes.load(Ordering::Relaxed).max(1);
    outcome.resumed = shared.resumed.load(Ordering::Relaxed) as f64 / handshakes as f64;
    // The peer hears of the last ends a little later.
    sleep(Duration::from_millis(200)).await;
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    outcome.descriptors = count(system::descriptors(&plan.peer)) - count(before);
    Ok(outcome)
}

/// Runs the tasks and measures; the first task that fails ends it all.
async fn busy(shared: &Arc<Shared>, plan: &ClientPlan) -> io::Result<Outcome> {
    let mut tasks = tasks(shared);
    let expected = tasks.len();
    let measure = measure(shared, plan, expected);
    tokio::pin!(measure);
    let outcome = loop {
        tokio::select! {
            outcome = &mut measure => break outcome?,
            Some(ended) = tasks.join_next() => ended.map_err(io::Error::other)??,
        }
    };
    let rest = async {
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(outcome)
    };
    timeout(PATIENCE, rest).await.map_err(|_| wrong("answers are still missing long after the window"))?
}

async fn measure(shared: &Shared, plan: &ClientPlan, expected: usize) -> io::Result<Outcome> {
    let opened = async {
        while shared.opened.load(Ordering::Relaxed) < expected as u64 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, opened).await.map_err(|_| wrong("connections are not all open in time"))?;
    let start = now() + nanos(WARM_UP);
    let end = start + nanos(Duration::from_secs_f64(plan.window_s));
    let counting = if plan.counts_syscalls { COUNTING } else { Duration::ZERO };
    let last = end + nanos(Duration::from_secs_f64(plan.linger_s) + counting);
    shared.window.send_replace(Window { start, end, last });
    until(start).await;
    let before = Reading::take(shared, plan);
    until(end).await;
    let mut outcome = Reading::take(shared, plan).since(&before);
    if plan.counts_syscalls {
        outcome.syscalls = syscalls(shared, plan).await;
    }
    Ok(outcome)
}

/// Counted apart from the window, as counting costs the peer time.
async fn syscalls(shared: &Shared, plan: &ClientPlan) -> Option<f64> {
    let (started, before) = (now(), shared.units.load(Ordering::Relaxed));
    let per_second = system::syscalls_per_second(&plan.peer, COUNTED).await?;
    let seconds = (now() - started) as f64 / 1e9;
    let units = (shared.units.load(Ordering::Relaxed) - before) as f64;
    (units > 0.0).then(|| per_second * seconds / units)
}

async fn until(time: u64) {
    sleep(Duration::from_nanos(time.saturating_sub(now()))).await;
}

/// All clocks and counters at one moment.
struct Reading {
    at: u64,
    units: u64,
    peer: Usage,
    agent: Usage,
    load: Usage,
    busy_s: f64,
}

impl Reading {
    fn take(shared: &Shared, plan: &ClientPlan) -> Self {
        let load = [&plan.others[..], &[std::process::id()]].concat();
        Self {
            at: now(),
            units: shared.units.load(Ordering::Relaxed),
            peer: Usage::of(&plan.peer),
            agent: Usage::of(&plan.agent),
            load: Usage::of(&load),
            busy_s: system::busy_s(),
        }
    }

    fn since(&self, before: &Self) -> Outcome {
        let seconds = (self.at - before.at) as f64 / 1e9;
        let (peer, agent) = (self.peer.since(before.peer), self.agent.since(before.agent));
        let load = self.load.since(before.load);
        let ours = peer.cpu_s + agent.cpu_s + load.cpu_s;
        let capacity = seconds * system::cores() as f64;
        let foreign = ((self.busy_s - before.busy_s - ours) / capacity).max(0.0);
        let units = self.units - before.units;
        Outcome { seconds, units, peer, agent, load, foreign, ..Outcome::default() }
    }
}

type Tasks = JoinSet<io::Result<()>>;

/// The tasks of a load; each is one connection, or a chain of them.
fn tasks(shared: &Arc<Shared>) -> Tasks {
    let mut tasks = Tasks::new();
    let all = || Arc::clone(shared);
    match shared.load {
        Load::Echo { sessions, per_second, bytes } => {
            for pace in Pace::new(per_second).in_turns(sessions) {
                tasks.spawn(paced(all(), "echo", pace, bytes, 1));
            }
        }
        Load::Desktop { sessions, fps, frame_bytes, input_hz } => {
            for Pace { period, shift } in Pace::new(fps as f64).in_turns(sessions) {
                tasks.spawn(frames(all(), format!("/desktop/{period}/{shift}/{frame_bytes}")));
            }
            for pace in Pace::new(input_hz as f64).in_turns(sessions) {
                tasks.spawn(paced(all(), "input", pace, INPUT_BYTES, 0));
            }
        }
        Load::Bounce { sessions, bytes } => {
            (0..sessions).for_each(|_| drop(tasks.spawn(bounced(all(), bytes))));
        }
        Load::Flood { sessions, per_second } => {
            (0..sessions).for_each(|_| drop(tasks.spawn(flood(all(), per_second))));
        }
        Load::Upload { sessions } => (0..sessions).for_each(|_| drop(tasks.spawn(upload(all())))),
        Load::Get { connections, bytes } => {
            (0..connections).for_each(|_| drop(tasks.spawn(requests(all(), bytes))));
        }
        Load::Connect { connections, bytes, .. } => {
            (0..connections).for_each(|_| drop(tasks.spawn(connections_in_turn(all(), bytes))));
        }
        Load::Storm { per_second, bytes } => drop(tasks.spawn(storm(all(), per_second, Some(bytes)))),
        Load::Health { per_second } => drop(tasks.spawn(storm(all(), per_second, None))),
        Load::Attack { attackers } => {
            (0..attackers).for_each(|number| drop(tasks.spawn(attack(all(), number))));
        }
        Load::Churn { sessions, bytes } => {
            (0..sessions).for_each(|_| drop(tasks.spawn(sessions_in_turn(all(), bytes))));
        }
        Load::GetHttp2 { connections, streams, bytes } => {
            let work = move |client: Arc<Client>, shared: Arc<Shared>| async move {
                client.get(&format!("{}/get/{bytes}", shared.prefix()), bytes).await.map(|()| 1)
            };
            (0..connections).for_each(|_| drop(tasks.spawn(streams_of(all(), streams, "request", work))));
        }
        Load::UploadHttp2 { streams, bytes } => {
            let work = move |client: Arc<Client>, shared: Arc<Shared>| async move {
                client.put(&format!("{}/put/{bytes}", shared.prefix()), bytes).await.map(|()| bytes as u64)
            };
            drop(tasks.spawn(streams_of(all(), streams, "upload", work)));
        }
        Load::Downloads { http2, count, per_second, bytes } => {
            let paces = Pace::new(per_second / count as f64).in_turns(count);
            if http2 {
                drop(tasks.spawn(downloads_http2(all(), paces.collect(), bytes)));
            } else {
                paces.for_each(|pace| drop(tasks.spawn(downloads(all(), pace, bytes))));
            }
        }
        // Not a matter of a window.
        Load::Idle { .. } | Load::IdleHttp2 { .. } => {}
    }
    tasks
}

/// An open loop: a message at each tick, whether or not the last ones are back.
async fn paced(
    shared: Arc<Shared>,
    name: &'static str,
    pace: Pace,
    bytes: usize,
    units: u64,
) -> io::Result<()> {
    let mut wire = shared.channel("/echo").await?;
    let window = shared.ready().await;
    let mut ticks = pace.ticks()?;
    let (mut sent, mut back, mut is_over) = (0, 0, false);
    // A session that speaks seldom need not wait for its next turn to end.
    let mut end = std::pin::pin!(until(window.last));
    while !is_over || back < sent {
        tokio::select! {
            () = &mut end, if !is_over => is_over = true,
            tick = ticks.next(), if !is_over => {
                let stamp = tick?;
                wire.post(Header { payload_bytes: bytes, sequence: sent, stamp }).await?;
                sent += 1;
            }
            message = wire.message() => {
                let Some(message) = message? else { return Err(wrong("an echo session ended early")) };
                back += 1;
                shared.count(units);
                if window.contains(message.stamp) {
                    shared.latencies.record(name, now().saturating_sub(message.stamp));
                }
            }
        }
    }
    wire.close().await;
    Ok(())
}

/// Frames as they come, each stamped with the time the agent meant to send it.
async fn frames(shared: Arc<Shared>, path: String) -> io::Result<()> {
    let mut wire = shared.channel(&path).await?;
    let mut window = shared.window.subscribe();
    shared.opened.fetch_add(1, Ordering::Relaxed);
    loop {
        let Some(frame) = wire.message().await? else { return Err(wrong("a desktop ended early")) };
        let window = *window.borrow_and_update();
        shared.count(1);
        if window.contains(frame.stamp) {
            shared.latencies.record("frame", now().saturating_sub(frame.stamp));
        } else if window != Window::default() && frame.stamp >= window.last {
            break;
        }
    }
    wire.close().await;
    Ok(())
}

async fn bounced(shared: Arc<Shared>, bytes: usize) -> io::Result<()> {
    let mut wire = shared.channel("/echo").await?;
    let window = shared.ready().await;
    for sequence in 0.. {
        let stamp = now();
        if stamp >= window.last {
            break;
        }
        wire.post(Header { payload_bytes: bytes, sequence, stamp }).await?;
        if wire.message().await?.is_none() {
            return Err(wrong("an echo session ended early"));
        }
        shared.done("echo", window, stamp);
    }
    wire.close().await;
    Ok(())
}

async fn flood(shared: Arc<Shared>, per_second: Option<u64>) -> io::Result<()> {
    let pace = per_second.map_or_else(String::new, |per_second| format!("/{per_second}"));
    let mut wire = shared.channel(&format!("/flood{pace}")).await?;
    let window = shared.ready().await;
    while now() < window.last {
        let Some(message) = wire.message().await? else { return Err(wrong("a flood ended early")) };
        shared.count(message.payload_bytes as u64);
    }
    Ok(())
}

/// Some messages more than are acknowledged are under way, never an unknown number.
async fn upload(shared: Arc<Shared>) -> io::Result<()> {
    let mut wire = shared.channel("/upload").await?;
    let window = shared.ready().await;
    let (mut sent, mut acknowledged) = (0, 0);
    while now() < window.last {
        wire.post(Header { payload_bytes: FLOOD_BYTES, sequence: sent, stamp: now() }).await?;
        sent += 1;
        while sent >= acknowledged + 4 * ACKNOWLEDGED {
            if wire.message().await?.is_none() {
                return Err(wrong("an upload ended early"));
            }
            acknowledged += ACKNOWLEDGED;
            shared.count(ACKNOWLEDGED * FLOOD_BYTES as u64);
        }
    }
    Ok(())
}

async fn requests(shared: Arc<Shared>, bytes: usize) -> io::Result<()> {
    let mut wire = shared.open().await?;
    let window = shared.ready().await;
    while now() < window.last {
        let sent = now();
        let is_kept = shared.get(&mut wire, bytes).await?;
        shared.done("request", window, sent);
        if !is_kept {
            // nginx ends a connection after 1000 requests unless it is told otherwise.
            std::mem::replace(&mut wire, shared.open().await?).close().await;
        }
    }
    wire.close().await;
    Ok(())
}

/// So many at a time of one connection; `work` is one of them and tells how many units it was.
async fn streams_of<F>(
    shared: Arc<Shared>,
    streams: u64,
    name: &'static str,
    work: impl Fn(Arc<Client>, Arc<Shared>) -> F + Clone + Send + Sync + 'static,
) -> io::Result<()>
where
    F: Future<Output = io::Result<u64>> + Send,
{
    let client = Arc::new(shared.open_http2().await?);
    let window = shared.ready().await;
    let mut running = Tasks::new();
    for _ in 0..streams {
        let (client, shared, work) = (client.clone(), shared.clone(), work.clone());
        running.spawn(async move {
            while now() < window.last {
                let asked = now();
                let units = work(client.clone(), shared.clone()).await?;
                shared.done_units(units, name, window, asked);
            }
            Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

/// A download at each tick, or as soon as the last one is there.
async fn downloads(shared: Arc<Shared>, pace: Pace, bytes: usize) -> io::Result<()> {
    let mut wire = shared.open().await?;
    let window = shared.ready().await;
    let mut ticks = pace.ticks()?;
    loop {
        let meant = ticks.next().await?;
        if meant >= window.last {
            return Ok(());
        }
        shared.get(&mut wire, bytes).await?;
        shared.done("download", window, meant);
    }
}

async fn downloads_http2(shared: Arc<Shared>, paces: Vec<Pace>, bytes: usize) -> io::Result<()> {
    let client = shared.open_http2().await?;
    let window = shared.ready().await;
    let each = paces.into_iter().map(async |pace| {
        let mut ticks = pace.ticks()?;
        loop {
            let meant = ticks.next().await?;
            if meant >= window.last {
                return Ok::<_, io::Error>(());
            }
            client.get(&format!("{}/get/{bytes}", shared.prefix()), bytes).await?;
            shared.done("download", window, meant);
        }
    });
    try_join_all(each).await.map(drop)
}

async fn connections_in_turn(shared: Arc<Shared>, bytes: usize) -> io::Result<()> {
    let window = shared.ready().await;
    while now() < window.last {
        connection(&shared, window, now(), Some(bytes)).await?;
    }
    Ok(())
}

/// Asks the agent for so many bytes, or the peer itself.
async fn connection(shared: &Shared, window: Window, meant: u64, bytes: Option<usize>) -> io::Result<()> {
    let mut wire = shared.open().await?;
    match bytes {
        Some(bytes) => drop(shared.get(&mut wire, bytes).await?),
        None => shared.health(&mut wire).await?,
    }
    wire.close().await;
    shared.done("connection", window, meant);
    Ok(())
}

async fn storm(shared: Arc<Shared>, per_second: f64, bytes: Option<usize>) -> io::Result<()> {
    let window = shared.ready().await;
    let mut ticks = Pace::new(per_second).ticks()?;
    let mut running = Tasks::new();
    loop {
        let meant = ticks.next().await?;
        if meant >= window.last {
            break;
        }
        let shared = Arc::clone(&shared);
        running.spawn(async move { connection(&shared, window, meant, bytes).await });
        while let Some(ended) = running.try_join_next() {
            ended.map_err(io::Error::other)??;
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn sessions_in_turn(shared: Arc<Shared>, bytes: usize) -> io::Result<()> {
    let window = shared.ready().await;
    while now() < window.last {
        let meant = now();
        spoken(&shared, bytes, 1).await?.close().await;
        shared.done("session", window, meant);
    }
    Ok(())
}

/// A session that has had so many echoes.
async fn spoken(shared: &Shared, bytes: usize, echoes: u64) -> io::Result<Wire> {
    let mut wire = shared.channel("/echo").await?;
    for sequence in 0..echoes {
        wire.post(Header { payload_bytes: bytes, sequence, stamp: now() }).await?;
        if wire.message().await?.is_none() {
            return Err(wrong("a session ended early"));
        }
    }
    Ok(wire)
}

/// What `count` of those cost that `open` opens, once they rest.
async fn idle<T: Send + 'static, F>(
    shared: &Arc<Shared>,
    plan: &ClientPlan,
    count: u64,
    open: impl Fn(Arc<Shared>) -> F,
) -> io::Result<Outcome>
where
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    // What the first one costs the peer once is not part of one.
    drop(open(shared.clone()).await?);
    sleep(SETTLE).await;
    let before = (system::pss_kib(&plan.peer), system::slab_kib());
    let mut opening = JoinSet::new();
    for _ in 0..count {
        opening.spawn(open(shared.clone()));
    }
    let mut opened = Vec::new();
    while let Some(one) = opening.join_next().await {
        opened.push(one.map_err(io::Error::other)??);
    }
    sleep(SETTLE).await;
    let reading = Reading::take(shared, plan);
    sleep(SETTLE).await;
    let mut outcome = Reading::take(shared, plan).since(&reading);
    outcome.units = count;
    outcome.memory_kib = system::pss_kib(&plan.peer) as f64 - before.0 as f64;
    outcome.slab_kib = system::slab_kib() as f64 - before.1 as f64;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_used_is_what_is_left() {
        let usage = |cpu_s| Usage { cpu_s, ..Usage::default() };
        let reading = |at, cpu_s, busy_s| Reading {
            at,
            units: at,
            peer: usage(cpu_s),
            agent: usage(cpu_s),
            load: usage(cpu_s),
            busy_s,
        };
        let cores = system::cores() as f64;
        let outcome = reading(2_000_000_000, 0.5, 1.5 + cores).since(&reading(1_000_000_000, 0.0, 0.5));
        assert!((outcome.foreign - (cores - 0.5) / cores).abs() < 1e-9, "{outcome:?}");
        assert!((outcome.seconds - 1.0).abs() < 1e-9 && outcome.units == 1_000_000_000);
    }
}
