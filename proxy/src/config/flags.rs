//! Flags as they are typed: names, defaults, and what a single one may say. What they mean together is found by
//! `Flags::resolve`; nothing is read or bound here.

use std::ffi::OsString;
use std::fmt;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{ArgPredicate, NonEmptyStringValueParser};
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::choices::{
    AccessLogFormat, AgentTls, ClientCert, EbpfMode, EndRevoked, Http2, Http2Websocket, IoBackend, LogFormat,
    Probe, SessionTls, TlsMin,
};
use super::sources::{CommandWords, ResolverUrl, command_words, dns_name};
use super::units::{MILLISECOND, SECOND, YEAR, size, time};
use crate::access::route::AgentDomain;
use crate::http::rewrite::{HostHeader, PrefixMode};
use crate::tls::Pin;
use crate::transport::networks::{Network, canonical};

/// Where a DCV server listens unless it is told otherwise.
const AGENT_PORT: u16 = 8443;
/// A list that is older than that is nobody's.
const DAY: Duration = Duration::from_hours(24);
/// Agents are not asked more often, or less.
const PROBE_MIN: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_hours(1);
/// More is no limit: nobody waits for that long in front of a browser.
const CONNECT_MAX: Duration = Duration::from_mins(10);
/// tcp(7) takes it as milliseconds in a C int.
const TCP_USER_TIMEOUT_MAX: Duration = Duration::from_secs(i32::MAX as u64 / 1000);

/// A proxy for Amazon DCV desktops: one HTTPS address in front of many agents (the hosts of DCV servers).
#[derive(Debug, Parser)]
#[command(name = "dcv-splice", version, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// The command; `run` if none is given.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub flags: Flags,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (the default)
    Run(Flags),
    /// Validate the flags and files, print all settings, and exit: 0 if they can be used, 2 if not
    Check(Flags),
    /// Apply the changed configuration and files: exit 0 if they are applied, 1 if the old ones stay
    Reload(ControlFlags),
    /// Open the access log again, also in processes that drain
    Reopen(ControlFlags),
    /// Start the installed binary and hand over to it: exit 0 if it serves
    Upgrade(ControlFlags),
    /// Show the process that serves, and those that drain
    Status(ControlFlags),
    /// Show the agents that have names or sessions
    Agents {
        /// The running proxy.
        #[command(flatten)]
        control: ControlFlags,
        /// As a JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show the open sessions, those of processes that drain too
    Sessions(SessionFlags),
    /// Try step by step how an agent is reached, and name the cause where it is not: exit 0 if all is well, or a code of its own
    /// for each cause
    Doctor {
        /// Its name in --agents-file or in DNS, or its address; its port is --agent-port if none is given
        #[arg(value_name = "AGENT")]
        agent: String,
        /// The name by which browsers reach this proxy: the agent gets it as Host, and in Origin
        #[arg(value_name = "HOST", default_value = "localhost")]
        host: String,
        /// How agents are reached, as the proxy has it.
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Watch agents and sessions in a terminal: where their time goes, the slowest first
    Top(TopFlags),
    /// Take no new users at an agent; those who have a session there keep it, and may reconnect
    Drain(DrainFlags),
    /// End sessions, in order: all that are named by what is given
    End(EndFlags),
    /// Take users at an agent again
    Undrain(DrainFlags),
    /// Take no users at an agent; sessions that are there go on
    Off(AgentFlags),
    /// Open files for the process that serves
    #[command(hide = true)]
    Helper(Flags),
    /// Ask the network what serving has to know
    #[command(hide = true)]
    NetworkHelper,
    /// Start a program that is nobody's child
    #[command(hide = true)]
    Exec {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<OsString>,
    },
    /// Become a program that has no privileges
    #[command(hide = true)]
    ExecUnprivileged {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<OsString>,
    },
    /// Print the --agent-pin of the certificate that an agent has now
    Pin {
        /// The agent; its port is 8443 if none is given
        #[arg(value_name = "IP[:PORT]", value_parser = agent_address)]
        agent: SocketAddr,
    },
}

/// How a command reaches the running proxy.
#[derive(Args, Clone, Debug)]
pub struct ControlFlags {
    /// The --control socket of the running proxy
    #[arg(long, value_name = "PATH", default_value = "/run/dcv-splice/control.sock")]
    pub control: PathBuf,
}

/// An agent of the running proxy.
#[derive(Args, Clone, Debug)]
pub struct AgentFlags {
    /// Its name in --agents-file, or its address
    #[arg(value_name = "AGENT", value_parser = agent_name)]
    pub agent: String,
    /// The running proxy.
    #[command(flatten)]
    pub control: ControlFlags,
}

/// The longest `--wait` of a drain.
const DRAIN_WAIT_MAX: Duration = Duration::from_hours(1);

/// An agent of the running proxy, or the proxy.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false, args = ["agent", "proxy"])]
pub struct DrainFlags {
    /// Its name in --agents-file, or its address
    #[arg(value_name = "AGENT", value_parser = agent_name)]
    pub agent: Option<String>,
    /// The proxy itself: what it answers to /health?ready, by which balancers choose. Whoever comes is served
    #[arg(long)]
    pub proxy: bool,
    /// Time to wait for afterwards, in which balancers see it: for a hook that is followed by the stop
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time(Duration::ZERO..=DRAIN_WAIT_MAX))]
    pub wait: Duration,
    /// The running proxy.
    #[command(flatten)]
    pub control: ControlFlags,
}

/// Sessions, by all that is given.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
pub struct SessionFilter {
    /// Those at this agent: its name or address
    #[arg(long, value_name = "NAME|IP", value_parser = agent_name)]
    pub agent: Option<String>,
    /// Those of this client
    #[arg(long, value_name = "IP", value_parser = address)]
    pub client: Option<IpAddr>,
    /// Those of this user of --htpasswd
    #[arg(long, value_name = "USER", value_parser = NonEmptyStringValueParser::new())]
    pub user: Option<String>,
    /// The one of this id, which `dcv-splice sessions` shows
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub id: Option<String>,
}

/// Which sessions are ended.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = true, args = ["agent", "client", "user", "id"])]
pub struct EndFlags {
    /// By which they are chosen.
    #[command(flatten)]
    pub filter: SessionFilter,
    /// The running proxy.
    #[command(flatten)]
    pub control: ControlFlags,
}

/// Which sessions are shown.
#[derive(Args, Clone, Debug)]
pub struct SessionFlags {
    /// By which they are chosen.
    #[command(flatten)]
    pub filter: SessionFilter,
    /// The running proxy.
    #[command(flatten)]
    pub control: ControlFlags,
    /// As a JSON array, an element for each session
    #[arg(long)]
    pub json: bool,
}

/// Of `top`.
#[derive(Args, Clone, Debug)]
pub struct TopFlags {
    /// By which sessions are chosen.
    #[command(flatten)]
    pub filter: SessionFilter,
    /// The running proxy.
    #[command(flatten)]
    pub control: ControlFlags,
}

/// The flags, as typed.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Configuration file (TOML): its keys are these flags without the dashes. A flag on the command line wins over
    /// its key
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address to accept HTTPS on; repeatable. There is no default if --listen-plain is given
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8443", value_parser = listen_address)]
    #[arg(default_value_if("listen_plain", ArgPredicate::IsPresent, None), help_heading = LISTENERS)]
    pub listen: Vec<SocketAddr>,
    /// Address to accept plain HTTP on, behind a load balancer that terminates TLS; repeatable
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address, help_heading = LISTENERS)]
    pub listen_plain: Vec<SocketAddr>,
    /// Networks of load balancers that send a PROXY protocol header (version 1 or 2); repeatable
    #[arg(long, value_name = "CIDR", help_heading = LISTENERS)]
    pub proxy_protocol: Vec<Network>,
    /// Networks of proxies whose X-Forwarded-For, X-Forwarded-Proto and X-Request-Id are trusted; repeatable
    #[arg(long, value_name = "CIDR", help_heading = LISTENERS)]
    pub trust_forwarded: Vec<Network>,

    /// Certificate chain (PEM); repeatable, each with its --key. A connection gets the one for its server name, ECDSA
    /// before RSA [default: a self-signed one, made at the start]
    #[arg(long, value_name = "PEM", help_heading = TLS)]
    pub cert: Vec<PathBuf>,
    /// Private key (PEM) of the --cert at the same position
    #[arg(long, value_name = "PEM", help_heading = TLS)]
    pub key: Vec<PathBuf>,
    /// OCSP response (DER) for the --cert at the same position; for each --cert or for none
    #[arg(long, value_name = "DER", requires = "cert", help_heading = TLS)]
    pub ocsp: Vec<PathBuf>,
    /// Lowest TLS version for clients
    #[arg(long, value_enum, default_value_t, help_heading = TLS)]
    pub tls_min: TlsMin,
    /// Whether clients may speak HTTP/2
    #[arg(long, value_enum, default_value_t, help_heading = TLS)]
    pub http2: Http2,
    /// Whether a client may open a WebSocket over HTTP/2 (RFC 8441): display and input then share a TCP connection
    #[arg(long, value_enum, default_value_t, help_heading = TLS)]
    pub http2_websocket: Http2Websocket,
    /// Time for which browsers use HTTPS only (Strict-Transport-Security) [default: the agent's header]
    #[arg(long, value_name = "TIME", value_parser = time(Duration::ZERO..=Duration::MAX), help_heading = TLS)]
    pub hsts_max_age: Option<Duration>,

    /// Networks that clients may connect from; repeatable [default: all]
    #[arg(long, value_name = "CIDR", help_heading = CLIENTS)]
    pub allow_clients: Vec<Network>,
    /// Networks that clients may not connect from, even if --allow-clients has them; repeatable
    #[arg(long, value_name = "CIDR", help_heading = CLIENTS)]
    pub deny_clients: Vec<Network>,
    /// Certificates (PEM) that clients' certificates are verified with: of authorities, or clients' own
    #[arg(long, value_name = "PEM", help_heading = CLIENTS)]
    pub client_ca: Option<PathBuf>,
    /// Whether a client needs a certificate
    #[arg(long, value_enum, default_value_t, help_heading = CLIENTS)]
    pub client_cert: ClientCert,
    /// Users and bcrypt hashes (htpasswd -B) for HTTP Basic authentication. With it no agent is sent a Basic password
    #[arg(long, value_name = "FILE", help_heading = CLIENTS)]
    pub htpasswd: Option<PathBuf>,
    /// Whether sessions end whose user is removed from --htpasswd, or whose client's network is no longer allowed
    #[arg(long, value_enum, default_value_t, help_heading = CLIENTS)]
    pub end_revoked: EndRevoked,
    /// Agents that need a user of --htpasswd; repeatable [default: all]
    #[arg(long, value_name = "CIDR", requires = "htpasswd", help_heading = CLIENTS)]
    pub htpasswd_agents: Vec<Network>,

    /// Networks of agents that may be reached; repeatable. Loopback, link-local and multicast addresses need a network
    /// inside those ranges [default: none]
    #[arg(long, value_name = "CIDR", help_heading = AGENTS)]
    pub agents: Vec<Network>,
    /// Agent for paths that name none; must be in --agents [default: none, such paths get 404]
    #[arg(long, value_name = "IP", value_parser = address, help_heading = AGENTS)]
    pub default_agent: Option<IpAddr>,
    /// Domain in which the host name 10-0-0-5.DOMAIN is agent 10.0.0.5, so that each desktop has its own browser
    /// origin. Needs a wildcard DNS name and certificate
    #[arg(long, value_name = "DOMAIN", help_heading = AGENTS)]
    pub agent_domain: Option<AgentDomain>,
    /// File of agents with names (.toml or .json): each is reached at /<name>/ and at <name>.DOMAIN. Changes of it are
    /// applied by themselves [default: none]
    #[arg(long, value_name = "FILE", help_heading = AGENTS)]
    pub agents_file: Option<PathBuf>,
    /// Program with its arguments that prints such a list as JSON, run every --agents-command-interval without privileges and
    /// without a shell [default: none]
    #[arg(long, value_name = "COMMAND", value_parser = command_words, help_heading = AGENTS)]
    pub agents_command: Option<CommandWords>,
    /// Name in DNS whose addresses (A, AAAA), or services (SRV, where it begins with _), are agents; repeatable [default: none]
    #[arg(long, value_name = "NAME", value_parser = dns_name, help_heading = AGENTS)]
    pub agents_dns: Vec<String>,
    /// Name server to ask for the names of agents and of a session resolver; repeatable [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "IP:PORT", help_heading = AGENTS)]
    pub dns_server: Vec<SocketAddr>,
    /// File that remembers what `drain`, `undrain` and `off` have set, for the next start [default: none]
    #[arg(long, value_name = "FILE", help_heading = AGENTS)]
    pub state_file: Option<PathBuf>,
    /// Session resolver (http:// or https://) that is asked which agent has the session of /s/<id>/, as Amazon DCV Connection
    /// Gateway asks one
    #[arg(long, value_name = "URL", help_heading = AGENTS)]
    pub session_resolver: Option<ResolverUrl>,
    /// Certificates (PEM) that its certificate is verified with; https:// needs them
    #[arg(long, value_name = "PEM", requires = "session_resolver", help_heading = AGENTS)]
    pub session_resolver_ca: Option<PathBuf>,
    /// Address to answer such questions on, by plain HTTP: a session is an agent's name, or name:session. For a Connection Gateway beside this
    /// proxy; whoever reaches it learns the addresses of agents [default: none]
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address, help_heading = AGENTS)]
    pub resolver_listen: Option<SocketAddr>,
    /// File with at least 64 bytes nobody can guess, by which cookies of /pool/<name>/ are signed: the same for all proxies that one
    /// user may come to [default: a key of the process's own]
    #[arg(long, value_name = "FILE", help_heading = AGENTS)]
    pub cookie_key: Option<PathBuf>,
    /// Whether agents are probed, and what they have to do: accept a connection, begin TLS, or give any answer by HTTP. One
    /// that is down is answered for at once, with 503 [default: off, each request finds out for itself]
    #[arg(long, value_enum, default_value_t, hide_default_value = true, help_heading = AGENTS)]
    pub probe: Probe,
    /// Port of agents, where --agents-file names no other
    #[arg(long, value_name = "PORT", default_value_t = AGENT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(help_heading = AGENTS)]
    pub agent_port: u16,
    /// Further ports that --agents-file may name; repeatable. The sandbox allows no others [default: none]
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(help_heading = AGENTS)]
    pub agent_ports: Vec<u16>,
    /// TLS to the agents: any certificate, a verified one, or plain HTTP
    #[arg(long, value_enum, default_value_t = AgentTls::Insecure, help_heading = AGENTS)]
    pub agent_tls: AgentTls,
    /// Certificates (PEM) that agents' certificates are verified with: of authorities, or agents' own
    #[arg(long, value_name = "PEM", conflicts_with = "agent_pin", help_heading = AGENTS)]
    pub agent_ca: Option<PathBuf>,
    /// Name in every agent's certificate [default: the agent's address]
    #[arg(long, value_name = "NAME", requires = "agent_ca", help_heading = AGENTS)]
    pub agent_name: Option<String>,
    /// SHA-256 digest of an agent's certificate (`dcv-splice pin IP` prints it); repeatable
    #[arg(long, value_name = "sha256:HEX", help_heading = AGENTS)]
    pub agent_pin: Vec<Pin>,
    /// Whether agents see the /<ip> of the path: keep is for agents with a web-url-path
    #[arg(long, value_enum, default_value_t, help_heading = AGENTS)]
    pub path_prefix: PrefixMode,
    /// Host header that agents get: the client's without its port, the client's, or the agent's address
    #[arg(long, value_enum, default_value_t, help_heading = AGENTS)]
    pub host_header: HostHeader,

    /// Events that are logged: error, warn, info, debug or off, also for a single module as in
    /// `info,dcv_splice::worker=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter, help_heading = MONITORING)]
    pub log: Targets,
    /// Form of the log's lines: text or JSON, each an event with fields
    #[arg(long, value_enum, default_value_t, help_heading = MONITORING)]
    pub log_format: LogFormat,
    /// File for a line per request or session, or stdout
    #[arg(long, value_name = "PATH|stdout|off", default_value = "off", help_heading = MONITORING)]
    pub access_log: String,
    /// Form of its lines: as web servers write them, or a JSON object each, with more of it
    #[arg(long, value_enum, default_value_t, help_heading = MONITORING)]
    pub access_log_format: AccessLogFormat,
    /// Address of /metrics (Prometheus) and the admin pages, by plain HTTP
    #[arg(long, value_name = "ADDR:PORT|off", default_value = "127.0.0.1:9443", value_parser = admin_at)]
    #[arg(help_heading = MONITORING)]
    pub admin: AdminAt,
    /// Kernel-side metrics of connections (eBPF): if available, never, or required
    #[arg(long, value_enum, default_value_t, help_heading = MONITORING)]
    pub ebpf: EbpfMode,
    /// The eBPF program
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/dcv-splice/account.o", help_heading = MONITORING)]
    pub ebpf_object: PathBuf,

    /// Unix socket for `reload`, `reopen`, `upgrade` and `status`; only its own user and root can use it
    #[arg(long, value_name = "PATH", help_heading = PROCESS)]
    pub control: Option<PathBuf>,
    /// Worker threads [default: one per core] [range: 1 to 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = PROCESS)]
    pub workers: Option<u16>,
    /// How sockets are waited for and logs written: auto uses epoll and threads if `io_uring` is not available
    #[arg(long, value_enum, default_value_t, help_heading = PROCESS)]
    pub io_backend: IoBackend,
    /// Who seals and opens the TLS records of sessions: this program, the kernel, or the kernel if it is fast at it
    #[arg(long, value_enum, default_value_t, help_heading = PROCESS)]
    pub session_tls: SessionTls,

    /// The limits.
    #[command(flatten)]
    pub limits: LimitFlags,
}

const LISTENERS: &str = "Listeners";
const TLS: &str = "TLS to clients";
const CLIENTS: &str = "Clients";
const AGENTS: &str = "Agents";
const MONITORING: &str = "Monitoring";
const PROCESS: &str = "Process";

/// The limits, as typed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Client connections in total [range: 1 or more]
    #[arg(long, value_name = "N", default_value_t = 9_000)]
    pub connections_max: usize,
    /// Connections of one client address (IPv6: of one /64). A desktop has 6 to 8, and an office may share one address
    /// [range: 1 or more]
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    pub client_connections_max: usize,
    /// New connections per second of one client address; bursts of four times as many [range: 1 or more]
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub client_rate: u32,
    /// Concurrent TLS handshakes with clients, per worker; a new one ends the oldest [range: 1 or more]
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub handshakes_max: usize,
    /// Time for a client's TLS handshake, and for each request head [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub header_timeout: Duration,
    /// Size of a request head or response head [range: 256 B to 1 MiB]
    #[arg(long, value_name = "SIZE", default_value = "32KiB", value_parser = size(256..=1 << 20))]
    pub header_size_max: ByteSize,
    /// Size of a request line [range: 0 B to --header-size-max]
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = size(0..=u64::MAX))]
    pub request_line_max: ByteSize,
    /// Header lines of a request head or response head [range: 1 to 256]
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub header_count_max: usize,
    /// Size of a request body
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size(0..=u64::MAX))]
    pub body_max: ByteSize,
    /// Time that a request body may pause [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub body_idle_timeout: Duration,
    /// Time that an unused client connection is kept [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = time(SECOND..=YEAR))]
    pub client_keepalive_timeout: Duration,
    /// Time to connect to an agent, TLS handshake included [range: 1ms to 10m]
    #[arg(long, value_name = "TIME", default_value = "2500ms", value_parser = time(MILLISECOND..=CONNECT_MAX))]
    pub connect_timeout: Duration,
    /// Time to the first byte of an agent's response, and between two of its bytes [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time(SECOND..=YEAR))]
    pub response_timeout: Duration,
    /// Congestion control of connections to clients, by its name in the kernel: the system's if absent
    #[arg(long, value_name = "NAME", value_parser = congestion)]
    pub client_congestion: Option<String>,
    /// The same of connections to agents
    #[arg(long, value_name = "NAME", value_parser = congestion)]
    pub agent_congestion: Option<String>,
    /// Time in which a native client comes back to the agent that /pool/<name>/ gave its address; browsers have a cookie
    /// [range: 0s to 1day]
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time(Duration::ZERO..=DAY))]
    pub pool_affinity: Duration,
    /// Time from one run of --agents-command to the next; a run may take 30 s [range: 1s to 1day]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=DAY))]
    pub agents_command_interval: Duration,
    /// Time from one probe of an agent to the next; a quarter of it where its state may be about to change
    /// [range: 100ms to 1h]
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time(PROBE_MIN..=PROBE_MAX))]
    pub probe_interval: Duration,
    /// Time by which that varies at random, so that not all agents are probed at once [range: 0s to 1h]
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time(Duration::ZERO..=PROBE_MAX))]
    pub probe_jitter: Duration,
    /// Time for one probe [range: 1ms to 1h]
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time(MILLISECOND..=PROBE_MAX))]
    pub probe_timeout: Duration,
    /// Probes in a row that succeed before an agent that was down is up
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub probe_rise: u32,
    /// Probes in a row that fail before an agent that was up is down; a connection that fails counts as one
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub probe_fall: u32,
    /// Time that an unused agent connection is kept [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub agent_keepalive_timeout: Duration,
    /// Unused connections kept per agent and worker
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub agent_idle_max: usize,
    /// Time that sent bytes may stay unacknowledged by a client or an agent (`TCP_USER_TIMEOUT`, tcp(7))
    /// [range: 1s to 24days 20h 31m 23s]
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = time(SECOND..=TCP_USER_TIMEOUT_MAX))]
    pub tcp_user_timeout: Duration,
    /// Time that a session (WebSocket) may carry nothing [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time(SECOND..=YEAR))]
    pub session_idle_timeout: Duration,
    /// Time that a session may last at all [default: none; range: 1s to 1year]
    #[arg(long, value_name = "TIME", value_parser = time(SECOND..=YEAR))]
    pub session_max: Option<Duration>,
    /// The same after one side has ended the session; also the time for the response to a client that has ended its
    /// side [range: 1s to 1year]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time(SECOND..=YEAR))]
    pub half_closed_timeout: Duration,
    /// Bytes that one direction of a session may move before other sessions run [range: 4 KiB to 1 GiB]
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size(4096..=1 << 30))]
    pub relay_budget: ByteSize,
    /// Time in which a side should be able to take what stands for it in the proxy: less keeps desktops fresh over slow
    /// networks, 0s lets as much stand as fits [range: 0s to 1s]
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = time(Duration::ZERO..=SECOND))]
    pub queue_target: Duration,
    /// Time that sessions may go on after SIGTERM [range: 0s to 1year]
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time(Duration::ZERO..=YEAR))]
    pub drain_timeout: Duration,
    /// Time that sessions may go on in the old process after an upgrade [range: 0s to 1year]
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time(Duration::ZERO..=YEAR))]
    pub upgrade_drain_timeout: Duration,
}

/// Where the metrics are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AdminAt {
    /// Nowhere.
    Off,
    /// At this address.
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

/// The address that another program's notation probably means.
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

/// A name that the kernel could have (`TCP_CA_NAME_MAX`); whether it has it is asked when the configuration is checked.
fn congestion(text: &str) -> Result<String, String> {
    let is_name = (1..16).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then(|| text.to_owned()).ok_or_else(|| "must be a name such as bbr, cubic or reno".to_owned())
}

/// A level, or `dcv_splice::MODULE=LEVEL`; several with commas. A level that is spelt wrong would be a module's name, which
/// silences everything else.
fn log_filter(text: &str) -> Result<Targets, String> {
    for part in text.split(',') {
        let (target, level) =
            part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
        let is_known = target.is_none_or(|target| target.split("::").next() == Some("dcv_splice"));
        if !is_known
            || level.parse::<LevelFilter>().is_err()
            || level.parse::<u8>().is_ok()
            || level.is_empty()
        {
            return Err(
                "write a level (error, warn, info, debug, trace, off) or dcv_splice::MODULE=LEVEL".to_owned()
            );
        }
    }
    text.parse().map_err(|error| format!("{error}"))
}

fn address(text: &str) -> Result<IpAddr, AddrParseError> {
    Ok(text.parse::<IpAddr>()?.to_canonical())
}

/// A name or address, which is one word of a command.
fn agent_name(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word { Ok(text.to_owned()) } else { Err("write a name of --agents-file, or an address".to_owned()) }
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
    fn a_log_filter_names_levels_and_modules_of_this_program() {
        for good in ["info", "off", "WARN", "info,dcv_splice::worker=debug", "dcv_splice=trace,error"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "3", "worker=debug", "dcv_splice::worker=loud", "info,", "dcv_splice::worker"]
        {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

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
