//! The system calls that serving takes, and no others: a seccomp filter (seccomp(2)) that looks at nothing but a call's
//! number, so that the kernel answers from a bitmap (Linux 5.11) and a call costs next to nothing more. What is not
//! listed fails with EPERM: no program is run, nothing is bound, renamed, mounted, traced or made executable by file.

use std::collections::BTreeMap;

use libc::{
    EPERM, SYS_accept4, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone,
    SYS_clone3, SYS_close, SYS_connect, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_futex, SYS_getcpu,
    SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getrandom, SYS_getrusage,
    SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_membarrier, SYS_mmap,
    SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_openat, SYS_pipe2, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_prlimit64, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmsg,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto, SYS_set_robust_list,
    SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_socketpair, SYS_splice, SYS_statx,
    SYS_sysinfo, SYS_tgkill, SYS_uname, SYS_write, SYS_writev, c_long,
};
#[cfg(target_arch = "x86_64")]
use libc::{SYS_arch_prctl, SYS_epoll_wait, SYS_poll, SYS_time};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Sockets, and moving bytes through them.
const NETWORK: [c_long; 14] = [
    SYS_accept4,
    SYS_connect,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_pipe2,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_socket,
    SYS_splice,
];
/// Waiting for them.
const READINESS: [c_long; 10] = [
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_ppoll,
    SYS_socketpair,
];
/// The logs, and files that are read again; Landlock says which.
const FILES: [c_long; 13] = [
    SYS_close,
    SYS_dup,
    SYS_fcntl,
    SYS_fstat,
    SYS_ioctl,
    SYS_lseek,
    SYS_newfstatat,
    SYS_openat,
    SYS_pread64,
    SYS_read,
    SYS_readv,
    SYS_statx,
    SYS_writev,
];
/// Memory, threads, time and the end, as the C library goes about them.
const PROCESS: [c_long; 42] = [
    SYS_brk,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_clone,
    SYS_clone3,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getcpu,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpid,
    SYS_getrandom,
    SYS_getrusage,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_getuid,
    SYS_madvise,
    SYS_membarrier,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_prctl,
    SYS_prlimit64,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    // What forbids more can only take away.
    SYS_seccomp,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_sysinfo,
    SYS_tgkill,
    SYS_uname,
    SYS_write,
];
/// What newer architectures have dropped.
#[cfg(target_arch = "x86_64")]
const OLD: [c_long; 4] = [SYS_arch_prctl, SYS_epoll_wait, SYS_poll, SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [c_long; 0] = [];

/// Allows the calling thread, and those that it starts, what is listed. Needs `no_new_privs`.
pub fn restrict() -> Result<(), seccompiler::Error> {
    apply_filter(&filter()?)
}

/// Forbids the calling thread to make a ring, or to change one: what another ring did no filter would see. For once it has
/// the ring that it needs. Where there is no filter, this one fails too, which was said at the start.
pub fn forbid_rings() {
    let denied = SeccompAction::Errno(EPERM.unsigned_abs());
    let rings = [SYS_io_uring_setup, SYS_io_uring_register].map(|call| (call, Vec::new()));
    let filter = std::env::consts::ARCH
        .try_into()
        .and_then(|it| SeccompFilter::new(rings.into(), SeccompAction::Allow, denied, it))
        .and_then(BpfProgram::try_from);
    if let Err(error) = filter.map_err(seccompiler::Error::Backend).and_then(|filter| apply_filter(&filter)) {
        tracing::warn!("rings can still be made: {error}");
    }
}

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let listed = NETWORK.into_iter().chain(READINESS).chain(FILES).chain(PROCESS).chain(OLD);
    // A number without rules is allowed whatever its arguments are.
    let allowed: BTreeMap<_, _> = listed.map(|call| (call, Vec::new())).collect();
    let denied = SeccompAction::Errno(EPERM.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(allowed, denied, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}
