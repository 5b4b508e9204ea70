//! The kernel's own account of the proxy's TCP connections: a `sock_ops` program on the proxy's cgroup, called when a
//! connection begins, changes its state, measures a round trip or sends something again. It counts and never decides:
//! no packet, option or connection is any different for it.
#![no_std]
#![no_main]
#![allow(unsafe_code)]
// The target's `core::sync::atomic` can't add.
#![feature(asm_experimental_arch)]

/// Shared with the program; each side uses its part.
#[allow(dead_code)]
mod account;

use core::arch::asm;
use core::hint::black_box;
use core::ptr::{null_mut, read_volatile};

use account::{
    ACKNOWLEDGED, AGENT, BUCKETS, CLIENT, CLOSED, CONNECT_TIMES, COUNTS, Counts, ENTRIES_MAX, FAILED, Key,
    OPENED, RECEIVED, RETRANSMITTED, ROUND_TRIP_US, ROUND_TRIPS, TRIED,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT,
    bpf_sock_ops,
};
use aya_ebpf::btf_maps::{HashMap, SkStorage};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::{btf_map, sock_ops};
use aya_ebpf::programs::SockOpsContext;

#[btf_map]
static ACCOUNT: HashMap<Key, Counts, ENTRIES_MAX> = HashMap::new();
#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// Ports of agents; set before the program is loaded, as are those below. 0: none.
#[unsafe(no_mangle)]
static AGENT_PORTS: [u32; 8] = [0; 8];
/// Ports that clients come to; 0: none.
#[unsafe(no_mangle)]
static LISTEN_PORTS: [u32; 8] = [0; 8];

const INET: u32 = 2;
const V4_IN_V6: u32 = 0xffff_u32.to_be();
const WANTED: u32 = BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;

/// What is remembered of a connection; the kernel frees it with the socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    began_ns: u64,
    /// What is in the account already.
    received: u64,
    acknowledged: u64,
    /// Bytes received when the other side had acknowledged that this one ends.
    received_at_end: u64,
    retransmitted: u32,
    leg: u32,
    established: u32,
    /// The other side has said that it ends, which has a sequence number but is no byte.
    end_received: u32,
    /// The other side has acknowledged that this one ends, likewise.
    end_acknowledged: u32,
    _padding: u32,
}

/// One field of the context, by a load of exactly its width: the verifier rewrites such loads and refuses any that the
/// compiler has narrowed, merged or moved into a branch.
macro_rules! field {
    ($context:expr, $($path:tt)+) => {
        // SAFETY: the context is valid for the call, and the verifier checks every load.
        unsafe { read_volatile(&raw const (*$context).$($path)+) }
    };
}

/// A number that the loader has set.
macro_rules! setting {
    ($name:expr) => {
        // SAFETY: a static of this program; volatile, as the loader writes it behind the compiler's back.
        unsafe { read_volatile(&raw const $name) }
    };
}

#[sock_ops]
pub fn account(context: SockOpsContext) -> u32 {
    let ops: *mut bpf_sock_ops = context.as_ptr().cast();
    let operation = field!(ops, op);
    let _ = match operation {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context, ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context, ops),
        BPF_SOCK_OPS_RTT_CB => measured(ops),
        BPF_SOCK_OPS_RETRANS_CB => update(ops),
        BPF_SOCK_OPS_STATE_CB => changed(ops),
        _ => None,
    };
    1
}

fn connecting(context: &SockOpsContext, ops: *mut bpf_sock_ops) -> Option<()> {
    let port = u32::from_be(field!(ops, remote_port));
    let ports = setting!(AGENT_PORTS);
    if port == 0 || !ports.contains(&port) {
        return None;
    }
    let connection = connection(ops, true)?;
    connection.leg = AGENT;
    // SAFETY: a helper without conditions.
    connection.began_ns = unsafe { bpf_ktime_get_ns() };
    context.set_cb_flags(WANTED.cast_signed()).ok()
}

fn connected(ops: *mut bpf_sock_ops) -> Option<()> {
    let connection = connection(ops, false)?;
    begin(ops, connection);
    let counts = counts(ops, AGENT)?;
    // SAFETY: a helper without conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    add(counts, CONNECT_TIMES + bucket(now.wrapping_sub(connection.began_ns) / 1000), 1);
    add(counts, TRIED, 1);
    add(counts, OPENED, 1);
    Some(())
}

fn accepted(context: &SockOpsContext, ops: *mut bpf_sock_ops) -> Option<()> {
    let port = field!(ops, local_port);
    let ports = setting!(LISTEN_PORTS);
    if port == 0 || !ports.contains(&port) {
        return None;
    }
    let connection = connection(ops, true)?;
    connection.leg = CLIENT;
    begin(ops, connection);
    let counts = counts(ops, CLIENT)?;
    add(counts, TRIED, 1);
    add(counts, OPENED, 1);
    context.set_cb_flags(WANTED.cast_signed()).ok()
}

/// What was exchanged to get here is no payload.
fn begin(ops: *mut bpf_sock_ops, connection: &mut Connection) {
    connection.established = 1;
    connection.acknowledged = field!(ops, bytes_acked);
    connection.received = field!(ops, bytes_received);
}

fn measured(ops: *mut bpf_sock_ops) -> Option<()> {
    let connection = connection(ops, false)?;
    let counts = counts(ops, connection.leg)?;
    let smoothed = u64::from(field!(ops, srtt_us) >> 3);
    // SAFETY: the position lies inside the value. Whichever connection writes last has the word.
    unsafe { (&raw mut (*counts)[ROUND_TRIP_US]).write_volatile(smoothed) };
    add(counts, ROUND_TRIPS + bucket(smoothed), 1);
    update(ops)
}

/// Takes what has moved since the last time into the account.
fn update(ops: *mut bpf_sock_ops) -> Option<()> {
    let connection = connection(ops, false)?;
    if connection.established == 0 {
        return None;
    }
    let counts = counts(ops, connection.leg)?;
    let (received, acknowledged) = (field!(ops, bytes_received), field!(ops, bytes_acked));
    let retransmitted = field!(ops, total_retrans);
    add(counts, RECEIVED, received.wrapping_sub(connection.received));
    add(counts, ACKNOWLEDGED, acknowledged.wrapping_sub(connection.acknowledged));
    add(counts, RETRANSMITTED, u64::from(retransmitted.wrapping_sub(connection.retransmitted)));
    (connection.received, connection.acknowledged) = (received, acknowledged);
    connection.retransmitted = retransmitted;
    Some(())
}

fn changed(ops: *mut bpf_sock_ops) -> Option<()> {
    let connection = connection(ops, false)?;
    let (from, to) = (field!(ops, __bindgen_anon_1.args[0]), field!(ops, __bindgen_anon_1.args[1]));
    match to {
        BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING => connection.end_received = 1,
        BPF_TCP_FIN_WAIT2 => {
            connection.end_acknowledged = 1;
            connection.received_at_end = field!(ops, bytes_received);
        }
        BPF_TCP_CLOSE if from == BPF_TCP_SYN_SENT => failed(ops)?,
        BPF_TCP_CLOSE if connection.established == 1 => closed(ops, connection, from)?,
        _ => {}
    }
    Some(())
}

/// Whoever was never reached has no entry of its own, or clients could fill the map with addresses.
fn failed(ops: *mut bpf_sock_ops) -> Option<()> {
    let counts = known(&key(ops, AGENT)).or_else(|| made(&[0, 0, 0, 0, 0, AGENT]))?;
    add(counts, TRIED, 1);
    add(counts, FAILED, 1);
    Some(())
}

fn closed(ops: *mut bpf_sock_ops, connection: &mut Connection, from: u32) -> Option<()> {
    let received = field!(ops, bytes_received);
    let (unacknowledged, next) = (field!(ops, snd_una), field!(ops, snd_nxt));
    // Either the other side's end has come, and was counted, or there was a reset, or nobody waited for it any longer.
    // Bytes that came in this state and then a reset look like an end: those are one byte short.
    if from == BPF_TCP_FIN_WAIT2 && received != connection.received_at_end {
        connection.end_received = 1;
    }
    if (from == BPF_TCP_LAST_ACK || from == BPF_TCP_CLOSING) && unacknowledged == next {
        connection.end_acknowledged = 1;
    }
    connection.received = connection.received.wrapping_add(u64::from(connection.end_received));
    connection.acknowledged = connection.acknowledged.wrapping_add(u64::from(connection.end_acknowledged));
    update(ops)?;
    add(counts(ops, connection.leg)?, CLOSED, 1);
    Some(())
}

#[inline(always)]
fn connection(ops: *mut bpf_sock_ops, create: bool) -> Option<&'static mut Connection> {
    let socket = field!(ops, __bindgen_anon_2.sk);
    if socket.is_null() {
        return None;
    }
    // SAFETY: the map and the socket are what the helper wants; what it returns is null or one `Connection`, which nobody
    // else changes meanwhile: callbacks of a socket are made under its lock.
    unsafe {
        let found = bpf_sk_storage_get((&raw const CONNECTIONS).cast_mut().cast(), socket.cast(), null_mut(), create.into());
        found.cast::<Connection>().as_mut()
    }
}

/// The numbers of whom the connection is with.
#[inline(always)]
fn counts(ops: *mut bpf_sock_ops, leg: u32) -> Option<*mut Counts> {
    made(&key(ops, leg))
}

#[inline(always)]
fn key(ops: *mut bpf_sock_ops, leg: u32) -> Key {
    // All loads without conditions: see `field`.
    let (family, v4, remote_port) = (field!(ops, family), field!(ops, remote_ip4), field!(ops, remote_port));
    let (a, b) = (field!(ops, remote_ip6[0]), field!(ops, remote_ip6[1]));
    let (c, d) = (field!(ops, remote_ip6[2]), field!(ops, remote_ip6[3]));
    let local_port = field!(ops, local_port);
    // By masks of what the compiler can't know: it would call `memset` for zeros, and without CAP_PERFMON the verifier
    // refuses its loop over the stack.
    let leg = black_box(leg);
    let of_agent = mask(leg == AGENT);
    let (is_v4, is_v6) = (of_agent & mask(family == INET), of_agent & mask(family != INET));
    let port = (u32::from_be(remote_port) & of_agent) | (local_port & !of_agent);
    [a & is_v6, b & is_v6, (c & is_v6) | (V4_IN_V6 & is_v4), (d & is_v6) | (v4 & is_v4), port, leg]
}

#[inline(always)]
fn known(key: &Key) -> Option<*mut Counts> {
    ACCOUNT.get_ptr_mut(key)
}

#[inline(always)]
fn made(key: &Key) -> Option<*mut Counts> {
    if let Some(counts) = known(key) {
        return Some(counts);
    }
    static NONE: Counts = [0; COUNTS];
    // Somebody else may have put it there meanwhile.
    let _ = ACCOUNT.insert(key, &NONE, BPF_NOEXIST.into());
    known(key)
}

/// All bits, or none.
#[inline(always)]
fn mask(is_set: bool) -> u32 {
    0_u32.wrapping_sub(u32::from(is_set))
}

#[inline(always)]
fn add(counts: *mut Counts, position: usize, more: u64) {
    // An atomic addition of nothing costs as much as one of something.
    if position >= COUNTS || more == 0 {
        return;
    }
    // SAFETY: the position lies inside the value.
    let number = unsafe { counts.cast::<u64>().add(position) };
    // SAFETY: an atomic addition to that number.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) more, options(nostack)) }
}

/// The position of the highest bit, which is all that the verifier has to know to be content.
#[inline(always)]
fn bucket(us: u64) -> usize {
    let mut rest = if us > u64::from(u32::MAX) { u32::MAX } else { us as u32 };
    let mut bucket = 0;
    for step in [16, 8, 4, 2, 1] {
        if rest >> step != 0 {
            bucket += step;
            rest >>= step;
        }
    }
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// None of the helpers is for GPL programs alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
