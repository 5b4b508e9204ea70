//! What the kernel's part counts and the program reads: one file for both sides. Keys and values are arrays of numbers, so
//! that neither side has to trust the other's idea of padding.

/// Whom it is about: an address of 16 bytes in network order (IPv4 as `::ffff:a.b.c.d`), a port, and which leg.
/// All zero: those that were never reached.
pub type Key = [u32; 6];

/// What is counted of one, by the positions below.
pub type Counts = [u64; COUNTS];

/// Position of the address's first word in a [`Key`].
pub const ADDRESS: usize = 0;
/// Position of the port: the agent's, or the one that clients come to.
pub const PORT: usize = 4;
/// Position of the leg.
pub const LEG: usize = 5;

/// The leg between the proxy and an agent.
pub const AGENT: u32 = 0;
/// The leg between clients and the proxy; the address of its key is zero.
pub const CLIENT: u32 = 1;

/// Bytes of payload that came in order, each once.
pub const RECEIVED: usize = 0;
/// Bytes of payload that the other side has acknowledged.
pub const ACKNOWLEDGED: usize = 1;
/// Connections that were tried.
pub const TRIED: usize = 2;
/// Connections that were made.
pub const OPENED: usize = 3;
/// Connections that could not be made.
pub const FAILED: usize = 4;
/// Connections that have ended.
pub const CLOSED: usize = 5;
/// Segments that were sent again.
pub const RETRANSMITTED: usize = 6;
/// The round-trip time of the connection that spoke last, smoothed, in microseconds.
pub const ROUND_TRIP_US: usize = 7;
/// First of the buckets of times to connect: bucket n has those of 2^n us and more, below 2^(n+1).
pub const CONNECT_TIMES: usize = 8;
/// First of the buckets of smoothed round-trip times, likewise.
pub const ROUND_TRIPS: usize = CONNECT_TIMES + BUCKETS;
/// Buckets of a histogram; the last one has everything above as well.
pub const BUCKETS: usize = 27;
/// How many numbers there are of each.
pub const COUNTS: usize = ROUND_TRIPS + BUCKETS;

/// Agents, and listeners, that are counted.
pub const ENTRIES_MAX: usize = 8192;
