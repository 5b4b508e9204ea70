//! The system calls that serving takes, and no others: a seccomp filter (seccomp(2)) that looks at nothing but a call's
//! number, so that the kernel answers from a bitmap (Linux 5.11) and a call costs next to nothing more. What is not
//! listed fails with EPERM: no program is run, nothing is bound, renamed, mounted, traced or made executable by file.

use std::collections::BTreeMap;

use libc::{
    EPERM, SYS_accept4, SYS_bind, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_clone, SYS_clone3, SYS_close, SYS_connect, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat,
    SYS_futex, SYS_getcpu, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getrandom,
    SYS_getrusage, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid,
    SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_listen, SYS_lseek,
    SYS_madvise, SYS_membarrier, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
    SYS_newfstatat, SYS_openat, SYS_pipe2, SYS_ppoll, SYS_prctl, SYS_pread64, SYS_prlimit64, SYS_read,
    SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg,
    SYS_sendto, SYS_set_robust_list, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
    SYS_socketpair, SYS_splice, SYS_statx, SYS_sysinfo, SYS_tgkill, SYS_uname, SYS_write, SYS_writev, c_long,
};
#[cfg(target_arch = "x86_64")]
use libc::{SYS_arch_prctl, SYS_epoll_wait, SYS_poll, SYS_time};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

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
/// System calls that newer architectures no longer have.
#[cfg(target_arch = "x86_64")]
const OLD: [c_long; 4] = [SYS_arch_prctl, SYS_epoll_wait, SYS_poll, SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [c_long; 0] = [];

/// Calls of the data plane, which the network helper has no use for, and those that open files.
const NOT_OF_NETWORK_HELPER: [c_long; 6] =
    [SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_openat, SYS_pipe2, SYS_splice];

/// Allows the calling thread, and those that it starts, what is listed. Needs `no_new_privs`.
pub(crate) fn restrict() -> Result<(), seccompiler::Error> {
    apply_filter(&filter(listed())?)
}

/// The same for the network helper, which binds the sockets that it asks name servers from, and listens for questions itself.
/// It is of the same user as the others: what would reach them (signals, their limits, their sockets in the file system) is
/// looked at by its arguments.
pub(crate) fn restrict_network_helper() -> Result<(), seccompiler::Error> {
    let own = u64::from(std::process::id());
    let looked_at = [
        (SYS_socket, one_of(0, &[libc::AF_INET, libc::AF_INET6])?),
        // A pair of datagram sockets could be sent from to any other.
        (
            SYS_socketpair,
            vec![SeccompRule::new(vec![condition(
                1,
                SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK),
                u64::from(libc::SOCK_STREAM.unsigned_abs()),
            )?])?],
        ),
        (SYS_tgkill, vec![SeccompRule::new(vec![condition(0, SeccompCmpOp::Eq, own)?])?]),
        (SYS_prlimit64, one_of(0, &[0])?),
        (
            SYS_fcntl,
            one_of(1, &[libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL])?,
        ),
        (SYS_ioctl, one_of(1, &[FIONBIO])?),
    ];
    let is_listed = |call: &c_long| {
        !NOT_OF_NETWORK_HELPER.contains(call) && looked_at.iter().all(|(other, _)| other != call)
    };
    let calls = listed().filter(is_listed).chain([SYS_bind, SYS_listen]).map(|call| (call, Vec::new()));
    let rules: BTreeMap<_, _> = calls.collect::<Vec<_>>().into_iter().chain(looked_at.clone()).collect();
    apply_filter(&filter_by(rules)?)
}

/// The bits of a socket's type that are not flags (socket(2)).
const SOCKET_TYPE_MASK: u64 = 0xf;
/// `ioctl_tty(2)`, on all architectures that are built for.
const FIONBIO: i32 = 0x5421;

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// A call whose argument is one of these.
fn one_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |value: &i32| {
        let value = u64::from(value.unsigned_abs());
        SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, value)?])
    };
    values.iter().map(rule).collect()
}

fn listed() -> impl Iterator<Item = c_long> {
    NETWORK.into_iter().chain(READINESS).chain(FILES).chain(PROCESS).chain(OLD)
}

/// Forbids the calling thread to make a ring, or to change one: what another ring did no filter would see. For once it has
/// the ring that it needs. Where there is no filter, this one fails too, which was said at the start.
pub(crate) fn forbid_rings() {
    let denied = SeccompAction::Errno(EPERM.unsigned_abs());
    let rings = [SYS_io_uring_setup, SYS_io_uring_register].map(|call| (call, Vec::new()));
    let filter = std::env::consts::ARCH
        .try_into()
        .and_then(|it| SeccompFilter::new(rings.into(), SeccompAction::Allow, denied, it))
        .and_then(BpfProgram::try_from);
    if let Err(error) = filter.map_err(seccompiler::Error::Backend).and_then(|filter| apply_filter(&filter)) {
        tracing::warn!(reason = &*error.to_string(), "io_uring_setup(2) stays allowed");
    }
}

fn filter(calls: impl Iterator<Item = c_long>) -> Result<BpfProgram, seccompiler::Error> {
    // A number without rules is allowed whatever its arguments are.
    filter_by(calls.map(|call| (call, Vec::new())).collect())
}

fn filter_by(allowed: BTreeMap<c_long, Vec<SeccompRule>>) -> Result<BpfProgram, seccompiler::Error> {
    let denied = SeccompAction::Errno(EPERM.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(allowed, denied, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
    use rustix::process::{getpid, test_kill_process};

    use super::*;

    /// All that is allowed, and what for. Whoever adds a call has to say so here too.
    const ALLOWED: [(c_long, &str); 79] = [
        (SYS_accept4, "clients"),
        (SYS_brk, "memory"),
        (SYS_clock_getres, "time, where the vDSO has no clock"),
        (SYS_clock_gettime, "time, where the vDSO has no clock"),
        (SYS_clock_nanosleep, "time: sleep"),
        (SYS_clone, "threads: of passwords, and of logs where there is no ring"),
        (SYS_clone3, "threads: the same by newer libraries"),
        (SYS_close, "descriptors"),
        (SYS_connect, "agents; Landlock says which port"),
        (SYS_dup, "descriptors"),
        (SYS_epoll_create1, "readiness: of workers without a ring, of the supervisor"),
        (SYS_epoll_ctl, "readiness"),
        (SYS_epoll_pwait, "readiness"),
        (SYS_epoll_pwait2, "readiness, with nanoseconds"),
        (SYS_eventfd2, "wakes of another thread"),
        (SYS_exit, "the end of a thread"),
        (SYS_exit_group, "the end"),
        (SYS_fcntl, "descriptors: duplicates, O_NONBLOCK"),
        (SYS_fstat, "how long a delivered file is"),
        (SYS_futex, "threads: locks"),
        (SYS_getcpu, "memory: the allocator"),
        (SYS_getegid, "start of a thread"),
        (SYS_geteuid, "the warning to root"),
        (SYS_getgid, "start of a thread"),
        (SYS_getpeername, "sockets"),
        (SYS_getpid, "status"),
        (SYS_getrandom, "keys"),
        (SYS_getrusage, "figures of itself"),
        (SYS_getsockname, "where it listens"),
        (SYS_getsockopt, "whether a connection was made"),
        (SYS_gettid, "threads"),
        (SYS_gettimeofday, "time, where the vDSO has no clock"),
        (SYS_getuid, "start of a thread"),
        (SYS_io_uring_enter, "readiness"),
        (SYS_io_uring_register, "a worker's ring, until `forbid_rings`"),
        (SYS_io_uring_setup, "a worker's ring, until `forbid_rings`"),
        (SYS_ioctl, "sockets: FIONBIO"),
        (SYS_lseek, "delivered files"),
        (SYS_madvise, "memory"),
        (SYS_membarrier, "threads"),
        (SYS_mmap, "memory"),
        (SYS_mprotect, "memory: guard pages of stacks"),
        (SYS_mremap, "memory"),
        (SYS_munmap, "memory"),
        (SYS_nanosleep, "time: sleep"),
        (SYS_newfstatat, "stat of a descriptor, by older libraries"),
        (SYS_openat, "the spare descriptor; Landlock allows nothing else"),
        (SYS_pipe2, "splice"),
        (SYS_ppoll, "readiness of a single descriptor"),
        (SYS_prctl, "names of threads, no new privileges"),
        (SYS_pread64, "delivered files"),
        (SYS_prlimit64, "the limit of open files"),
        (SYS_read, "wakes, delivered files"),
        (SYS_readv, "sockets of the supervisor"),
        (SYS_recvfrom, "sockets"),
        (SYS_recvmsg, "the helper's answers"),
        (SYS_restart_syscall, "the kernel's own, after a stop"),
        (SYS_rseq, "start of a thread"),
        (SYS_rt_sigaction, "signals"),
        (SYS_rt_sigprocmask, "signals"),
        (SYS_rt_sigreturn, "signals"),
        (SYS_sched_getaffinity, "how many workers; stacks of threads"),
        (SYS_sched_yield, "threads: locks"),
        (SYS_seccomp, "to forbid more"),
        (SYS_sendmsg, "questions to the helper"),
        (SYS_sendto, "sockets"),
        (SYS_set_robust_list, "start of a thread"),
        (SYS_setsockopt, "options of sockets"),
        (SYS_shutdown, "FIN"),
        (SYS_sigaltstack, "start of a thread"),
        (SYS_socket, "connections to agents"),
        (SYS_socketpair, "signals of the supervisor"),
        (SYS_splice, "plain legs"),
        (SYS_statx, "how long a delivered file is"),
        (SYS_sysinfo, "memory: the allocator"),
        (SYS_tgkill, "an abort"),
        (SYS_uname, "keys: what the processor can do"),
        (SYS_write, "logs, wakes"),
        (SYS_writev, "sockets of the supervisor"),
    ];

    /// What the program answers to a call by this number: the kernel's part of it (seccomp(2), and `bpf_check` of the
    /// kernel's net/core/filter.c for the codes).
    fn answer(program: &BpfProgram, architecture: u32, call: u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let mut jump = |is_so: bool| at += usize::from(if is_so { step.jt } else { step.jf });
            match step.code {
                // Offsets in `seccomp_data`.
                0x20 if step.k == 0 => accumulator = call,
                0x20 if step.k == 4 => accumulator = architecture,
                0x15 => jump(accumulator == step.k),
                0x25 => jump(accumulator > step.k),
                0x35 => jump(accumulator >= step.k),
                0x05 => at += step.k as usize,
                0x06 => return step.k,
                code => panic!("{code:#x} {}: a filter that looks at more than the number", step.k),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    /// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_AARCH64` (the kernel's linux/audit.h).
    const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    /// Numbers that are looked at: all there are, and those of the x32 ABI.
    const NUMBERS: u32 = 2048;

    #[test]
    fn nothing_is_allowed_but_what_has_a_reason() {
        let program = filter(listed()).expect("a filter");
        let numbers = (0..NUMBERS).chain((0..NUMBERS).map(|number| number | 0x4000_0000));
        let found: BTreeSet<_> =
            numbers.filter(|call| answer(&program, ARCHITECTURE, *call) == ALLOW).map(c_long::from).collect();
        let wanted: BTreeSet<_> = ALLOWED.iter().map(|(call, _)| *call).chain(OLD_ALLOWED).collect();
        let extra: Vec<_> = found.difference(&wanted).collect();
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(extra.is_empty() && missing.is_empty(), "more: {extra:?}, not: {missing:?}");
        assert!(ALLOWED.iter().all(|(_, reason)| !reason.is_empty()));
    }

    /// By name, so that numbers of another architecture can't hide one.
    #[cfg(target_arch = "x86_64")]
    const OLD_ALLOWED: [c_long; 4] = [SYS_arch_prctl, SYS_epoll_wait, SYS_poll, SYS_time];
    #[cfg(not(target_arch = "x86_64"))]
    const OLD_ALLOWED: [c_long; 0] = [];

    #[test]
    fn a_call_of_another_architecture_is_no_way_round() {
        let program = filter(listed()).expect("a filter");
        let others = [0x4000_0003, 0x4000_0028, 0xc000_003e, 0xc000_00b7];
        for other in others.into_iter().filter(|other| *other != ARCHITECTURE) {
            assert!((0..NUMBERS).all(|call| answer(&program, other, call) != ALLOW), "{other:#x}");
        }
    }

    #[test]
    fn what_would_reach_other_processes_or_listen_fails() {
        let tried = std::thread::spawn(|| {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            let own = getpid();
            let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            let before = [bind(&socket, &any), listen(&socket, 1), test_kill_process(own)];
            rustix::thread::set_no_new_privs(true).expect("a kernel that can");
            restrict().expect("a filter");
            (before, [bind(&socket, &any), listen(&socket, 1), test_kill_process(own)])
        });
        let (before, after) = tried.join().expect("no panic");
        assert_eq!(before, [Ok(()); 3]);
        assert_eq!(after, [Err(Errno::PERM); 3]);
    }
}
