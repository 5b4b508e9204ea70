//! Flags as they are typed: names, defaults, and what a single one may say. What they mean together is found by
//! `Flags::resolve`; nothing is read or bound here.

use std::ffi::OsString;
use std::fmt;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::ArgPredicate;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::units::{MILLISECOND, SECOND, YEAR, size, time};
use crate::access::route::AgentDomain;
use crate::http::rewrite::{HostHeader, PrefixMode};
use crate::tls::Pin;
use crate::transport::networks::{Network, canonical};

/// Where a DCV server listens unless it is told otherwise.
const AGENT_PORT: u16 = 8443;
/// More is no limit: nobody waits for that long in front of a browser.
const CONNECT_MAX: Duration = Duration::from_secs(600);
/// tcp(7) takes it as milliseconds in a C int.
const TCP_USER_TIMEOUT_MAX: Duration = Duration::from_secs(i32::MAX as u64 / 1000);

/// A proxy for Amazon DCV desktops: one HTTPS address in front of many agents.
#[derive(Debug, Parser)]
#[command(name = "dcv-splice", version, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// What to do; to run where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub flags: Flags,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (the default).
    Run(Flags),
    /// Resolve and validate everything, print the result, and exit: 0 if it could run, 2 if not.
    Check(Flags),
    /// Have the one that runs read its configuration and files again: 0 if it goes by them, 1 if it keeps the old ones
    Reload(ControlFlags),
    /// Have the one that runs, and those that drain, open their access logs again
    Reopen(ControlFlags),
    /// Have the one that runs start the binary anew and hand over to it: 0 if that one serves
    Upgrade(ControlFlags),
    /// Show the one that runs, and those that drain
    Status(ControlFlags),
    /// Open files for the process that serves
    #[command(hide = true)]
    Helper(Flags),
    /// Start a program that is nobody's child
    #[command(hide = true)]
    Exec {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<OsString>,
    },
    /// Print what --agent-pin takes for the certificate that an agent shows now.
    Pin {
        /// The agent; its port is 8443 where none is given.
        #[arg(value_name = "IP[:PORT]", value_parser = agent_address)]
        agent: SocketAddr,
    },
}

/// How to reach the one that runs.
#[derive(Args, Clone, Debug)]
pub struct ControlFlags {
    /// Its --control
    #[arg(long, value_name = "PATH", default_value = "/run/dcv-splice/control.sock")]
    pub control: PathBuf,
}

/// How TLS to the agents is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AgentTls {
    /// TLS, any certificate.
    Insecure,
    /// TLS, verified by --agent-ca (with --agent-name) or --agent-pin.
    Verify,
    /// Plain HTTP.
    Off,
}

/// The flags, as typed.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// A file (TOML) with these flags as keys, without the dashes; what is given as a flag is not taken from it
    #[arg(long, value_name = "TOML")]
    pub config: Option<PathBuf>,
    /// Where to accept HTTPS; may be repeated. The default is none where --listen-plain is given
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8443", value_parser = listen_address)]
    #[arg(default_value_if("listen_plain", ArgPredicate::IsPresent, None))]
    pub listen: Vec<SocketAddr>,
    /// Where to accept plain HTTP, behind a balancer that ends TLS; may be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub listen_plain: Vec<SocketAddr>,
    /// Where clients may come from; may be repeated [default: anywhere]
    #[arg(long, value_name = "CIDR")]
    pub allow_clients: Vec<Network>,
    /// Where clients may not come from, whatever is allowed; may be repeated
    #[arg(long, value_name = "CIDR")]
    pub deny_clients: Vec<Network>,
    /// Where balancers connect from that say first whom they speak for (PROXY protocol 1 and 2); may be repeated
    #[arg(long, value_name = "CIDR")]
    pub proxy_protocol: Vec<Network>,
    /// Where proxies connect from that are believed whom they speak for (X-Forwarded-For, X-Forwarded-Proto); may be
    /// repeated
    #[arg(long, value_name = "CIDR")]
    pub trust_forwarded: Vec<Network>,
    /// The agents that may be dialled; may be repeated. Without it, none
    #[arg(long, value_name = "CIDR")]
    pub agents: Vec<Network>,
    /// The agent for paths that name none; must lie inside --agents
    #[arg(long, value_name = "IP", value_parser = address)]
    pub default_agent: Option<IpAddr>,
    /// The domain of which 10-0-0-5.DOMAIN is agent 10.0.0.5: each desktop then has a browser origin of its own
    #[arg(long, value_name = "DOMAIN")]
    pub agent_domain: Option<AgentDomain>,
    /// The port of every agent
    #[arg(long, value_name = "PORT", default_value_t = AGENT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub agent_port: u16,
    /// TLS to the agents
    #[arg(long, value_enum, default_value_t = AgentTls::Insecure)]
    pub agent_tls: AgentTls,
    /// The certificates (PEM) that agents are verified by: of authorities, or agents' own
    #[arg(long, value_name = "PEM", conflicts_with = "agent_pin")]
    pub agent_ca: Option<PathBuf>,
    /// The name that every agent's certificate carries, where it is not its address
    #[arg(long, value_name = "NAME", requires = "agent_ca")]
    pub agent_name: Option<String>,
    /// An agent certificate's digest; may be repeated
    #[arg(long, value_name = "sha256:HEX")]
    pub agent_pin: Vec<Pin>,
    /// A certificate chain (PEM); repeatable with --key. None: a self-signed one is made in memory
    #[arg(long, value_name = "PEM")]
    pub cert: Vec<PathBuf>,
    /// The private key (PEM) of the --cert at the same place
    #[arg(long, value_name = "PEM")]
    pub key: Vec<PathBuf>,
    /// The lowest version of TLS that clients may speak
    #[arg(long, value_enum, default_value_t)]
    pub tls_min: TlsMin,
    /// The certificates (PEM) that clients' certificates are verified by: of authorities, or clients' own
    #[arg(long, value_name = "PEM")]
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without a certificate
    #[arg(long, value_enum, default_value_t)]
    pub client_cert: ClientCert,
    /// The OCSP response (DER) for the --cert at the same place; for all or for none
    #[arg(long, value_name = "DER", requires = "cert")]
    pub ocsp: Vec<PathBuf>,
    /// Time for which browsers use HTTPS alone (Strict-Transport-Security) [default: what the agent says]
    #[arg(long, value_name = "TIME", value_parser = time(Duration::ZERO..=Duration::MAX))]
    pub hsts_max_age: Option<Duration>,
    /// Names and bcrypt hashes (htpasswd -B) of those who may ask; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub htpasswd: Option<PathBuf>,
    /// The agents that --htpasswd is for; may be repeated [default: all]
    #[arg(long, value_name = "CIDR", requires = "htpasswd")]
    pub htpasswd_agents: Vec<Network>,
    /// Whether agents see the /<ip> prefix
    #[arg(long, value_enum, default_value_t)]
    pub path_prefix: PrefixMode,
    /// What agents are told as Host
    #[arg(long, value_enum, default_value_t)]
    pub host_header: HostHeader,
    /// Threads that serve [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// How workers wait for sockets; auto takes epoll where io-uring is not available
    #[arg(long, value_enum, default_value_t)]
    pub io_backend: IoBackend,
    /// A line per request or session: a file, stdout, or off
    #[arg(long, value_name = "PATH|stdout|off", default_value = "off")]
    pub access_log: String,
    /// Where metrics and a status page are shown, by plain HTTP
    #[arg(long, value_name = "ADDR:PORT|off", default_value = "127.0.0.1:9443", value_parser = admin_at)]
    pub admin: AdminAt,
    /// The kernel's own account of connections, in the metrics: where it can be had, not at all, or not without it
    #[arg(long, value_enum, default_value_t)]
    pub ebpf: EbpfMode,
    /// The kernel's part of it
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/dcv-splice/account.o")]
    pub ebpf_object: PathBuf,
    /// Where `reload`, `reopen`, `upgrade` and `status` reach this one: a Unix socket, for its own user and root only
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// The limits.
    #[command(flatten)]
    pub limits: LimitFlags,
}

/// The limits, as typed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Client connections in all
    #[arg(long, value_name = "N", default_value_t = 9_000)]
    pub connections_max: usize,
    /// Connections of one client address (IPv6: of one /64). A desktop holds 6 to 8, and an office may share one
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    pub client_connections_max: usize,
    /// New connections a second of one client address, four times as many at once
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub client_rate: u32,
    /// Clients' TLS handshakes in flight, per worker; the one that has taken longest gives way to a new one
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub handshakes_max: usize,
    /// Time for a client's TLS handshake, and for each request head
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub header_timeout: Duration,
    /// Size of a request or response head
    #[arg(long, value_name = "SIZE", default_value = "32KiB", value_parser = size(256..=1 << 20))]
    pub header_size_max: ByteSize,
    /// Size of a request line
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = size(0..=1 << 20))]
    pub request_line_max: ByteSize,
    /// Header lines of a head, at most 256
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub header_count_max: usize,
    /// Size of a request body
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size(0..=u64::MAX))]
    pub body_max: ByteSize,
    /// Time that a request body may pause
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub body_idle_timeout: Duration,
    /// Time that a client may keep an unused connection
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = time(SECOND..=YEAR))]
    pub client_keepalive_timeout: Duration,
    /// Time to connect to an agent, TLS handshake included
    #[arg(long, value_name = "TIME", default_value = "2500ms", value_parser = time(MILLISECOND..=CONNECT_MAX))]
    pub connect_timeout: Duration,
    /// Time to the first byte of an agent's response, and between two of its bytes
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time(SECOND..=YEAR))]
    pub response_timeout: Duration,
    /// Time that an agent's unused connection is kept
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub agent_keepalive_timeout: Duration,
    /// Unused connections kept per agent and worker
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub agent_idle_max: usize,
    /// Time that sent bytes may stay unacknowledged by a client or an agent (TCP_USER_TIMEOUT, tcp(7))
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = time(SECOND..=TCP_USER_TIMEOUT_MAX))]
    pub tcp_user_timeout: Duration,
    /// Time that a WebSocket may carry nothing
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time(SECOND..=YEAR))]
    pub session_idle_timeout: Duration,
    /// The same once one side has ended it; also how long a client that has ended its side waits for an answer
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub half_closed_timeout: Duration,
    /// Bytes that one direction of a session moves before other sessions have their turn
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size(4096..=u64::MAX))]
    pub relay_budget: ByteSize,
    /// Time that sessions may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time(Duration::ZERO..=YEAR))]
    pub drain_timeout: Duration,
    /// Time that sessions may go on in the old process after an upgrade
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time(Duration::ZERO..=YEAR))]
    pub upgrade_drain_timeout: Duration,
}

/// The lowest version of TLS for clients.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum TlsMin {
    /// TLS 1.2, with forward secrecy and AEAD only.
    #[default]
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[value(name = "1.3")]
    Tls13,
}

/// Whether clients need a certificate of their own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum ClientCert {
    /// They do.
    #[default]
    Required,
    /// They may have one, which then has to be good.
    Optional,
}

/// How a worker waits for sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum IoBackend {
    /// A ring, or epoll where there is none.
    #[default]
    Auto,
    /// A ring of the kernel (Linux 6.1 and later).
    IoUring,
    /// epoll(7).
    Epoll,
}

/// Whether the kernel counts too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum EbpfMode {
    /// Where it can.
    #[default]
    Auto,
    /// It does not.
    Off,
    /// Where it can't, the program does not start.
    Require,
}

/// Where metrics are shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AdminAt {
    /// Nowhere.
    Off,
    /// There.
    Address(SocketAddr),
}

impl fmt::Display for AdminAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

fn admin_at(text: &str) -> Result<AdminAt, String> {
    match text {
        "off" => Ok(AdminAt::Off),
        address => {
            let address = listen_address(address).map_err(|says| format!("{says} (or off)"))?;
            Ok(AdminAt::Address(address))
        }
    }
}

/// An address and a port. What is written elsewhere in its place is told with what to write here.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map(listened).map_err(|_| {
        let text = text.trim();
        let text = text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
        match meant(text) {
            Some(address) => format!("write {address}"),
            None => {
                "write an address and a port, such as 0.0.0.0:8443, 127.0.0.1:8443 or [::]:8443".to_owned()
            }
        }
    })
}

/// What an address of another program's configuration probably means.
fn meant(text: &str) -> Option<String> {
    if let Ok(port) = text.parse::<u16>() {
        return Some(format!(
            "0.0.0.0:{port} for all addresses of this host, or {}",
            SocketAddr::from(([127, 0, 0, 1], port))
        ));
    }
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let with_port = parts.and_then(|(host, port)| Some(SocketAddr::new(host.parse().ok()?, port)));
    let alone = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    Some(match (parts, with_port, alone) {
        // In an IPv6 address without brackets the last group may be meant as a port, if it looks like one.
        (_, Some(address), alone) if alone.is_none() || address.port() >= 1024 => address.to_string(),
        (_, _, Some(ip)) => format!("{} (the port is missing)", SocketAddr::new(ip, AGENT_PORT)),
        (Some(("" | "*", port)), ..) => format!("0.0.0.0:{port} for all addresses of this host"),
        (Some(("localhost", port)), ..) => format!("127.0.0.1:{port}"),
        (Some((_, port)), ..) => {
            format!("this host's own address in place of a name, such as 0.0.0.0:{port}")
        }
        (None, ..) => return None,
    })
}

/// A listener may be of one zone; an IPv4 address has none.
fn listened(at: SocketAddr) -> SocketAddr {
    if at.ip().to_canonical().is_ipv4() { canonical(at) } else { at }
}

fn address(text: &str) -> Result<IpAddr, AddrParseError> {
    Ok(text.parse::<IpAddr>()?.to_canonical())
}

fn agent_address(text: &str) -> Result<SocketAddr, String> {
    let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, AGENT_PORT));
    ip.or_else(|_| text.parse())
        .map(canonical)
        .map_err(|_| "write an address such as 10.0.0.5 or 10.0.0.5:8443".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_to_listen_on_is_told_with_what_to_write() {
        for (text, told) in [
            (":8443", "write 0.0.0.0:8443 for all addresses"),
            ("*:8443", "write 0.0.0.0:8443 for all addresses"),
            ("8443", "write 0.0.0.0:8443 for all addresses of this host, or 127.0.0.1:8443"),
            ("localhost:8443", "write 127.0.0.1:8443"),
            ("https://10.0.0.5:8443/", "write 10.0.0.5:8443"),
            ("proxy.test:8443", "write this host's own address in place of a name, such as 0.0.0.0:8443"),
            ("10.0.0.5", "write 10.0.0.5:8443 (the port is missing)"),
            ("[::1]", "write [::1]:8443 (the port is missing)"),
            ("fe80::1%eth0:8443", "write this host's own address"),
            ("::1:8443", "write [::1]:8443"),
            ("2001:db8::1", "write [2001:db8::1]:8443 (the port is missing)"),
            ("::", "write [::]:8443 (the port is missing)"),
            (" 10.0.0.5:8443", "write 10.0.0.5:8443"),
            ("10.0.0.5:84430", "write an address and a port, such as"),
            ("nowhere", "write an address and a port, such as"),
            ("", "write an address and a port, such as"),
        ] {
            let error = listen_address(text).expect_err(text);
            assert!(error.starts_with(told), "{text:?}: {error}");
        }
        assert_eq!(listen_address("[::]:1"), Ok(SocketAddr::from(([0; 16], 1))));
        assert!(admin_at(":9443").is_err_and(|says| says.ends_with("(or off)")));
    }
}
