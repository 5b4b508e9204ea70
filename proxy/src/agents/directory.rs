//! The agents by name, as an operator lists them in a file or a command prints them. Pure: opens no file, asks no resolver and
//! knows nothing of how the agents are now.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::agents::directory_text::{Entry, Format, Node, Problem, Value, read};
use crate::tls::{AgentTrust, Pin, PinError};

/// Agents of one directory.
pub const AGENTS_MAX: usize = 65_536;
/// Bytes of a name: of a DNS label (RFC 1035 2.3.4).
const NAME_BYTES_MAX: usize = 63;
/// Pools, or tags, of one agent.
const LABELS_MAX: usize = 32;
/// Bytes of a tag.
const TAG_BYTES_MAX: usize = 256;
/// Problems that are told of at once.
const PROBLEMS_MAX: usize = 50;
/// First parts of paths that mean something else, to the proxy or to a DCV server.
const RESERVED: [&str; 7] = ["auth", "ws", "resource", "dcvjs", "health", "pool", "s"];

/// What an operator has decided about an agent.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Everybody may use it.
    #[default]
    Active,
    /// Whoever has a session there keeps it; nobody else gets in.
    Drain,
    /// Nobody gets in, and sessions that are there go on.
    Off,
}

impl AgentState {
    const ALL: [(&str, Self); 3] = [("active", Self::Active), ("drain", Self::Drain), ("off", Self::Off)];
}

impl FromStr for AgentState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, state)| *state).ok_or(())
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, state)| state == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

/// How TLS to one agent is done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AgentTls {
    /// Plain HTTP.
    Off,
    /// With a certificate that is verified so.
    Verified(AgentTrust),
}

/// A name and a value.
pub type Tag = (Box<str>, Box<str>);

/// An agent with a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedAgent {
    /// A DNS label in lower case that is no address.
    pub name: Box<str>,
    /// The address and port of its DCV server.
    pub address: SocketAddr,
    /// How TLS to it is done, where it is not as to all agents.
    pub tls: Option<AgentTls>,
    /// Whether it may be used.
    pub state: AgentState,
    /// The pools that it is part of.
    pub pools: Vec<Box<str>>,
    /// What else the operator has said of it.
    pub tags: Vec<Tag>,
}

/// All agents that have names. A clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<Lists>);

#[derive(Clone, Debug, Default)]
struct Lists {
    agents: Vec<NamedAgent>,
    by_name: HashMap<Box<str>, usize>,
    by_address: HashMap<SocketAddr, usize>,
    /// The agents of each pool.
    pools: HashMap<Box<str>, Vec<usize>>,
}

/// What a directory may say.
#[derive(Clone, Copy)]
pub struct DirectoryRules<'a> {
    /// The ports that agents may have; one that names none has the first.
    pub ports: &'a [u16],
    /// Whether an address may be reached.
    pub is_allowed: &'a dyn Fn(IpAddr) -> bool,
    /// Whether it may name files, which are opened then.
    pub names_files: bool,
}

impl Directory {
    /// Reads a directory. One that has any problem is none, and tells of all of them.
    pub fn parse(text: &str, format: Format, rules: DirectoryRules<'_>) -> Result<Self, Vec<Problem>> {
        let list = match read(text, format).and_then(agents_of) {
            Ok(list) => list,
            Err(problem) => return Err(vec![problem]),
        };
        let (mut lists, mut problems) = (Lists::default(), Vec::new());
        for node in list {
            let at = node.at;
            match agent(node, rules) {
                Ok((agent, name_at)) => problems.extend(lists.add(agent, at, name_at)),
                Err(wrong) => problems.extend(wrong),
            }
            if problems.len() >= PROBLEMS_MAX {
                break;
            }
        }
        problems.truncate(PROBLEMS_MAX);
        if problems.is_empty() { Ok(Self(Arc::new(lists))) } else { Err(problems) }
    }

    /// Of agents that come from somewhere, in their order, and what stands in the way of those that are left out: the name or
    /// the address of one before them.
    pub fn of(agents: impl IntoIterator<Item = NamedAgent>) -> (Self, Vec<String>) {
        let mut lists = Lists::default();
        let left_out: Vec<_> =
            agents.into_iter().filter_map(|agent| lists.add(agent, 0, 0)).map(|it| it.what).collect();
        (Self(Arc::new(lists)), left_out)
    }

    /// The same with other states of some of them.
    #[must_use]
    pub fn with_states<'a>(&self, states: impl IntoIterator<Item = (&'a str, AgentState)>) -> Self {
        let mut lists = Lists::clone(&self.0);
        for (name, state) in states {
            if let Some(index) = lists.by_name.get(name) {
                lists.agents[*index].state = state;
            }
        }
        Self(Arc::new(lists))
    }

    /// All of them, in the order of the file.
    pub fn agents(&self) -> &[NamedAgent] {
        &self.0.agents
    }

    /// The agent of that name, which is in lower case.
    pub fn named(&self, name: &str) -> Option<&NamedAgent> {
        self.0.by_name.get(name).map(|index| &self.0.agents[*index])
    }

    /// Whether any agent is part of a pool.
    pub fn has_pools(&self) -> bool {
        !self.0.pools.is_empty()
    }

    /// The agents of a pool; none where there is no such pool.
    pub fn pool(&self, name: &str) -> impl Iterator<Item = &NamedAgent> {
        self.0.pools.get(name).into_iter().flatten().map(|index| &self.0.agents[*index])
    }

    /// The agent at that address.
    pub fn at(&self, address: SocketAddr) -> Option<&NamedAgent> {
        self.0.by_address.get(&address).map(|index| &self.0.agents[*index])
    }
}

impl Lists {
    /// Adds an agent, or tells what stands in its way.
    fn add(&mut self, agent: NamedAgent, at: usize, name_at: usize) -> Option<Problem> {
        if let Some(other) = self.by_name.get(&agent.name) {
            let what = format!("{} is there already, as {}", agent.name, self.agents[*other].address);
            return Some(Problem::new(name_at, what));
        }
        if let Some(other) = self.by_address.get(&agent.address) {
            let what = format!("{} has the address of {}", agent.name, self.agents[*other].name);
            return Some(Problem::new(at, what));
        }
        let index = self.agents.len();
        self.by_name.insert(agent.name.clone(), index);
        self.by_address.insert(agent.address, index);
        for pool in &agent.pools {
            self.pools.entry(pool.clone()).or_default().push(index);
        }
        self.agents.push(agent);
        None
    }
}

fn agents_of(root: Node<'_>) -> Result<Vec<Node<'_>>, Problem> {
    let help = "write [[agent]] tables (JSON: {\"agent\": [...]})";
    let Value::Table(entries) = root.value else {
        return Err(Problem::new(root.at, format!("a directory is a table: {help}")));
    };
    let mut list = Vec::new();
    let mut is_there = false;
    for Entry { key, at, node } in entries {
        if key != "agent" {
            return Err(Problem::new(at, format!("there is no {}: {help}", shown(&key))));
        }
        if std::mem::replace(&mut is_there, true) {
            return Err(Problem::new(at, "agent is there twice: write all agents into one list"));
        }
        let Value::List(agents) = node.value else {
            return Err(Problem::new(node.at, format!("agent is a list of tables: {help}")));
        };
        list = agents;
    }
    if !is_there {
        return Err(Problem::new(root.at, format!("no agent is named: {help}")));
    }
    match list.get(AGENTS_MAX) {
        Some(node) => Err(Problem::new(node.at, format!("these are more than {AGENTS_MAX} agents"))),
        None => Ok(list),
    }
}

/// One agent, and where its name stands.
fn agent(node: Node<'_>, rules: DirectoryRules<'_>) -> Result<(NamedAgent, usize), Vec<Problem>> {
    let at = node.at;
    let Value::Table(entries) = node.value else {
        return Err(vec![Problem::new(at, "an agent is a table: write name = ... and address = ...")]);
    };
    if let Some(entry) = entries.get(LABELS_MAX) {
        return Err(vec![Problem::new(entry.at, "an agent has no such number of keys")]);
    }
    let mut problems = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    let (mut name, mut address) = (None, None);
    let (mut port, mut state) = (rules.ports.first().copied().unwrap_or(0), AgentState::default());
    let (mut pools, mut tags, mut tls) = (Vec::new(), Vec::new(), None);
    for Entry { key, at, node } in &entries {
        if seen.contains(&&**key) {
            problems.push(Problem::new(*at, format!("{} is there twice", shown(key))));
            continue;
        }
        seen.push(key);
        let read = match &**key {
            "name" => text(node, "name").and_then(name_of).map(|found| name = Some((found, node.at))),
            "address" => text(node, "address")
                .and_then(|text| address_of(text, rules))
                .map(|found| address = Some(found)),
            "port" => port_of(node, rules.ports).map(|found| port = found),
            "state" => text(node, "state").and_then(state_of).map(|found| state = found),
            "pools" => pools_of(node).map(|found| pools = found),
            "tags" => tags_of(node).map(|found| tags = found),
            "tls" => tls_of(node, rules.names_files).map(|found| tls = Some(found)),
            _ => Err(Wrong::At(
                *at,
                format!(
                    "an agent has no {}: there are name, address, port, tls, state, pools and tags",
                    shown(key)
                ),
            )),
        };
        problems.extend(read.err().map(|wrong| wrong.at(node.at)));
    }
    for (key, is_missing) in [("name", !seen.contains(&"name")), ("address", !seen.contains(&"address"))] {
        if is_missing {
            problems.push(Problem::new(at, format!("an agent without {key}: write {key} = \"...\"")));
        }
    }
    match (name, address) {
        (Some((name, name_at)), Some(address)) if problems.is_empty() => {
            let address = SocketAddr::new(address, port);
            Ok((NamedAgent { name, address, tls, state, pools, tags }, name_at))
        }
        _ => Err(problems),
    }
}

/// What is wrong with a value: with the whole of it, or at a place in it.
enum Wrong {
    Whole(String),
    At(usize, String),
}

impl Wrong {
    fn at(self, whole: usize) -> Problem {
        match self {
            Self::Whole(what) => Problem::new(whole, what),
            Self::At(at, what) => Problem::new(at, what),
        }
    }
}

impl From<String> for Wrong {
    fn from(what: String) -> Self {
        Self::Whole(what)
    }
}

fn text<'a>(node: &'a Node<'_>, key: &str) -> Result<&'a str, Wrong> {
    match &node.value {
        Value::Text(text) => Ok(text),
        _ => Err(Wrong::At(node.at, format!("{key} takes a text: write it between quotes"))),
    }
}

/// Whether an agent can have this name.
pub(super) fn check_name(text: &str) -> Result<(), String> {
    name_of(text).map(drop).map_err(|wrong| wrong.at(0).what)
}

/// A name that can be a part of a path, and of a host name.
fn name_of(text: &str) -> Result<Box<str>, Wrong> {
    label(text, "a name")?;
    if RESERVED.contains(&text) {
        return Err(format!("{text} means something else in a path: choose another name").into());
    }
    if is_address(text) {
        return Err(format!("{text} reads as an address: choose another name").into());
    }
    Ok(text.into())
}

/// As much of a text as is told, without what a terminal would obey.
fn shown(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).flat_map(char::escape_debug).collect()
}

/// A DNS label (RFC 1123 2.1) in lower case.
fn label(text: &str, what: &str) -> Result<(), Wrong> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = !text.is_empty() && text.bytes().all(is_inner);
    if is_label && !text.starts_with('-') && !text.ends_with('-') && text.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(format!(
        "\"{}\" is not {what}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, and no - at either end",
        shown(text)
    )
    .into())
}

/// Whether a host name of it would mean an address.
fn is_address(text: &str) -> bool {
    text.replace('-', ".").parse::<Ipv4Addr>().is_ok() || text.replace('-', ":").parse::<Ipv6Addr>().is_ok()
}

fn address_of(text: &str, rules: DirectoryRules<'_>) -> Result<IpAddr, Wrong> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(format!(
            "\"{}\" is no IP address: write one such as 10.0.0.5 or 2001:db8::5",
            shown(text)
        )
        .into());
    };
    let address = address.to_canonical();
    if !(rules.is_allowed)(address) {
        return Err(format!("{address} lies in no network of --agents").into());
    }
    Ok(address)
}

fn port_of(node: &Node<'_>, ports: &[u16]) -> Result<u16, Wrong> {
    let Value::Number(number) = &node.value else {
        return Err("port takes a number without quotes, such as 8443".to_owned().into());
    };
    match number.parse() {
        Ok(port) if ports.contains(&port) => Ok(port),
        Ok(port) if port > 0 => {
            Err(format!("port {port} is not one of --agent-ports: add it there, which wants an upgrade")
                .into())
        }
        _ => Err(format!("{} is no port: there are 1 to 65535", shown(number)).into()),
    }
}

fn state_of(text: &str) -> Result<AgentState, Wrong> {
    text.parse().map_err(|()| format!("\"{}\" is no state: write active, drain or off", shown(text)).into())
}

/// `"off"`, `"insecure"`, `{ ca = "...", name = "..." }`, or `{ pin = "..." }` with one pin or a list.
fn tls_of(node: &Node<'_>, names_files: bool) -> Result<AgentTls, Wrong> {
    const HELP: &str = "write tls = \"off\", \"insecure\", { ca = \"FILE\" } or { pin = \"sha256:HEX\" }";
    let entries = match &node.value {
        Value::Text(text) if text == "off" => return Ok(AgentTls::Off),
        Value::Text(text) if text == "insecure" => return Ok(AgentTls::Verified(AgentTrust::Anything)),
        Value::Table(entries) => entries,
        _ => return Err(HELP.to_owned().into()),
    };
    let (mut file, mut name, mut pins) = (None, None, None);
    for Entry { key, at, node } in entries {
        let was_there = match &**key {
            "ca" if !names_files => {
                return Err(Wrong::At(
                    *at,
                    "a ca is a file, which only --agents-file can name: use a pin".to_owned(),
                ));
            }
            "ca" => file.replace(PathBuf::from(text(node, "ca")?)).is_some(),
            "name" => name.replace(text(node, "name")?.to_owned()).is_some(),
            "pin" => pins.replace(pins_of(node)?).is_some(),
            _ => {
                return Err(Wrong::At(*at, format!("tls has no {}: there are ca, name and pin", shown(key))));
            }
        };
        if was_there {
            return Err(Wrong::At(*at, format!("{key} is there twice")));
        }
    }
    match (file, name, pins) {
        (Some(file), name, None) => Ok(AgentTls::Verified(AgentTrust::Authority { file, name })),
        (None, None, Some(pins)) => Ok(AgentTls::Verified(AgentTrust::Pinned(pins))),
        (Some(_), _, Some(_)) => Err("tls takes a ca or pins, not both".to_owned().into()),
        (None, Some(_), _) => Err("a name is verified by a ca only: write one".to_owned().into()),
        (None, None, None) => Err(HELP.to_owned().into()),
    }
}

fn pins_of(node: &Node<'_>) -> Result<Vec<Pin>, Wrong> {
    let one = std::slice::from_ref(node);
    let list = if let Value::List(list) = &node.value { list } else { one };
    if list.is_empty() || list.len() > LABELS_MAX {
        return Err(Wrong::At(node.at, format!("an agent has 1 to {LABELS_MAX} pins")));
    }
    let pin = |node: &Node<'_>| {
        text(node, "pin")?.parse().map_err(|error: PinError| Wrong::At(node.at, error.to_string()))
    };
    list.iter().map(pin).collect()
}

fn pools_of(node: &Node<'_>) -> Result<Vec<Box<str>>, Wrong> {
    let Value::List(list) = &node.value else {
        return Err("pools takes a list of names: write pools = [\"...\"]".to_owned().into());
    };
    if let Some(node) = list.get(LABELS_MAX) {
        return Err(Wrong::At(node.at, format!("an agent can be part of {LABELS_MAX} pools")));
    }
    let mut pools: Vec<Box<str>> = Vec::new();
    for node in list {
        let pool = text(node, "a pool")?;
        label(pool, "a pool's name").map_err(|wrong| Wrong::At(node.at, wrong.at(node.at).what))?;
        if pools.iter().any(|other| **other == *pool) {
            return Err(Wrong::At(node.at, format!("the pool {pool} is there twice")));
        }
        pools.push(pool.into());
    }
    Ok(pools)
}

fn tags_of(node: &Node<'_>) -> Result<Vec<Tag>, Wrong> {
    let Value::Table(entries) = &node.value else {
        return Err("tags takes a table of texts: write tags = { site = \"...\" }".to_owned().into());
    };
    if let Some(entry) = entries.get(LABELS_MAX) {
        return Err(Wrong::At(entry.at, format!("an agent can have {LABELS_MAX} tags")));
    }
    let mut tags: Vec<Tag> = Vec::new();
    for Entry { key, at, node } in entries {
        let value = text(node, "a tag")?;
        if key.is_empty() || key.len() > TAG_BYTES_MAX || value.len() > TAG_BYTES_MAX {
            return Err(Wrong::At(
                *at,
                format!("a tag and its value have at most {TAG_BYTES_MAX} bytes each"),
            ));
        }
        if tags.iter().any(|(other, _)| **other == **key) {
            return Err(Wrong::At(*at, format!("the tag {} is there twice", shown(key))));
        }
        tags.push((key.as_ref().into(), value.into()));
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, format: Format) -> Result<Directory, Vec<Problem>> {
        let is_allowed = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.segments()[0] == 0x2001,
        };
        Directory::parse(
            text,
            format,
            DirectoryRules { ports: &[8443, 9443], is_allowed: &is_allowed, names_files: true },
        )
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = "[[agent]]\nname = \"gpu-07\"\naddress = \"10.0.0.7\"\nport = 9443\nstate = \"drain\"\n\
                    pools = [\"cad\", \"all\"]\ntags = { site = \"Lyon\" }\n\n\
                    [[agent]]\nname = \"v6\"\naddress = \"2001:db8::5\"\n";
        let json = r#"{"agent": [
            {"name": "gpu-07", "address": "10.0.0.7", "port": 9443, "state": "drain",
             "pools": ["cad", "all"], "tags": {"site": "Ly\u006fn"}},
            {"name": "v6", "address": "2001:DB8:0::5"}
        ]}"#;
        let (toml, json) = (parse(toml, Format::Toml), parse(json, Format::Json));
        let (toml, json) = (toml.expect("a directory"), json.expect("a directory"));
        assert_eq!(toml.agents(), json.agents());
        let agent = toml.named("gpu-07").expect("it is there");
        assert_eq!(toml.at("10.0.0.7:9443".parse().expect("an address")), Some(agent));
        assert_eq!(toml.at("10.0.0.7:8443".parse().expect("an address")), None);
        assert_eq!((agent.state, &*agent.pools[1], &*agent.tags[0].1), (AgentState::Drain, "all", "Lyon"));
        let six = toml.named("v6").expect("it is there");
        assert_eq!((six.address.to_string().as_str(), six.state), ("[2001:db8::5]:8443", AgentState::Active));
        assert_eq!(toml.named("GPU-07"), None);
        assert!(parse("agent = []", Format::Toml).expect("nobody").agents().is_empty());
    }

    /// Each text, the piece of it that the problem stands at, and a word of what is told.
    const MALFORMED_TOML: [(&str, &str, &str); 37] = [
        ("", "", "no agent is named"),
        ("agent", "", "expected"),
        ("[[agent]", "", "close"),
        ("agent = 1", "1", "a list of tables"),
        ("agent = \"x\"", "\"x\"", "a list of tables"),
        ("[agent]\nname = \"a\"", "[agent]", "a list of tables"),
        ("[[agents]]\nname = \"a\"", "agents", "there is no agents"),
        ("agent = [1]", "1", "an agent is a table"),
        ("[[agent]]\nname = \"a\"", "[[agent]]", "without address"),
        ("[[agent]]\naddress = \"10.0.0.1\"", "[[agent]]", "without name"),
        ("[[agent]]\nname = 7\naddress = \"10.0.0.1\"", "7", "takes a text"),
        ("[[agent]]\nname = \"\"\naddress = \"10.0.0.1\"", "\"\"", "1 to 63"),
        ("[[agent]]\nname = \"A\"\naddress = \"10.0.0.1\"", "\"A\"", "a-z"),
        ("[[agent]]\nname = \"a.b\"\naddress = \"10.0.0.1\"", "\"a.b\"", "a-z"),
        ("[[agent]]\nname = \"-a\"\naddress = \"10.0.0.1\"", "\"-a\"", "either end"),
        ("[[agent]]\nname = \"a-\"\naddress = \"10.0.0.1\"", "\"a-\"", "either end"),
        ("[[agent]]\nname = \"\\u0007\"\naddress = \"10.0.0.1\"", "\"\\u0007\"", "\\u{7}"),
        ("[[agent]]\nname = \"health\"\naddress = \"10.0.0.1\"", "\"health\"", "something else"),
        ("[[agent]]\nname = \"s\"\naddress = \"10.0.0.1\"", "\"s\"", "something else"),
        ("[[agent]]\nname = \"10-0-0-5\"\naddress = \"10.0.0.1\"", "\"10-0-0-5\"", "reads as an address"),
        (
            "[[agent]]\nname = \"2001-db8--5\"\naddress = \"10.0.0.1\"",
            "\"2001-db8--5\"",
            "reads as an address",
        ),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0\"", "\"10.0.0\"", "no IP address"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1:8443\"", "\"10.0.0.1:8443\"", "no IP address"),
        ("[[agent]]\nname = \"a\"\naddress = \"host\"", "\"host\"", "no IP address"),
        ("[[agent]]\nname = \"a\"\naddress = \"11.0.0.1\"", "\"11.0.0.1\"", "--agents"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\nport = \"8443\"", "\"8443\"", "without quotes"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\nport = 0", "0", "no port"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\nport = 8444", "8444", "--agent-ports"),
        (
            "[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\nstate = \"dead\"",
            "\"dead\"",
            "active, drain or off",
        ),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ncolour = \"red\"", "colour", "no colour"),
        ("[[agent]]\nname = \"a\"\nname = \"b\"", "", "duplicate"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = \"on\"", "\"on\"", "write tls ="),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = {}", "{}", "write tls ="),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = { name = \"x\" }", "{ name", "by a ca only"),
        (
            "[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = { pin = \"x\" }",
            "\"x\"",
            "a pin is sha256:",
        ),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = { pin = [] }", "[]", "1 to 32 pins"),
        ("[[agent]]\nname = \"a\"\naddress = \"10.0.0.1\"\ntls = { key = \"x\" }", "key", "tls has no key"),
    ];

    const MALFORMED_JSON: [(&str, &str, &str); 22] = [
        ("", "", "EOF"),
        ("{", "", "EOF"),
        ("[]", "[]", "a directory is a table"),
        ("{}", "{}", "no agent is named"),
        ("{\"agent\": []} x", "x", "trailing"),
        ("{\"agent\": [], \"agent\": []}", "\"agent\": []}", "agent is there twice"),
        ("{\"agents\": []}", "\"agents\"", "there is no agents"),
        ("{\"agent\": null}", "null", "a list of tables"),
        ("{\"agent\": [null]}", "null", "an agent is a table"),
        ("{\"agent\": [[[[[[[]]]]]]]}", "[[]]]]]]]}", "too deep"),
        (
            r#"{"agent": [{"name": "a", "address": "10.0.0.1", "name": "b"}]}"#,
            "\"name\": \"b\"",
            "name is there twice",
        ),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "po\u0072t": true}]}"#, "true", "takes a number"),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "port": -1}]}"#, "-1", "no port"),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "port": 99999}]}"#, "99999", "no port"),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "port": 8443.5}]}"#, "8443.5", "no port"),
        (
            r#"{"agent": [{"name": "a", "address": "10.0.0.1", "pools": "cad"}]}"#,
            "\"cad\"",
            "a list of names",
        ),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "pools": ["C"]}]}"#, "\"C\"", "a pool's name"),
        (
            r#"{"agent": [{"name": "a", "address": "10.0.0.1", "pools": ["c", "c"]}]}"#,
            "\"c\"]",
            "there twice",
        ),
        (
            r#"{"agent": [{"name": "a", "address": "10.0.0.1", "tags": ["x"]}]}"#,
            "[\"x\"]",
            "a table of texts",
        ),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "tags": {"x": 1}}]}"#, "1}", "takes a text"),
        (
            r#"{"agent": [{"name": "a", "address": "10.0.0.1", "tags": {"": "1"}}]}"#,
            "\"\"",
            "at most 256 bytes",
        ),
        (r#"{"agent": [{"name": "a", "address": "10.0.0.1", "tls": {"ca": 1}}]}"#, "1}", "takes a text"),
    ];

    #[test]
    fn what_is_malformed_is_told_with_its_place() {
        let toml = MALFORMED_TOML.map(|(text, at, what)| (text, at, what, Format::Toml));
        let json = MALFORMED_JSON.map(|(text, at, what)| (text, at, what, Format::Json));
        for (text, at, what, format) in toml.into_iter().chain(json) {
            let problems = parse(text, format).expect_err(text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(problems[0].what.contains(what), "{text}: {problems:?}");
            // Where the crate that reads it says so itself, any place will do.
            if !at.is_empty() {
                assert!(text[problems[0].at..].starts_with(at), "{text}: {problems:?}");
            }
        }
    }

    #[test]
    fn two_agents_have_neither_a_name_nor_an_address_in_common() {
        let agent =
            |name: &str, address: &str| format!("[[agent]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        let same_name = agent("a", "10.0.0.1") + &agent("a", "10.0.0.2");
        let problems = parse(&same_name, Format::Toml).expect_err("one name");
        assert_eq!(problems[0].what, "a is there already, as 10.0.0.1:8443");
        assert_eq!(problems[0].at, same_name.rfind("\"a\"").expect("it is there"));
        let same_address = agent("a", "10.0.0.1") + &agent("b", "::ffff:10.0.0.1");
        let problems = parse(&same_address, Format::Toml).expect_err("one address");
        assert_eq!(problems[0].what, "b has the address of a");
        let other_port = agent("a", "10.0.0.1") + &agent("b", "10.0.0.1") + "port = 9443";
        assert_eq!(parse(&other_port, Format::Toml).expect("two agents").agents().len(), 2);
    }

    #[test]
    fn all_problems_are_told_up_to_a_number() {
        let bad = "[[agent]]\nname = \"A\"\naddress = \"x\"\n";
        let problems = parse(bad, Format::Toml).expect_err("it is bad");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(parse(&bad.repeat(1000), Format::Toml).expect_err("it is bad").len(), PROBLEMS_MAX);
        let many = format!("agent = [{}]", "{},".repeat(AGENTS_MAX + 1));
        let problems = parse(&many, Format::Toml).expect_err("too many");
        assert!(problems[0].what.contains("more than"), "{problems:?}");
    }
}
