//! Pipes for `splice(2)`, which moves bytes between two sockets without bringing them into the program.
//! Pipes are pooled by the worker; one goes back to the pool only when it is empty.

use std::io;
use std::os::fd::OwnedFd;

use rustix::param::page_size;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// The bytes one pipe is asked to hold. Unprivileged programs get no more (`/proc/sys/fs/pipe-max-size`).
pub const PIPE_BYTES: usize = 1 << 20;

/// Pipes that a worker keeps for later.
const POOLED_PIPES_MAX: usize = 16;

/// A pipe between two sockets.
#[derive(Debug)]
pub struct Pipe {
    /// The end that bytes come out of.
    pub read: OwnedFd,
    /// The end that bytes go into.
    pub write: OwnedFd,
    /// What it holds at the most, as the kernel counts it: a page for each of its places.
    bytes: usize,
}

/// Places of a pipe that one TLS record may take: as many as a packet of the kernel has parts (`MAX_SKB_FRAGS`), and one.
/// What finds no place is lost: splice(2) takes a record from its socket as a whole.
const RECORD_PLACES: usize = 18;

impl Pipe {
    /// One of its own.
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // The kernel's default size serves too where the user's quota for pipes is used up; it may be very small then.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        let bytes = fcntl_getpipe_size(&write)?;
        Ok(Self { read, write, bytes })
    }

    /// TLS records that the kernel has opened and that it holds for sure while it is empty.
    pub fn records(&self) -> usize {
        self.bytes / page_size() / RECORD_PLACES
    }

    /// Takes bytes out into the program.
    pub fn take(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.read, into)?)
    }
}

/// The spare pipes of one worker.
#[derive(Debug, Default)]
pub struct Pipes(Vec<Pipe>);

impl Pipes {
    /// An empty pipe, a pooled one if there is one.
    pub fn take(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        Pipe::new()
    }

    /// Keeps an empty pipe for the next session.
    pub fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < POOLED_PIPES_MAX {
            self.0.push(pipe);
        }
    }
}
