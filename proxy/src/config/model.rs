//! The configuration that flags resolve to, one way. Everything that can be wrong is found here, before anything is
//! bound; every limit has its name here, and its default in `flags.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytesize::ByteSize;
use tracing_subscriber::filter::Targets;

use super::choices::{
    AccessLogFormat, AgentTls, ClientCert, EbpfMode, EndRevoked, Http2, Http2Websocket, IoBackend, LogFormat,
    Probe, SessionTls, TlsMin,
};
use super::flags::{AdminAt, Flags, LimitFlags};
use super::sources::{CommandWords, ResolverUrl};
use crate::access::admission::{ClientLimits, ClientNetworks};
use crate::access::passwords::PasswordRules;
use crate::access::policy::Policy;
use crate::access::route::AllowedAgents;
use crate::agents::directory_text::Format;
use crate::agents::health::{ProbeKind, ProbeRules};
use crate::agents::pool::PoolLimits;
use crate::http::h1::exchange::ExchangeLimits;
use crate::http::h1::head::{HEADER_COUNT_MAX, HeadLimits};
use crate::session::relay::RelayLimits;
use crate::tls::{AgentTrust, CertificatePair, ClientAuthority, ClientDemands};
use crate::transport::net::TcpOptions;

/// Ports of agents: as many as the kernel's program compares with.
pub const AGENT_PORTS_MAX: usize = 8;

/// Where the access log goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AccessLogTo {
    /// Nowhere.
    Off,
    /// The standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// Limits of a client connection before a session, and how long sessions may outlive a stop.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Client connections in all workers.
    pub connections_max: usize,
    /// Clients' TLS handshakes in flight, per worker.
    pub handshakes_max: usize,
    /// For a TLS handshake, and for a request head from its first byte.
    pub header_timeout: Duration,
    /// Of the request head.
    pub head: HeadLimits,
    /// For an unused client connection.
    pub client_keepalive_timeout: Duration,
    /// For connecting to an agent, TLS handshake included.
    pub connect_timeout: Duration,
    /// For sent bytes that are not acknowledged.
    pub tcp_user_timeout: Duration,
    /// For sessions after the stop signal.
    pub drain_timeout: Duration,
    /// For sessions in the old process after an upgrade.
    pub upgrade_drain_timeout: Duration,
}

/// The configuration of a process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it comes from.
    pub file: Option<PathBuf>,
    /// Where the one that runs is reached.
    pub control: Option<PathBuf>,
    /// HTTPS listeners.
    pub listen: Vec<SocketAddr>,
    /// Plain HTTP listeners.
    pub listen_plain: Vec<SocketAddr>,
    /// Where metrics are shown.
    pub admin: Option<SocketAddr>,
    /// Whether the kernel counts connections.
    pub ebpf: EbpfMode,
    /// The program that it counts by.
    pub ebpf_object: PathBuf,
    /// Where clients may come from.
    pub clients: ClientNetworks,
    /// Limits of one client.
    pub client_limits: ClientLimits,
    /// The rules by which it is decided who answers a request.
    pub policy: Policy,
    /// The file of the agents that have names.
    pub agents_file: Option<PathBuf>,
    /// The program that lists agents, and how often it is run.
    pub agents_command: Option<(CommandWords, Duration)>,
    /// Names in DNS that lead to agents.
    pub agents_dns: Vec<String>,
    /// The name servers to ask; the system's where there are none.
    pub dns_servers: Vec<SocketAddr>,
    /// Where the states of agents that commands have set are remembered.
    pub state_file: Option<PathBuf>,
    /// Who is asked which agent has a session.
    pub session_resolver: Option<ResolverUrl>,
    /// What its certificate is verified with.
    pub session_resolver_ca: Option<PathBuf>,
    /// Where that is answered.
    pub resolver_listen: Option<SocketAddr>,
    /// The file that cookies of pools are signed by.
    pub cookie_key: Option<PathBuf>,
    /// How long a native client comes back to the agent that a pool gave it.
    pub pool_affinity: Duration,
    /// How agents are probed, if they are.
    pub probe: Option<ProbeRules>,
    /// The ports that agents may have, the usual one first.
    pub agent_ports: Vec<u16>,
    /// How agents are verified; none where they speak plain HTTP.
    pub agent_trust: Option<AgentTrust>,
    /// The requirements for clients in TLS.
    pub client_demands: ClientDemands,
    /// The proxy's own certificates.
    pub certificates: Vec<CertificatePair>,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    /// Whether a WebSocket may be opened over it.
    pub http2_websocket: bool,
    /// The value of `Strict-Transport-Security`, in place of agents' own.
    pub hsts: Option<String>,
    /// The users, if passwords are needed.
    pub passwords: Option<PasswordRules>,
    /// Whether sessions end whose user or client is no longer let in.
    pub end_revoked: bool,
    /// How long a session may last.
    pub session_max: Option<Duration>,
    /// Threads that serve.
    pub workers: usize,
    /// Which events are logged.
    pub log: Targets,
    /// How they are written.
    pub log_format: LogFormat,
    /// Where the access log goes.
    pub access_log: AccessLogTo,
    /// How its lines are written.
    pub access_log_format: AccessLogFormat,
    /// How workers wait for sockets.
    pub io_backend: IoBackend,
    /// Who does the TLS records of sessions.
    pub session_tls: SessionTls,
    /// Limits of a client connection before a session.
    pub limits: ConnectionLimits,
    /// Limits of an exchange.
    pub exchange: ExchangeLimits,
    /// Limits of a relay.
    pub relay: RelayLimits,
    /// Limits of the agent pool.
    pub pool: PoolLimits,
    /// The congestion control of connections to clients; none: the system's.
    pub client_congestion: Option<Arc<str>>,
    /// The same of connections to agents.
    pub agent_congestion: Option<Arc<str>>,
}

impl Config {
    /// The options of connections to clients.
    pub fn client_tcp(&self) -> TcpOptions {
        TcpOptions { user_timeout: self.limits.tcp_user_timeout, congestion: self.client_congestion.clone() }
    }

    /// The options of connections to agents.
    pub fn agent_tcp(&self) -> TcpOptions {
        TcpOptions { user_timeout: self.limits.tcp_user_timeout, congestion: self.agent_congestion.clone() }
    }
}

impl Config {
    /// The first setting that differs from `other`'s and that a reload can't change.
    pub fn fixed_setting_unlike(&self, other: &Self) -> Option<&'static str> {
        FIXED.iter().find(|(_, differs)| differs(self, other)).map(|(name, _)| *name)
    }
}

/// Whether the setting differs between two configurations.
type Differs = fn(&Config, &Config) -> bool;

/// The settings that only an upgrade or a restart changes.
const FIXED: [(&str, Differs); 12] = [
    ("listen", |one, other| one.listen != other.listen),
    ("listen-plain", |one, other| one.listen_plain != other.listen_plain),
    ("workers", |one, other| one.workers != other.workers),
    ("io-backend", |one, other| one.io_backend != other.io_backend),
    ("session-tls", |one, other| one.session_tls != other.session_tls),
    ("agent-port", |one, other| one.policy.agent_port != other.policy.agent_port),
    ("agent-ports", |one, other| one.agent_ports != other.agent_ports),
    ("control", |one, other| one.control != other.control),
    ("admin", |one, other| one.admin != other.admin),
    ("log-format", |one, other| one.log_format != other.log_format),
    ("ebpf", |one, other| one.ebpf != other.ebpf),
    ("ebpf-object", |one, other| one.ebpf_object != other.ebpf_object),
];

/// Whether a reload changes the setting; if not, an upgrade does.
pub fn is_reloadable(key: &str) -> bool {
    FIXED.iter().all(|(name, _)| *name != key)
}

/// Invalid flags, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A certificate without its key, or a key without its certificate.
    #[error("{0} --cert but {1} --key: give each --cert PEM its --key PEM, in the same order")]
    Pairs(usize, usize),
    /// Responses for some certificates only.
    #[error("{0} --ocsp but {1} --cert: give each --cert its --ocsp DER in the same order, or none")]
    Staples(usize, usize),
    /// The default agent may not be dialled.
    #[error("--default-agent {0} lies in no --agents prefix: add --agents {0}/{1}")]
    DefaultAgent(IpAddr, u8),
    /// Verification without anything to verify by.
    #[error("--agent-tls verify needs --agent-ca PEM, or --agent-pin sha256:HEX")]
    NothingToVerifyBy,
    /// Something to verify by without verification.
    #[error("--agent-ca and --agent-pin verify nothing without --agent-tls verify")]
    NotVerified,
    /// A certificate of clients is welcome that nobody can verify.
    #[error("--client-cert optional says nothing without --client-ca PEM")]
    NoClientCa,
    /// A file of agents in a format that is not known.
    #[error("--agents-file {0} has to end with .toml or .json")]
    AgentsFile(PathBuf),
    /// TLS to a session resolver that nobody can verify.
    #[error(
        "--session-resolver https:// needs --session-resolver-ca PEM: public ones are in /etc/ssl/certs/ca-certificates.crt"
    )]
    NoResolverCa,
    /// More ports than the kernel's counters have places for.
    #[error("--agent-port and --agent-ports are more than {AGENT_PORTS_MAX} ports")]
    AgentPorts,
    /// One address twice, or as part of another one.
    #[error("{0} and {1} can't both be listened on: leave one out")]
    Overlap(SocketAddr, SocketAddr),
    /// A limit that can't work.
    #[error("--{0} {1}")]
    Limit(&'static str, &'static str),
}

impl ConfigError {
    /// The setting to look at first.
    pub fn key(&self) -> Option<&'static str> {
        Some(match self {
            Self::Pairs(..) => "cert",
            Self::Staples(..) => "ocsp",
            Self::DefaultAgent(..) => "default-agent",
            Self::AgentsFile(_) => "agents-file",
            Self::NoResolverCa => "session-resolver",
            Self::AgentPorts => "agent-ports",
            Self::NothingToVerifyBy | Self::NotVerified => "agent-tls",
            Self::NoClientCa => "client-cert",
            Self::Overlap(..) => "listen",
            Self::Limit(key, _) => key,
        })
    }
}

impl Flags {
    /// Resolves the flags; no file is read and nothing is bound. The errors are all that there are.
    pub fn resolve(self) -> Result<Config, Vec<ConfigError>> {
        let problems = self.problems();
        if problems.is_empty() { Ok(self.draft()) } else { Err(problems) }
    }

    /// The problems of the flags together.
    pub(crate) fn problems(&self) -> Vec<ConfigError> {
        let mut problems: Vec<_> = self.overlaps().chain(self.limits.problems()).collect();
        let agents = AllowedAgents::new(self.agents.clone());
        if let Some(agent) = self.default_agent.filter(|agent| !agents.allows(*agent)) {
            problems.push(ConfigError::DefaultAgent(agent, if agent.is_ipv4() { 32 } else { 128 }));
        }
        if let Some(file) = self.agents_file.as_ref().filter(|file| Format::of(file).is_none()) {
            problems.push(ConfigError::AgentsFile(file.clone()));
        }
        let is_secure = self.session_resolver.as_ref().is_some_and(|url| url.is_secure);
        if is_secure && self.session_resolver_ca.is_none() {
            problems.push(ConfigError::NoResolverCa);
        }
        if self.ports().len() > AGENT_PORTS_MAX {
            problems.push(ConfigError::AgentPorts);
        }
        if self.client_cert == ClientCert::Optional && self.client_ca.is_none() {
            problems.push(ConfigError::NoClientCa);
        }
        let verified = self.agent_ca.is_some() || !self.agent_pin.is_empty();
        match self.agent_tls {
            AgentTls::Verify if !verified => problems.push(ConfigError::NothingToVerifyBy),
            AgentTls::Insecure | AgentTls::Off if verified => problems.push(ConfigError::NotVerified),
            _ => {}
        }
        if self.cert.len() != self.key.len() {
            problems.push(ConfigError::Pairs(self.cert.len(), self.key.len()));
        }
        if !self.ocsp.is_empty() && self.ocsp.len() != self.cert.len() {
            problems.push(ConfigError::Staples(self.ocsp.len(), self.cert.len()));
        }
        problems
    }

    /// What the flags come to, with or without problems: to look at the files that it names, and to run by if there are
    /// none.
    pub(crate) fn draft(self) -> Config {
        Config {
            clients: ClientNetworks {
                allowed: self.allow_clients.clone().into(),
                denied: self.deny_clients.clone().into(),
                proxy_protocol_sources: self.proxy_protocol.clone().into(),
                trusted_proxies: self.trust_forwarded.clone().into(),
            },
            client_limits: self.limits.client(),
            policy: self.policy(),
            agent_ports: self.ports(),
            agents_file: self.agents_file.clone(),
            agents_command: self.agents_command.clone().map(|it| (it, self.limits.agents_command_interval)),
            agents_dns: self.names(),
            dns_servers: self.dns_server.clone(),
            state_file: self.state_file.clone(),
            session_resolver: self.session_resolver.clone(),
            session_resolver_ca: self.session_resolver_ca.clone(),
            resolver_listen: self.resolver_listen,
            cookie_key: self.cookie_key.clone(),
            pool_affinity: self.limits.pool_affinity,
            probe: self.limits.probe(self.probe),
            agent_trust: self.trust(),
            client_demands: ClientDemands {
                tls13: self.tls_min == TlsMin::Tls13,
                http2: self.http2 == Http2::On,
                certificate: self.client_ca.clone().map(|file| {
                    let required = self.client_cert == ClientCert::Required;
                    ClientAuthority { file, required }
                }),
            },
            certificates: self.certificates(),
            http2: self.http2 == Http2::On,
            http2_websocket: self.http2_websocket == Http2Websocket::On,
            hsts: self.hsts_max_age.map(|age| format!("max-age={}", age.as_secs())),
            passwords: self
                .htpasswd
                .clone()
                .map(|file| PasswordRules { file, agents: self.htpasswd_agents.clone().into() }),
            end_revoked: self.end_revoked == EndRevoked::On,
            session_max: self.limits.session_max,
            workers: self.workers.map_or_else(cores, usize::from),
            access_log: access_log(&self.access_log),
            access_log_format: self.access_log_format,
            log: self.log,
            log_format: self.log_format,
            io_backend: self.io_backend,
            session_tls: self.session_tls,
            limits: self.limits.connection(),
            exchange: self.limits.exchange(),
            relay: self.limits.relay(),
            pool: self.limits.pool(),
            client_congestion: self.limits.client_congestion.as_deref().map(Arc::from),
            agent_congestion: self.limits.agent_congestion.as_deref().map(Arc::from),
            file: self.config,
            control: self.control,
            ebpf: self.ebpf,
            ebpf_object: self.ebpf_object,
            admin: if let AdminAt::Address(address) = self.admin { Some(address) } else { None },
            listen: self.listen,
            listen_plain: self.listen_plain,
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            agents: AllowedAgents::new(self.agents.clone()),
            default_agent: self.default_agent,
            agent_domain: self.agent_domain.clone(),
            agent_port: self.agent_port,
            path_prefix: self.path_prefix,
            host_header: self.host_header,
            body_max: self.limits.body_max.as_u64(),
            has_passwords: self.htpasswd.is_some(),
            has_session_resolver: self.session_resolver.is_some(),
        }
    }

    /// Each once.
    fn names(&self) -> Vec<String> {
        let names: BTreeSet<_> = self.agents_dns.iter().map(|name| name.to_ascii_lowercase()).collect();
        names.into_iter().collect()
    }

    fn ports(&self) -> Vec<u16> {
        let mut ports = vec![self.agent_port];
        for port in &self.agent_ports {
            if !ports.contains(port) {
                ports.push(*port);
            }
        }
        ports
    }

    fn overlaps(&self) -> impl Iterator<Item = ConfigError> {
        let admin = if let AdminAt::Address(address) = self.admin { Some(address) } else { None };
        let all = self.listen.iter().chain(&self.listen_plain).chain(&admin).chain(&self.resolver_listen);
        let all: Vec<_> = all.copied().collect();
        let overlap = |index: usize| {
            let at = all[index];
            let before = all[..index].iter().find(|before| overlaps(**before, at))?;
            Some(ConfigError::Overlap(*before, at))
        };
        (0..all.len()).filter_map(overlap).collect::<Vec<_>>().into_iter()
    }

    fn trust(&self) -> Option<AgentTrust> {
        match (self.agent_tls, &self.agent_ca) {
            (AgentTls::Verify, Some(file)) => {
                Some(AgentTrust::Authority { file: file.clone(), name: self.agent_name.clone() })
            }
            (AgentTls::Verify, None) => Some(AgentTrust::Pinned(self.agent_pin.clone())),
            (AgentTls::Insecure, _) => Some(AgentTrust::Anything),
            (AgentTls::Off, _) => None,
        }
    }

    fn certificates(&self) -> Vec<CertificatePair> {
        let pairs = self.cert.iter().zip(&self.key).enumerate();
        let pair = |(index, (certificate, key)): (usize, (&PathBuf, &PathBuf))| CertificatePair {
            certificate: certificate.clone(),
            key: key.clone(),
            ocsp: self.ocsp.get(index).cloned(),
        };
        pairs.map(pair).collect()
    }
}

/// Whether one of them would take the other's connections: every address of a family is part of its unspecified one.
fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    let same = a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified());
    one.port() != 0 && one.port() == other.port() && same
}

/// As they were at the start: the workers are as many, whatever a reload finds.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn access_log(to: &str) -> AccessLogTo {
    match to {
        "off" => AccessLogTo::Off,
        "stdout" => AccessLogTo::Stdout,
        path => AccessLogTo::File(PathBuf::from(path)),
    }
}

/// As the size of something in memory.
fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

impl LimitFlags {
    fn head(&self) -> HeadLimits {
        HeadLimits {
            header_size_max: bytes(self.header_size_max),
            request_line_max: bytes(self.request_line_max),
            header_count_max: self.header_count_max,
        }
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = ConfigError> {
        let bad = [
            (
                "header-count-max",
                self.header_count_max == 0 || self.header_count_max > HEADER_COUNT_MAX,
                "must lie between 1 and 256",
            ),
            (
                "request-line-max",
                self.request_line_max > self.header_size_max,
                "must not be more than --header-size-max",
            ),
            ("connections-max", self.connections_max == 0, "must be at least 1"),
            ("client-connections-max", self.client_connections_max == 0, "must be at least 1"),
            ("handshakes-max", self.handshakes_max == 0, "must be at least 1"),
        ];
        bad.into_iter().filter(|(_, is_bad, _)| *is_bad).map(|(key, _, what)| ConfigError::Limit(key, what))
    }

    fn connection(&self) -> ConnectionLimits {
        ConnectionLimits {
            connections_max: self.connections_max,
            handshakes_max: self.handshakes_max,
            header_timeout: self.header_timeout,
            head: self.head(),
            client_keepalive_timeout: self.client_keepalive_timeout,
            connect_timeout: self.connect_timeout,
            tcp_user_timeout: self.tcp_user_timeout,
            drain_timeout: self.drain_timeout,
            upgrade_drain_timeout: self.upgrade_drain_timeout,
        }
    }

    fn client(&self) -> ClientLimits {
        ClientLimits { connections_max: self.client_connections_max, per_second: self.client_rate }
    }

    fn exchange(&self) -> ExchangeLimits {
        ExchangeLimits {
            head: self.head(),
            body_idle_timeout: self.body_idle_timeout,
            response_timeout: self.response_timeout,
            body_max: self.body_max.as_u64(),
            half_closed_timeout: self.half_closed_timeout,
        }
    }

    fn relay(&self) -> RelayLimits {
        RelayLimits {
            budget: bytes(self.relay_budget),
            idle_timeout: self.session_idle_timeout,
            half_closed_timeout: self.half_closed_timeout,
            queue_target: Some(self.queue_target).filter(|target| !target.is_zero()),
        }
    }

    fn probe(&self, probe: Probe) -> Option<ProbeRules> {
        let kind = match probe {
            Probe::Off => return None,
            Probe::Tcp => ProbeKind::Tcp,
            Probe::Tls => ProbeKind::Tls,
            Probe::Http => ProbeKind::Http,
        };
        Some(ProbeRules {
            kind,
            interval: self.probe_interval,
            jitter: self.probe_jitter,
            timeout: self.probe_timeout,
            rise: self.probe_rise,
            fall: self.probe_fall,
        })
    }

    fn pool(&self) -> PoolLimits {
        PoolLimits { idle_timeout: self.agent_keepalive_timeout, per_agent: self.agent_idle_max }
    }
}
