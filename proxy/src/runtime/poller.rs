//! Which sockets are ready: asked of `io_uring`, or of `epoll` where a kernel or a container has no ring for us.
//! Both report each change once (edge-triggered) and are never asked anything per message.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::runtime::event::{Event, Token};
use crate::runtime::io_uring::Ring;

/// Events that one call of `epoll_wait(2)` reports.
const EPOLL_EVENTS: usize = 1024;

/// Watches the sockets of one thread.
pub enum Poller {
    /// By `io_uring`.
    Ring(Box<Ring>),
    /// By `epoll`.
    Epoll(Epoll),
}

impl Poller {
    /// A poller that uses `io_uring`.
    pub fn ring() -> io::Result<Self> {
        Ok(Self::Ring(Box::new(Ring::new()?)))
    }

    /// A poller that uses `epoll`.
    pub fn epoll() -> io::Result<Self> {
        Ok(Self::Epoll(Epoll::new()?))
    }

    /// Reports what happens on `socket` from now on.
    pub fn add(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.add(socket, token),
            Self::Epoll(epoll) => epoll.add(socket, token),
        }
    }

    /// Reports no more and closes `socket`.
    pub fn remove(&mut self, socket: OwnedFd, token: Token) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.remove(socket, token),
            // Closing is not enough where another process has the socket too, as listening ones after an upgrade
            // (epoll(7)).
            Self::Epoll(epoll) => Ok(epoll::delete(&epoll.epoll, socket)?),
        }
    }

    /// Whether [`Poller::wait`] may find something at once.
    pub fn has_events(&mut self) -> bool {
        match self {
            Self::Ring(ring) => ring.has_events(),
            Self::Epoll(_) => true,
        }
    }

    /// Waits for the first event, `limit` at the most, and adds all there are to `events`.
    pub fn wait(&mut self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.wait(limit, events),
            Self::Epoll(epoll) => epoll.wait(limit, events),
        }
    }
}

/// An `epoll` instance and the room for its answers.
pub struct Epoll {
    epoll: OwnedFd,
    found: Vec<epoll::Event>,
}

impl Epoll {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, found: Vec::with_capacity(EPOLL_EVENTS) })
    }

    fn add(&self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let wanted = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token.0), wanted)?)
    }

    fn wait(&mut self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.found.clear();
        // A limit too long for the kernel is no limit.
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match epoll::wait(&self.epoll, spare_capacity(&mut self.found), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The flags that can come have the values of poll(2)'s.
        let event = |&epoll::Event { flags, data }| Event::new(Token(data.u64()), flags.bits());
        events.extend(self.found.iter().map(event));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    const TOKEN: Token = Token(7);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        (near, listener.accept().expect("a connection").0)
    }

    /// What is found within a time that nothing takes.
    fn found(poller: &mut Poller) -> Vec<Event> {
        let mut events = Vec::new();
        poller.wait(Some(Duration::from_millis(300)), &mut events).expect("a poller that works");
        events
    }

    fn both(test: impl Fn(Poller)) {
        test(Poller::epoll().expect("epoll"));
        match Poller::ring() {
            Ok(ring) => test(ring),
            Err(error) => eprintln!("skipped for io_uring: {error}"),
        }
    }

    #[test]
    fn each_change_is_told_once() {
        both(|mut poller| {
            let (near, mut far) = pair();
            poller.add(near.as_fd(), TOKEN).expect("a socket");
            assert!(poller.has_events(), "or a busy worker would not submit it");
            let events = found(&mut poller);
            assert!(
                matches!(events[..], [event] if event.is_writable() && !event.is_readable()),
                "{events:?}"
            );
            assert_eq!(found(&mut poller), []);
            for _ in 0..2 {
                far.write_all(b"x").expect("room");
                let events = found(&mut poller);
                assert!(
                    matches!(events[..], [event] if event.is_readable() && !event.is_hung_up()),
                    "{events:?}"
                );
                assert_eq!(found(&mut poller), []);
            }
            drop(far);
            let events = found(&mut poller);
            assert!(events.last().is_some_and(|event| event.is_hung_up()), "{events:?}");
        });
    }

    #[test]
    fn a_socket_given_up_is_closed_and_no_longer_told_of() {
        both(|mut poller| {
            let (near, mut far) = pair();
            poller.add(near.as_fd(), TOKEN).expect("a socket");
            found(&mut poller);
            poller.remove(near.into(), TOKEN).expect("a socket");
            assert_eq!(found(&mut poller), []);
            far.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
            assert_eq!(far.read(&mut [0; 8]).expect("a FIN"), 0);
        });
    }

    #[test]
    fn a_socket_given_up_is_no_longer_told_of_where_another_process_has_it_too() {
        both(|mut poller| {
            let (near, mut far) = pair();
            let elsewhere = near.try_clone().expect("a descriptor");
            poller.add(near.as_fd(), TOKEN).expect("a socket");
            found(&mut poller);
            poller.remove(near.into(), TOKEN).expect("a socket");
            assert_eq!(found(&mut poller), []);
            far.write_all(b"x").expect("room");
            assert_eq!(found(&mut poller), []);
            drop(elsewhere);
        });
    }

    #[test]
    fn a_socket_given_up_unseen_is_closed_at_the_end() {
        both(|mut poller| {
            let (near, mut far) = pair();
            poller.add(near.as_fd(), TOKEN).expect("a socket");
            poller.remove(near.into(), TOKEN).expect("a socket");
            drop(poller);
            far.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
            assert!(matches!(far.read(&mut [0; 8]), Ok(0)), "a FIN");
        });
    }

    #[test]
    fn more_sockets_than_a_submission_queue_holds_are_all_watched() {
        both(|mut poller| {
            let pairs: Vec<_> = (0..400).map(|_| pair()).collect();
            for (token, (near, _)) in (0..).zip(&pairs) {
                poller.add(near.as_fd(), Token(token)).expect("a socket");
            }
            let mut seen: Vec<u64> = found(&mut poller).iter().map(|event| event.token.0).collect();
            while seen.len() < pairs.len() {
                let more = found(&mut poller);
                assert!(!more.is_empty(), "only {} of {}", seen.len(), pairs.len());
                seen.extend(more.iter().map(|event| event.token.0));
            }
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..400));
        });
    }

    #[test]
    fn a_wait_ends_with_its_limit() {
        both(|mut poller| {
            assert_eq!(found(&mut poller), []);
            poller.wait(Some(Duration::ZERO), &mut Vec::new()).expect("a poller that works");
        });
    }
}
