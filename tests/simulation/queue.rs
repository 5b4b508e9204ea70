//! What stands in the proxy and its sockets while one side takes less than the other says, on virtual time: never more
//! than the slow side drains in the target time, however much would fit.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dcv_splice::observe::agent_stats::QueueStats;
use dcv_splice::transport::stream::Stream;
use dcv_splice::worker::context::Generation;
use harness::simulated::{Wire, World, serve};
use tokio::task::LocalSet;
use tokio::time::sleep;

use super::plan::Plan;
use super::{Fixture, calm, hear, on_virtual_time, say};

/// What would fit into each direction of each wire.
const CAPACITY: usize = 16 << 20;
const TICK: Duration = Duration::from_millis(1);
const ROUND_TRIP: Duration = Duration::from_millis(1);
const ANSWER: &[u8] = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";

/// Bytes whose place can be seen.
fn pattern(from: usize, bytes: usize) -> Vec<u8> {
    (from..from + bytes).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect()
}

/// Says as much as is taken.
fn says(wire: &mut Wire, said: &Cell<usize>) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Ok(taken)) = wire.poll_send(&mut cx, &pattern(said.get(), 16 * 1024)) {
        said.set(said.get() + taken);
    }
}

/// Takes up to so many bytes, and checks them; returns how many there were.
fn takes(wire: &mut Wire, heard: usize, bytes: usize) -> usize {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let (mut room, mut got) = (vec![0; bytes], 0);
    while let std::task::Poll::Ready(Ok(taken @ 1..)) = wire.poll_recv(&mut cx, &mut room[got..]) {
        got += taken;
        if got == bytes {
            break;
        }
    }
    assert_eq!(room[..got], pattern(heard, got), "behind byte {heard}");
    got
}

/// A session in which the agent floods, or the client; the other side takes so many bytes each tick, for so many ticks,
/// one pair after the other. Returns the most that stood at the end of each, in its second half.
fn standing(flags: &[&str], client_floods: bool, phases: &[(usize, usize)]) -> Vec<usize> {
    let mut heights = Vec::new();
    on_virtual_time(async {
        let plan =
            Plan { client_tls: false, agent_tls: false, http2: false, exchanges: Vec::new(), session: None };
        let agents = Rc::new(RefCell::new(Vec::new()));
        let accepted = agents.clone();
        let world = World::new(ROUND_TRIP, move |_| {
            let (near, far) = calm(CAPACITY);
            accepted.borrow_mut().push(far);
            Ok(near)
        });
        let generation = Rc::new(Generation::new(world, Fixture::new().shared(&plan, flags), Rc::default()));
        let (near, mut client) = calm(CAPACITY);
        let queue = || {
            let stats = generation.worker.stats.read().agents.into_values().next().unwrap_or_default();
            if client_floods { stats.queue_to_agent } else { stats.queue_to_client }
        };
        let talk = async {
            let request =
                "GET /10.1.2.3/ HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            say(&mut client, request.as_bytes()).await;
            sleep(Duration::from_secs(1)).await;
            let mut agent = agents.borrow_mut().pop().unwrap();
            hear(&mut agent, b"\r\n\r\n").await;
            say(&mut agent, ANSWER).await;
            hear(&mut client, b"\r\n\r\n").await;
            let (from, to) =
                if client_floods { (&mut client, &mut agent) } else { (&mut agent, &mut client) };
            let (sent, mut taken) = (Cell::new(0), 0);
            for &(each, ticks) in phases {
                let mut high = 0;
                for tick in 0..ticks {
                    says(from, &sent);
                    sleep(TICK).await;
                    let got = takes(to, taken, each);
                    taken += got;
                    if tick > ticks / 2 {
                        high = high.max(sent.get() - taken);
                        assert_eq!(got, each, "the receiver had to wait in tick {tick}");
                    }
                }
                heights.push(high);
                let counted = queue().standing;
                assert_eq!(counted > 0, flags.is_empty(), "{counted} bytes are counted as standing");
                // It is counted before the receiver takes its share.
                let most = (high + each) as u64;
                assert!(counted <= most, "{counted} bytes are counted as standing, {most} stood at the most");
            }
            while taken < sent.get() {
                sleep(TICK).await;
                taken += takes(to, taken, CAPACITY);
            }
            sleep(TICK).await;
            assert_eq!(queue().standing, 0, "all is taken");
            from.reset();
            to.reset();
        };
        let served = serve(&generation, near, SocketAddr::from(([192, 0, 2, 1], 40_000)), false);
        LocalSet::new().run_until(async { tokio::join!(talk, served) }).await;
        let QueueStats { bytes, time, standing } = queue();
        assert_eq!(standing, 0, "after the end");
        assert_eq!(bytes.count() > 0, flags.is_empty(), "{bytes:?}");
        assert_eq!(bytes.count(), time.count());
    });
    heights
}

/// 10, 1 and 10 MB/s.
const FAST_SLOW_FAST: [(usize, usize); 3] = [(10_000, 2000), (1_000, 2000), (10_000, 2000)];

#[test]
fn no_more_stands_than_the_client_drains_in_the_target_time() {
    let found = standing(&[], false, &FAST_SLOW_FAST);
    // Half the target unsent and as much in one receive, a quarter unread, four round trips on the way; and no bound is
    // below 16 KiB.
    let fast = 10_000 * (10 + 10 + 5 + 4) * 5 / 4;
    assert!(found[0] < fast && found[2] < fast, "{found:?}, {fast} at the most");
    assert!(found[1] < 3 * 16 * 1024 * 5 / 4, "{found:?}");
}

#[test]
fn without_a_target_as_much_stands_as_fits() {
    let found = standing(&["--queue-target", "0s"], false, &FAST_SLOW_FAST);
    assert!(found.iter().all(|stands| *stands > CAPACITY), "{found:?}");
}

#[test]
fn no_more_stands_than_the_agent_drains_in_the_target_time() {
    // What a client may send before anything is known is the kernel's affair, and has to be taken first.
    let found = standing(&[], true, &[(10_000, 4000), (1_000, 2000), (10_000, 2000)]);
    let fast = 10_000 * (10 + 10 + 5 + 4) * 5 / 4;
    assert!(found[0] < fast && found[2] < fast, "{found:?}, {fast} at the most");
    assert!(found[1] < 3 * 16 * 1024 * 5 / 4, "{found:?}");
}
