//! The runtime of the control plane: tokio-uring, or plain tokio where the kernel or a container forbids rings. Workers have
//! loops of their own.

use std::future::Future;
use std::io;

use tokio::runtime;
use tokio::task::LocalSet;

use crate::config::IoBackend;
use crate::os::log::WriteBackend;
use crate::os::seccomp;

/// Threads of writes that are blocked, of all logs, where there is no ring.
const BLOCKING_THREADS_MAX: usize = 16;

/// A runtime of the calling thread.
pub(super) enum ControlRuntime {
    /// With a ring, which may do all that the thread may: Landlock holds for it, the filter of system calls does not
    /// (SECURITY.md).
    Ring(tokio_uring::Runtime),
    /// Without one.
    Plain(runtime::Runtime, LocalSet),
}

impl ControlRuntime {
    /// The best that this machine has. `wanted`: as for workers; where it says epoll, no ring is made here either.
    pub(super) fn new(wanted: IoBackend) -> io::Result<Self> {
        if wanted != IoBackend::Epoll
            && let Ok(ring) = tokio_uring::Runtime::new(&tokio_uring::builder())
        {
            return Ok(Self::Ring(ring));
        }
        let plain = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_start(seccomp::forbid_rings)
            .build()?;
        Ok(Self::Plain(plain, LocalSet::new()))
    }

    /// Runs `future` to its end, and tasks meanwhile.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self {
            Self::Ring(ring) => ring.block_on(future),
            Self::Plain(plain, tasks) => plain.block_on(tasks.run_until(future)),
        }
    }

    /// How logs are written.
    pub(super) fn write_backend(&self) -> WriteBackend {
        match self {
            Self::Ring(_) => WriteBackend::Ring,
            Self::Plain(..) => WriteBackend::Threads,
        }
    }
}
