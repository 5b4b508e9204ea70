//! Follows names in DNS for as long as their records are good (their TTL), and reports what they come to.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::messages::Report;
use crate::agents::discovered::FoundAddress;

/// Names are asked for no more often, and no less, whatever their TTL.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_hours(1);
/// From a question without an answer to the next.
const RETRY: Duration = Duration::from_secs(5);
/// For one question to a name server.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// For all questions that one name takes.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);
/// Hosts of a service that are asked for at a time, and for how long each.
const HOSTS_MAX: usize = 32;
const HOST_TIMEOUT: Duration = Duration::from_secs(4);
/// For how long it is taken for granted that a name has no records.
const UNKNOWN_TIME: Duration = Duration::from_secs(30);
/// Addresses of one name; more are left out.
const ADDRESSES_MAX: usize = 10_000;

/// How the system asks name servers; it is read before the process gives its files up.
pub(super) type SystemResolver = Result<(ResolverConfig, ResolverOpts), String>;

/// The names that are followed.
pub(super) struct Discovery {
    system: SystemResolver,
    reports: mpsc::Sender<Report>,
    servers: Vec<SocketAddr>,
    names: HashMap<String, AbortHandle>,
}

/// How the system asks name servers (resolv.conf(5)). Reads a file.
pub(super) fn system() -> SystemResolver {
    read_system_conf().map_err(|error| format!("/etc/resolv.conf: {error}"))
}

impl Discovery {
    pub(super) fn new(system: SystemResolver, reports: mpsc::Sender<Report>) -> Self {
        Self { system, reports, servers: Vec::new(), names: HashMap::new() }
    }

    /// Follows these names from now on.
    pub(super) fn set(&mut self, names: Vec<String>, servers: Vec<SocketAddr>) {
        let is_kept = |name: &str| self.servers == servers && names.iter().any(|other| other == name);
        self.names.extract_if(|name, _| !is_kept(name)).for_each(|(_, task)| task.abort());
        self.servers = servers;
        for name in names {
            if !self.names.contains_key(&name) {
                let follow = follow(self.resolver(), name.clone(), self.reports.clone());
                self.names.insert(name, tokio::spawn(follow).abort_handle());
            }
        }
    }

    /// Who asks name servers.
    pub(super) fn resolver(&self) -> Result<TokioResolver, String> {
        let (config, mut options) = match (&*self.servers, &self.system) {
            ([], system) => system.clone()?,
            (servers, _) => (ResolverConfig::from_name_servers(by_server(servers)), ResolverOpts::default()),
        };
        // It has no files.
        options.use_hosts_file = ResolveHosts::Never;
        // One family that is not answered keeps the other from being used for no longer than a user waits.
        (options.timeout, options.attempts) = (QUESTION_TIMEOUT, 1);
        // They are asked for again when it is time to.
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build().map_err(|error| error.to_string())
    }
}

/// Each by UDP, and by TCP where that is not enough.
fn by_server(servers: &[SocketAddr]) -> Vec<NameServerConfig> {
    let server = |server: &SocketAddr| {
        let way = |mut way: ConnectionConfig| {
            way.port = server.port();
            way
        };
        let ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(way);
        NameServerConfig::new(server.ip(), true, ways.to_vec())
    };
    servers.iter().map(server).collect()
}

async fn follow(resolver: Result<TokioResolver, String>, name: String, reports: mpsc::Sender<Report>) {
    let (mut known, mut good) = (None, Vec::new());
    loop {
        let (found, pause) = match &resolver {
            Ok(resolver) => match tokio::time::timeout(LOOKUP_TIMEOUT, look_up(resolver, &name, &good)).await
            {
                Ok(Ok((found, until))) => {
                    let left = until.saturating_duration_since(Instant::now());
                    (Ok(found), left.clamp(PAUSE_MIN, PAUSE_MAX))
                }
                Ok(Err(error)) => (Err(error), RETRY),
                Err(_) => (Err("name servers do not answer".to_owned()), RETRY),
            },
            Err(error) => (Err(error.clone()), PAUSE_MAX),
        };
        if let Ok(found) = &found {
            good.clone_from(found);
        }
        if known.as_ref() != Some(&found) {
            known = Some(found.clone());
            if reports.send(Report::Name { name: name.clone(), found }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// What a name comes to, sorted, and until when that is good. Of what can't be asked for now, `before` is taken.
async fn look_up(
    resolver: &TokioResolver,
    name: &str,
    before: &[FoundAddress],
) -> Result<(Vec<FoundAddress>, Instant), String> {
    let (mut found, until) = if name.starts_with('_') {
        services(resolver, name, before).await?
    } else {
        let known: Vec<_> = before.iter().map(|it| it.address).collect();
        let (addresses, until) = addresses(resolver, full(name)?, &known).await?;
        let found = |address| FoundAddress { host: String::new(), port: None, address };
        (addresses.into_iter().map(found).collect(), until)
    };
    found.sort_unstable();
    found.dedup();
    found.truncate(ADDRESSES_MAX);
    Ok((found, until))
}

/// The hosts of a service, with their addresses. A host without any is left out.
async fn services(
    resolver: &TokioResolver,
    name: &str,
    before: &[FoundAddress],
) -> Result<(Vec<FoundAddress>, Instant), String> {
    let lookup = resolver.srv_lookup(full(name)?).await.map_err(|error| error.to_string())?;
    let mut until = lookup.valid_until();
    let mut hosts = BTreeSet::new();
    for record in lookup.answers() {
        if let RData::SRV(service) = &record.data {
            hosts.insert((service.target.clone(), service.port));
        }
    }
    let (mut found, mut lookups, mut hosts) =
        (Vec::new(), JoinSet::new(), hosts.into_iter().take(ADDRESSES_MAX));
    loop {
        while lookups.len() < HOSTS_MAX
            && let Some((host, port)) = hosts.next()
        {
            let text = host.to_utf8().trim_end_matches('.').to_owned();
            let known: Vec<_> = before
                .iter()
                .filter(|it| it.host == text && it.port == Some(port))
                .map(|it| it.address)
                .collect();
            let resolver = resolver.clone();
            lookups.spawn(async move {
                let asked = tokio::time::timeout(HOST_TIMEOUT, addresses(&resolver, host, &known)).await;
                // One that does not answer is as it was, and is asked for again soon.
                let as_before = (known, Instant::now() + RETRY);
                (text, port, asked.ok().and_then(Result::ok).unwrap_or(as_before))
            });
        }
        let Some(done) = lookups.join_next().await else { break };
        let (host, port, (addresses, good_until)) = done.map_err(|error| error.to_string())?;
        until = until.min(good_until);
        let address = |address| FoundAddress { host: host.clone(), port: Some(port), address };
        found.extend(addresses.into_iter().map(address));
    }
    Ok((found, until))
}

/// The addresses of a host.
pub(super) async fn addresses_of(resolver: &TokioResolver, host: &str) -> Result<Vec<IpAddr>, String> {
    Ok(addresses(resolver, full(host)?, &[]).await?.0)
}

/// The addresses of a host of both families. Of a family that can't be asked for, those of `before` are taken, if there are any.
async fn addresses(
    resolver: &TokioResolver,
    name: Name,
    before: &[IpAddr],
) -> Result<(Vec<IpAddr>, Instant), String> {
    let (v4, v6) = tokio::join!(resolver.ipv4_lookup(name.clone()), resolver.ipv6_lookup(name));
    let (mut all, mut until, mut problem) = (Vec::new(), Instant::now() + PAUSE_MAX, None);
    for (is_v4, answer) in [(true, v4), (false, v6)] {
        match answer {
            Ok(lookup) => {
                until = until.min(lookup.valid_until());
                all.extend(lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                }));
            }
            Err(error) if error.is_no_records_found() => {}
            Err(error) => {
                all.extend(before.iter().filter(|address| address.is_ipv4() == is_v4));
                until = until.min(Instant::now() + RETRY);
                problem = Some(error.to_string());
            }
        }
    }
    if all.is_empty() {
        until = until.min(Instant::now() + UNKNOWN_TIME);
    }
    match problem {
        Some(problem) if all.is_empty() => Err(problem),
        _ => Ok((all, until)),
    }
}

/// A name of several labels is a whole one; others are searched for as the system does.
fn full(name: &str) -> Result<Name, String> {
    let mut full = Name::from_ascii(name).map_err(|error| error.to_string())?;
    full.set_fqdn(name.contains('.'));
    Ok(full)
}
