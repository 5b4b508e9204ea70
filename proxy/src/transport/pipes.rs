//! Pipes for `splice(2)`, which moves bytes between two sockets without bringing them into the program.
//! Pipes are pooled by the worker; one goes back to the pool only when it is empty.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

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
}

impl Pipe {
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
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // The kernel's default size serves too where the user's quota for pipes is used up.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write })
    }

    /// Keeps an empty pipe for the next session.
    pub fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < POOLED_PIPES_MAX {
            self.0.push(pipe);
        }
    }
}
