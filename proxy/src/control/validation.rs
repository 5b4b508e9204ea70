//! What a configuration comes to once its files are read: everything that can be found wrong before anything is bound,
//! and before anything that runs is changed. Opens no file itself and starts nothing but the thread of the passwords.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::access::admission::Admission;
use crate::access::htpasswd::Users;
use crate::access::passwords::{PasswordRules, Passwords};
use crate::access::pool_cookie::PoolCookies;
use crate::agents::connectors::Connectors;
use crate::agents::directory::{Directory, DirectoryRules};
use crate::agents::directory_text::{Format, Problem};
use crate::agents::health::FailureMarks;
use crate::agents::known::KnownAgents;
use crate::agents::session_resolver::SessionResolver;
use crate::config::{AccessLogFormat, AccessLogTo, Config, Resolved, Settings};
use crate::observe::access_log::AccessLog;
use crate::os::files::{Files, Location};
use crate::os::log::{Log, Target};
use crate::tls::{self, Acceptor, AsyncClient, CertificateExpiry, Connector};
use crate::transport::congestion::try_without_capabilities;
use crate::transport::kernel_tls::KernelTls;
use crate::worker::context::{ProcessState, SharedState};
use crate::worker::load_balancer::{LoadBalancer, WorkerInbox};

/// A configuration that can be run by.
pub(super) struct Prepared {
    /// The configuration, and where each of its settings comes from.
    pub resolved: Resolved,
    /// The agents that have names.
    pub directory: Directory,
    acceptor: Acceptor,
    connectors: Connectors,
    users: Option<Users>,
    pool_cookies: Option<PoolCookies>,
    /// What a session resolver is verified with (PEM).
    pub resolver_ca: Option<String>,
    lines: Target,
    /// Warnings, each with its place in the configuration file.
    pub warnings: Vec<String>,
    /// Until when the certificates can be used that are shown to clients.
    pub expiries: Vec<CertificateExpiry>,
    /// What the kernel may do of sessions' TLS.
    pub kernel_tls: KernelTls,
}

impl Prepared {
    /// Resolves the settings and reads their files. The error has a line for each thing that is wrong, with its place in
    /// the configuration file where there is one.
    pub(super) fn new(settings: &Settings, files: &dyn Files) -> Result<Self, String> {
        let (resolved, mut problems) = settings.examine(files);
        match resolved.map(|resolved| Self::of(resolved, files)) {
            Some(Ok(prepared)) if problems.is_empty() => return Ok(prepared),
            Some(Err(more)) => problems.push(more),
            _ => {}
        }
        Err(problems.join("\n"))
    }

    /// The same for settings that were resolved before. The error has a line for each file that can't be used.
    pub(super) fn of(resolved: Resolved, files: &dyn Files) -> Result<Self, String> {
        let mut problems = Vec::new();
        let directory = read_directory(&resolved, files).map_err(|wrong| problems.extend(wrong));
        let mut at_place =
            |file: Option<&Path>, error: &dyn fmt::Display| problems.push(resolved.at_place(file, error));
        let config = &resolved.config;
        let acceptor = Acceptor::demanding(&config.certificates, &config.client_demands, files)
            .map_err(|errors| errors.iter().for_each(|error| at_place(error.file(), error)));
        let connector = config.agent_trust.as_ref().map(|trust| Connector::reading(trust, files));
        let connector = connector.transpose().map_err(|error| at_place(error.file(), &error));
        let connectors = connector.and_then(|usual| {
            let own = Connectors::for_all(usual)
                .with_own(directory.as_ref().unwrap_or(&Directory::default()), files);
            own.map_err(|errors| {
                for (name, error) in &errors {
                    at_place(None, &format!("agent {name}: {error}"));
                }
            })
        });
        let users = config.passwords.as_ref().map(|rules| {
            rules.read(files).map_err(|error| at_place(Some(&rules.file), &format!("--htpasswd {error}")))
        });
        let users = users.transpose();
        let pool_cookies = config.cookie_key.as_ref().map(|file| {
            let told = |error| at_place(Some(file), &format!("--cookie-key {}: {error}", file.display()));
            PoolCookies::reading(file, files).map_err(told)
        });
        let pool_cookies = pool_cookies.transpose();
        let resolver_ca = read_resolver_ca(config, files).map_err(|(file, error)| {
            at_place(Some(file), &format!("--session-resolver-ca {}: {error}", file.display()));
        });
        let lines = open_log(&config.access_log, files).map_err(|(file, error)| {
            at_place(Some(file), &format!("--access-log {}: {error}", file.display()));
        });
        for (flag, name) in [("client", &config.client_congestion), ("agent", &config.agent_congestion)] {
            let tried = name.as_ref().map_or(Ok(()), |name| try_without_capabilities(name));
            if let (Err(error), Some(name)) = (tried, name) {
                at_place(None, &format!("--{flag}-congestion {name}: {}", congestion_advice(&error)));
            }
        }
        match (acceptor, connectors, users, pool_cookies, resolver_ca, lines, directory) {
            (
                Ok(acceptor),
                Ok(connectors),
                Ok(users),
                Ok(pool_cookies),
                Ok(resolver_ca),
                Ok(lines),
                Ok(directory),
            ) if problems.is_empty() => {
                let warnings = warnings(&resolved, files);
                let expiries = tls::expiries(&config.certificates, files);
                Ok(Self {
                    resolved,
                    directory,
                    acceptor,
                    connectors,
                    users,
                    pool_cookies,
                    resolver_ca,
                    lines,
                    warnings,
                    expiries,
                    kernel_tls: KernelTls::NONE,
                })
            }
            _ => Err(problems.join("\n")),
        }
    }

    /// The configuration.
    pub(super) fn config(&self) -> &Config {
        &self.resolved.config
    }

    /// TLS to an agent; none where it speaks plain HTTP.
    pub(super) fn connector(&self, agent: SocketAddr) -> Option<&Connector> {
        self.connectors.of(agent)
    }

    /// Whether passwords are asked for and nobody has one.
    pub(super) fn has_no_users(&self) -> bool {
        self.users.as_ref().is_some_and(Users::is_empty)
    }

    /// The shared state at the start. Starts the thread of the passwords.
    pub(super) fn share(
        self,
        log: &Log,
        marks: FailureMarks,
        session_resolver: SessionResolver,
    ) -> io::Result<(SharedState, Vec<WorkerInbox>, Target)> {
        let config = self.resolved.config;
        let (balance, inboxes) = LoadBalancer::new(config.workers);
        let process = ProcessState {
            kernel_tls: self.kernel_tls,
            ..ProcessState::new(balance, marks, session_resolver)
        };
        let shared = SharedState {
            resolver_ca: self.resolver_ca.map(Arc::from),
            pool_cookies: self.pool_cookies.unwrap_or_else(|| process.pool_cookies.clone()),
            admission: Admission::new(config.clients.clone(), config.client_limits),
            passwords: passwords(config.passwords.as_ref(), self.users, None)?,
            log: access_log(log, &config),
            acceptor: self.acceptor,
            process,
            agents: KnownAgents {
                directory: self.directory,
                connectors: self.connectors,
                ..KnownAgents::default()
            },
            config: Arc::new(config),
        };
        Ok((shared, inboxes, self.lines))
    }

    /// What the workers share from now on, in place of `before`: who is in stays counted, who has guessed stays known.
    pub(super) fn replace(self, before: &SharedState, log: &Log) -> io::Result<(SharedState, Target)> {
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let config = self.resolved.config;
        let shared = SharedState {
            resolver_ca: self.resolver_ca.map(Arc::from),
            pool_cookies: self.pool_cookies.unwrap_or_else(|| before.process.pool_cookies.clone()),
            admission: before.admission.renewed(config.clients.clone(), config.client_limits),
            passwords: passwords(config.passwords.as_ref(), self.users, before.passwords.as_ref())?,
            log: access_log(log, &config),
            acceptor: self.acceptor,
            process: before.process.clone(),
            agents: KnownAgents {
                directory: self.directory,
                health: before.agents.health.clone(),
                connectors: self.connectors,
            },
            config: Arc::new(config),
        };
        Ok((shared, self.lines))
    }
}

/// The agents that have names; or a line for each thing that is wrong with them.
fn read_directory(resolved: &Resolved, files: &dyn Files) -> Result<Directory, Vec<String>> {
    let config = &resolved.config;
    let Some((path, format)) = config.agents_file.as_ref().and_then(|path| Some((path, Format::of(path)?)))
    else {
        return Ok(Directory::default());
    };
    let unreadable = |error: &dyn fmt::Display| {
        vec![resolved.at_place(Some(path), &format!("--agents-file {}: {error}", path.display()))]
    };
    let text = files.read(path).map_err(|error| unreadable(&error))?;
    let text = String::from_utf8(text)
        .map_err(|_| unreadable(&"is no UTF-8 text (`iconv -t UTF-8` makes it so)"))?;
    let is_allowed = |address| config.policy.agents.allows(address);
    let rules = DirectoryRules { ports: &config.agent_ports, is_allowed: &is_allowed, names_files: true };
    Directory::parse(&text, format, rules).map_err(|problems| {
        let told = |Problem { at, what }| format!("{}: {what}", Location::new(path, &text, at));
        problems.into_iter().map(told).collect()
    })
}

/// What a session resolver's certificate is verified with.
fn read_resolver_ca<'a>(config: &'a Config, files: &dyn Files) -> Result<Option<String>, (&'a Path, String)> {
    let (Some(url), Some(file)) = (&config.session_resolver, &config.session_resolver_ca) else {
        return Ok(None);
    };
    let failed = |error: &dyn fmt::Display| (file.as_path(), error.to_string());
    let text = files.read(file).map_err(|error| failed(&error))?;
    let text = String::from_utf8(text).map_err(|_| failed(&"is no text"))?;
    AsyncClient::trusting(text.as_bytes(), &url.host).map_err(|error| failed(&error))?;
    Ok(Some(text))
}

/// The text to show where a congestion control can't be used.
fn congestion_advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "the kernel has none of this name (sysctl net.ipv4.tcp_available_congestion_control)".to_owned()
        }
        io::ErrorKind::PermissionDenied => "only the administrator may use it: add it to the sysctl \
            net.ipv4.tcp_allowed_congestion_control"
            .to_owned(),
        _ => error.to_string(),
    }
}

/// What is to be said of certificates and keys that can be used.
fn warnings(resolved: &Resolved, files: &dyn Files) -> Vec<String> {
    let config = &resolved.config;
    let (trust, demands) = (config.agent_trust.as_ref(), &config.client_demands);
    let warnings = tls::warnings(&config.certificates, demands, trust, files);
    warnings.iter().map(|it| resolved.at_place(Some(&it.file), &it.says)).collect()
}

fn passwords(
    rules: Option<&PasswordRules>,
    users: Option<Users>,
    before: Option<&Passwords>,
) -> io::Result<Option<Passwords>> {
    let Some((rules, users)) = rules.zip(users) else { return Ok(None) };
    let renewed = match before {
        Some(before) => before.renewed(rules, users),
        None => Passwords::start(rules, users)?,
    };
    Ok(Some(renewed))
}

fn access_log(log: &Log, config: &Config) -> AccessLog {
    match config.access_log {
        AccessLogTo::Off => AccessLog::default(),
        _ => AccessLog::to(log.clone(), config.access_log_format == AccessLogFormat::Json),
    }
}

/// Where the lines go.
pub(super) fn open_log<'a>(to: &'a AccessLogTo, files: &dyn Files) -> Result<Target, (&'a Path, io::Error)> {
    match to {
        AccessLogTo::Off => Ok(Target::Off),
        AccessLogTo::Stdout => Target::standard(io::stdout()).map_err(|error| (Path::new("stdout"), error)),
        AccessLogTo::File(path) => {
            files.append(path).map(Target::File).map_err(|error| (path.as_path(), error))
        }
    }
}
