//! Where settings come from: flags, then the file that `--config` names, then the defaults. Keeps the flags as they were
//! typed, so that a reload can look at the file again.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches};

use toml_writer::{ToTomlValue, TomlStringBuilder};

use super::file::{ConfigFile, argument, is_number, is_repeatable};
use super::flags::{AdminAt, CommandLine, Flags};
use super::model::{Config, ConfigError};
use super::renamed::without_renamed_flags;
use crate::os::files::Files;
use crate::transport::networks::Network;

/// Values that are told to be wrong at once: each costs a look at all of them.
const ERRORS_MAX: usize = 50;

/// The flags, as typed.
#[derive(Clone, Debug)]
pub struct Settings {
    words: Vec<OsString>,
}

/// A configuration, and where each of its settings comes from.
#[derive(Debug)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    typed: Vec<OsString>,
    file: Option<ConfigFile>,
    given: ArgMatches,
}

impl Settings {
    /// The flags of a command line, which starts with the program's name.
    pub fn of(line: impl IntoIterator<Item = OsString>) -> Self {
        let mut words: Vec<_> = line.into_iter().skip(1).collect();
        let command = CommandLine::command();
        let is_command = |word: &OsString| command.get_subcommands().any(|it| it.get_name() == *word);
        if words.first().is_some_and(is_command) {
            words.remove(0);
        }
        Self { words }
    }

    /// The same without the words of a command that are no flags.
    #[must_use]
    pub fn without(mut self, others: &[&str]) -> Self {
        for other in others {
            if let Some(place) = self.words.iter().position(|word| word == *other) {
                self.words.remove(place);
            }
        }
        self
    }

    /// The flags, to be given to another process.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    /// Whether one of the flags has another name now.
    pub fn has_renamed_flags(&self) -> bool {
        !without_renamed_flags(&self.words).1.is_empty()
    }

    /// Reads the file, where there is one, and resolves the whole. The error has a line for each thing that is wrong,
    /// which says where it stands.
    pub fn resolve(&self, files: &dyn Files) -> Result<Resolved, String> {
        match self.examine(files) {
            (Some(resolved), problems) if problems.is_empty() => Ok(resolved),
            (_, problems) => Err(problems.join("\n")),
        }
    }

    /// The same for somebody who wants to know of everything: what it comes to without what is wrong, as far as that can
    /// be told, and all that is wrong.
    pub fn examine(&self, files: &dyn Files) -> (Option<Resolved>, Vec<String>) {
        let command = Flags::augment_args(clap::Command::new("dcv-splice").no_binary_name(true));
        let (words, mut problems) = without_renamed_flags(&self.words);
        let (typed, errors) = accepted(&command, words.clone());
        let path = typed.as_ref().and_then(|typed| typed.get_one::<PathBuf>("config"));
        let file = path.map(|path| {
            let text = files.read(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
            let text = String::from_utf8(text).map_err(|_| {
                format!("{}: is no UTF-8 text (`iconv -t UTF-8` makes it so)", path.display())
            })?;
            let (file, wrong) = ConfigFile::parse(path, &text, &command)?;
            problems.extend(wrong);
            Ok(file)
        });
        let file = match file.transpose() {
            Ok(file) if typed.is_some() => file,
            failed => {
                problems.extend(errors.iter().map(told));
                problems.extend(failed.err());
                return (None, problems);
            }
        };
        let from_file = file.iter().flat_map(|file| file.flags(|key| is_typed(&self.words, key)));
        let (given, errors) = accepted(&command, from_file.chain(words).collect());
        problems.extend(errors.iter().map(|error| place_and_tell(error, file.as_ref())));
        let flags = given.as_ref().and_then(|given| Flags::from_arg_matches(given).ok());
        let Some((given, flags)) = given.zip(flags) else { return (None, problems) };
        // What was left out may be what others miss.
        let is_whole = problems.is_empty();
        let together = flags.problems();
        let together = together.iter().filter(|error| is_whole || matches!(error, ConfigError::Limit(..)));
        problems.extend(together.map(|error| self.place_and_tell(error, file.as_ref())));
        (Some(Resolved { config: flags.draft(), typed: self.words.clone(), file, given }), problems)
    }

    fn place_and_tell(&self, error: &ConfigError, file: Option<&ConfigFile>) -> String {
        let key = error.key().filter(|key| !is_typed(&self.words, key));
        let place = file.and_then(|file| {
            let value = match error {
                ConfigError::Overlap(_, other) => file.place_of_value(other.to_string().as_ref()),
                _ => None,
            };
            value.or_else(|| file.place_of(key?, None))
        });
        place.map_or_else(|| error.to_string(), |place| format!("{place}: {error}"))
    }
}

/// What clap makes of the words without those whose values it refuses, and why it does; nothing where words are missing
/// or exclude each other.
fn accepted(command: &clap::Command, mut words: Vec<OsString>) -> (Option<ArgMatches>, Vec<clap::Error>) {
    let mut errors = Vec::new();
    loop {
        match command.clone().try_get_matches_from(&words) {
            Ok(matches) => return (Some(matches), errors),
            Err(error) => {
                let bad = words_of(&error, &words);
                errors.push(error);
                let Some(bad) = bad.filter(|_| errors.len() < ERRORS_MAX) else { return (None, errors) };
                words.drain(bad);
            }
        }
    }
}

/// Where the value that an error is about stands, with its flag.
fn words_of(error: &clap::Error, words: &[OsString]) -> Option<Range<usize>> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let (flag, value) = (format!("--{}", key_of(error)?), context(error, ContextKind::InvalidValue)?);
    let whole = format!("{flag}={value}");
    let joined = words.iter().position(|word| *word == *whole).map(|at| at..at + 1);
    let is_it = |pair: &[OsString]| *pair[0] == *flag && *pair[1] == *value;
    joined.or_else(|| words.windows(2).position(is_it).map(|at| at..at + 2))
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// As in `--listen <ADDR:PORT>`.
fn key_of(error: &clap::Error) -> Option<&str> {
    context(error, ContextKind::InvalidArg)?.strip_prefix("--")?.split(' ').next()
}

fn is_typed(words: &[OsString], key: &str) -> bool {
    let is_it = |word: &OsString| {
        let word = word.to_str().and_then(|word| word.strip_prefix("--")?.strip_prefix(key));
        word.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    words.iter().any(is_it)
}

/// clap's message in one line.
fn told(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let text = lines.collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

fn place_and_tell(error: &clap::Error, file: Option<&ConfigFile>) -> String {
    let value = context(error, ContextKind::InvalidValue);
    let place = file.zip(key_of(error)).and_then(|(file, key)| file.place_of(key, value));
    place.map_or_else(|| told(error), |place| format!("{place}: {}", told(error)))
}

impl Resolved {
    /// What is wrong with `file`, with the place that names it.
    pub fn at_place(&self, file: Option<&Path>, error: &dyn std::fmt::Display) -> String {
        let place =
            self.file.as_ref().zip(file).and_then(|(config, file)| config.place_of_value(file.as_os_str()));
        place.map_or_else(|| error.to_string(), |place| format!("{place}: {error}"))
    }

    /// What is wrong with a setting, with its place in the file.
    pub fn at_key(&self, key: &str, what: &str) -> String {
        let file = self.file.as_ref().filter(|_| !is_typed(&self.typed, key));
        let place = file.and_then(|file| file.place_of(key, None));
        place.map_or_else(|| what.to_owned(), |place| format!("{place}: {what}"))
    }

    /// All settings as a configuration file, each with where it comes from.
    pub fn show(&self) -> String {
        let command = Flags::augment_args(clap::Command::new("dcv-splice"));
        let mut shown = String::new();
        for argument in command.get_arguments() {
            let Some(key) = argument.get_long().filter(|key| self::argument(&command, key).is_some()) else {
                continue;
            };
            if let Some((value, source)) = self.value(argument, key) {
                // Writing to memory does not fail.
                let _ = writeln!(shown, "{key} = {value}  # {source}");
            }
        }
        shown
    }

    fn value(&self, argument: &Arg, key: &str) -> Option<(String, &'static str)> {
        let quoted = |text: String| {
            let quoted = || TomlStringBuilder::new(&text).as_default().to_toml_value();
            if is_number(argument) { text } else { quoted() }
        };
        let Some(values) = values(&self.given, argument.get_id().as_str()) else {
            return (key == "workers").then(|| (self.config.workers.to_string(), "default: one per core"));
        };
        let mut values: Vec<_> = values.into_iter().map(quoted).collect();
        let from_file = self.file.as_ref().is_some_and(|file| file.has(key));
        let source = match self.given.value_source(argument.get_id().as_str()) {
            Some(ValueSource::CommandLine) if from_file && !is_typed(&self.typed, key) => "file",
            Some(ValueSource::CommandLine) => "flag",
            _ => "default",
        };
        let value =
            if is_repeatable(argument) { format!("[{}]", values.join(", ")) } else { values.pop()? };
        Some((value, source))
    }
}

/// The values of a setting; addresses and networks in the one form that they are taken in, however they were written.
fn values(given: &ArgMatches, id: &str) -> Option<Vec<String>> {
    fn typed<T>(given: &ArgMatches, id: &str) -> Option<Vec<String>>
    where
        T: ToString + Clone + Send + Sync + 'static,
    {
        Some(given.try_get_many::<T>(id).ok()??.map(ToString::to_string).collect())
    }
    typed::<Network>(given, id)
        .or_else(|| typed::<IpAddr>(given, id))
        .or_else(|| typed::<SocketAddr>(given, id))
        .or_else(|| typed::<AdminAt>(given, id))
        .or_else(|| Some(given.get_raw(id)?.map(|text| text.to_string_lossy().into_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::os::files::FileSystem;

    /// The file that is shipped.
    const EXAMPLE: &str = include_str!("../../../packaging/dcv-splice.toml");

    fn settings(flags: &[&str]) -> Settings {
        Settings::of(["dcv-splice"].iter().chain(flags).map(OsString::from))
    }

    /// Resolves flags and a file that says `text`.
    fn resolve(text: &str, flags: &[&str]) -> Result<Resolved, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f.toml");
        fs::write(&path, text).expect("room");
        let config = format!("--config={}", path.display());
        let all: Vec<_> = flags.iter().copied().chain([&*config]).collect();
        let resolved = settings(&all).resolve(&FileSystem::default());
        resolved.map_err(|text| text.replace(&format!("{}/", folder.path().display()), ""))
    }

    fn wrong(text: &str, flags: &[&str]) -> String {
        resolve(text, flags).map(|resolved| resolved.show()).expect_err("something is wrong")
    }

    #[test]
    fn the_example_says_what_holds_without_it_and_names_every_setting() {
        let from = |resolved: Resolved| Config { file: None, ..resolved.config };
        let with = from(resolve(EXAMPLE, &[]).expect("a configuration"));
        let without = from(settings(&[]).resolve(&FileSystem::default()).expect("a configuration"));
        assert_eq!(format!("{with:?}"), format!("{without:?}"));
        let command = Flags::augment_args(clap::Command::new("dcv-splice"));
        for key in command.get_arguments().filter_map(Arg::get_long).filter(|key| *key != "config") {
            let is_it = |line: &str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert_eq!(EXAMPLE.lines().filter(|line| is_it(line)).count(), 1, "{key}");
        }
    }

    /// Those that exclude each other apart.
    #[test]
    fn what_the_example_leaves_open_can_be_written_as_it_shows() {
        let open = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ");
        for line in EXAMPLE.lines().filter(open) {
            let line = &line[1..];
            let flags: &[&str] = match line.split(' ').next().unwrap_or_default() {
                "default-agent" => &["--agents=10.150.248.0/24"],
                "agent-ca" | "agent-pin" => &["--agent-tls=verify"],
                "agent-name" => &["--agent-tls=verify", "--agent-ca=ca.pem"],
                "cert" => &["--key=proxy.key"],
                "key" => &["--cert=proxy.crt"],
                "ocsp" => &["--cert=proxy.crt", "--key=proxy.key"],
                "session-resolver-ca" => &["--session-resolver=http://resolver.example.com"],
                "htpasswd-agents" => &["--htpasswd=users"],
                _ => &[],
            };
            let resolved = resolve(line, flags).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(resolved.show().contains(&format!("{line}  # file\n")), "{line}:\n{}", resolved.show());
        }
    }

    #[test]
    fn a_flag_wins_over_its_line_and_over_no_other() {
        let text = "agents = [\"10.0.0.0/8\", \"192.168.0.0/16\"]\nconnect-timeout = \"100ms\"\nheader-timeout = \"5s\"\n";
        let resolved =
            resolve(text, &["--agents", "172.16.0.0/12", "--header-timeout=7s"]).expect("a configuration");
        let shown = resolved.show();
        for line in [
            "agents = [\"172.16.0.0/12\"]  # flag",
            "connect-timeout = \"100ms\"  # file",
            "header-timeout = \"7s\"  # flag",
        ] {
            assert!(shown.lines().any(|it| it == line), "{line} in\n{shown}");
        }
        assert!(shown.contains("client-keepalive-timeout = \"75s\"  # default\n"), "{shown}");
        // What it shows is a configuration file itself, which says the same.
        let again = resolve(&shown, &[]).expect("a configuration");
        let from = |resolved: Resolved| format!("{:?}", Config { file: None, ..resolved.config });
        assert_eq!(from(again), from(resolved));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_was_meant() {
        for (text, told) in [
            ("listen = [", "f.toml:1:11: "),
            (
                "# a\nlisten = [\"0.0.0.0:1\"]\nagnts = []\n",
                "f.toml:3:1: there is no agnts: did you mean agents?",
            ),
            ("zzz = 1", "f.toml:1:1: there is no zzz: `dcv-splice --help` lists what there is"),
            ("config = \"x\"", "f.toml:1:1: there is no config"),
            ("help = \"x\"", "f.toml:1:1: there is no help"),
            ("[limits]\nheader-timeout = 1", "f.toml:1:2: there is no limits"),
            ("connections-max = \"5\"", "f.toml:1:19: connections-max takes a whole number"),
            ("connections-max = 5.5", "f.toml:1:19: connections-max takes a whole number"),
            ("connect-timeout = [5]", "f.toml:1:19: connect-timeout takes one value"),
            ("agents = [\"10.0.0.0/8\", 10]", "f.toml:1:25: agents takes a text: write it between quotes"),
            ("path-prefix = true", "f.toml:1:15: path-prefix takes a text"),
            ("header-timeout = \"1s\"\nheader-timeout = \"2s\"", "f.toml:2:1: "),
            (
                "\n\n  connect-timeout = \"0ms\"",
                "f.toml:3:21: invalid value '0ms' for '--connect-timeout <TIME>': write a time from 1ms to 10m",
            ),
            ("agents = [\"10.0.0.0/8\", \"10.0.0.0/40\"]", "f.toml:1:25: invalid value '10.0.0.0/40'"),
            (
                "agents = \"10.0.0.5/8\"",
                "f.toml:1:10: invalid value '10.0.0.5/8' for '--agents <CIDR>': 10.0.0.5 is no network of that \
                 length: write 10.0.0.0/8, or 10.0.0.5/32 for the one address",
            ),
            ("agents = \"10.0.0.5\"", "f.toml:1:10: invalid value '10.0.0.5'"),
            ("é = 1", "f.toml:1:1: "),
            ("access-log = \"é\"\npath-prefix = \"stripp\"", "f.toml:2:15: invalid value 'stripp'"),
            (
                "default-agent = \"10.0.0.1\"",
                "f.toml:1:1: --default-agent 10.0.0.1 lies in no --agents prefix",
            ),
            ("cert = \"a\"", "f.toml:1:1: 1 --cert but 0 --key"),
            ("listen = [\"0.0.0.0:1\", \"10.0.0.1:1\"]", "f.toml:1:24: 0.0.0.0:1 and 10.0.0.1:1 can't both"),
            ("listen = []", "f.toml:1:10: listen names none: name one, or leave the line out"),
            ("[listen]\nx = 1", "f.toml:1:1: listen is no section: write listen = ..."),
            ("listen-plain = [\"[::1]:1\", \"[::1]:1\"]", "f.toml:1:28: [::1]:1 and [::1]:1 can't both"),
            ("header-count-max = 0", "f.toml:1:1: --header-count-max must lie between"),
            (
                "listen = [\"10.0.0.1:1\", \"[::ffff:10.0.0.1]:1\"]",
                "f.toml:1:11: 10.0.0.1:1 and 10.0.0.1:1 can't both",
            ),
            (
                "deny-clients = [\"10.0.0.0/8\", \"::/80\"]",
                "f.toml:1:31: invalid value '::/80' for '--deny-clients <CIDR>': ::/80 has the IPv4 addresses in it",
            ),
            (
                "htpasswd-agents = [\"10.0.0.0/8\"]",
                "the following required arguments were not provided: --htpasswd",
            ),
        ] {
            let error = wrong(text, &[]);
            assert!(error.starts_with(told), "{text:?}: {error:?} is not {told:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        // What a flag says is not blamed on the file.
        let error = wrong("agents = [\"10.0.0.0/8\"]", &["--default-agent=192.0.2.1"]);
        assert!(error.starts_with("--default-agent 192.0.2.1"), "{error}");
        let error =
            settings(&["--config=/nowhere/f.toml"]).resolve(&FileSystem::default()).expect_err("no file");
        assert!(error.starts_with("--config /nowhere/f.toml: "), "{error}");
    }

    #[test]
    fn what_is_written_without_a_unit_or_by_an_old_name_is_told_with_what_to_write() {
        for (text, told) in [
            (
                "connect-timeout = 5",
                "f.toml:1:19: the unit of connect-timeout is missing: write connect-timeout = \"5s\"",
            ),
            ("body-max = 5", "f.toml:1:12: the unit of body-max is missing: write body-max = \"5B\""),
            (
                "connect-ms = 100",
                "f.toml:1:1: connect-ms is now connect-timeout: write connect-timeout = \"100ms\"",
            ),
            (
                "headers-max = 5",
                "f.toml:1:1: headers-max is now header-count-max: write header-count-max = 5",
            ),
            ("prefix = \"keep\"", "f.toml:1:1: prefix is now path-prefix: write path-prefix = \"keep\""),
        ] {
            assert_eq!(wrong(text, &[]), told);
        }
    }

    /// A rule that missed an address by the form that it was written in would be open.
    #[test]
    fn every_address_and_network_is_taken_in_one_form_however_it_is_written() {
        let command = Flags::augment_args(clap::Command::new("dcv-splice"));
        let is_network =
            |it: &&Arg| it.get_value_names().is_some_and(|names| names.iter().any(|name| name == "CIDR"));
        let lists: Vec<_> = command.get_arguments().filter(is_network).filter_map(Arg::get_long).collect();
        assert_eq!(
            lists,
            [
                "proxy-protocol",
                "trust-forwarded",
                "allow-clients",
                "deny-clients",
                "htpasswd-agents",
                "agents",
            ]
        );
        let lines = lists.iter().map(|key| format!("{key} = \"::ffff:10.0.0.0/104\"\n"));
        let from_file = lines.collect::<Vec<_>>().concat();
        let others = "default-agent = \"::ffff:10.0.0.5\"\nlisten = \"[::ffff:127.0.0.1]:1\"\n\
                      listen-plain = \"[::ffff:127.0.0.1]:2\"\nadmin = \"[::ffff:127.0.0.1]:3\"\n";
        let from_flags: Vec<_> = lists
            .iter()
            .map(|key| format!("--{key}=::ffff:10.0.0.0/104"))
            .chain(["--htpasswd=u".to_owned()])
            .collect();
        let from_flags: Vec<_> = from_flags.iter().map(String::as_str).collect();
        for resolved in [resolve(&(from_file + others), &["--htpasswd=u"]), resolve(others, &from_flags)] {
            let resolved = resolved.expect("a configuration");
            let shown = resolved.show();
            for key in &lists {
                assert!(shown.contains(&format!("{key} = [\"10.0.0.0/8\"]")), "{key}:\n{shown}");
            }
            for line in [
                "default-agent = \"10.0.0.5\"",
                "listen = [\"127.0.0.1:1\"]",
                "listen-plain = [\"127.0.0.1:2\"]",
                "admin = \"127.0.0.1:3\"",
            ] {
                assert!(shown.contains(line), "{line}:\n{shown}");
            }
            let config = &resolved.config;
            assert_eq!(config.policy.default_agent, Some(IpAddr::from([10, 0, 0, 5])));
            assert_eq!(config.listen, [SocketAddr::from(([127, 0, 0, 1], 1))]);
            let networks =
                [&config.clients.allowed, &config.clients.denied, &config.clients.proxy_protocol_sources];
            let networks = networks.into_iter().chain([&config.clients.trusted_proxies]);
            let agents = &config.passwords.as_ref().expect("passwords").agents;
            for network in networks.chain([agents]) {
                assert!(network.contains(IpAddr::from([10, 9, 8, 7])));
            }
            assert!(config.policy.agents.allows(IpAddr::from([10, 9, 8, 7])));
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let text = "agnts = []\nconnect-timeout = \"0ms\"\npath-prefix = true\nheader-timeout = \"0s\"\nheader-count-max = 0\n";
        let error = wrong(text, &["--agents=10.0.0.0/40", "--workers", "0", "--relay-budget=1B"]);
        let told = [
            "f.toml:1:1: there is no agnts",
            "f.toml:3:15: path-prefix takes a text",
            "f.toml:2:19: invalid value '0ms' for '--connect-timeout <TIME>'",
            "f.toml:4:18: invalid value '0s' for '--header-timeout <TIME>'",
            "invalid value '10.0.0.0/40' for '--agents <CIDR>'",
            "invalid value '0' for '--workers <N>'",
            "invalid value '1B' for '--relay-budget <SIZE>': write a size from 4 KiB",
            "f.toml:5:1: --header-count-max must lie between",
        ];
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), told.len(), "{error}");
        for (line, told) in lines.iter().zip(told) {
            assert!(line.starts_with(told), "{told} in\n{error}");
        }
        // Settings that only miss what was left out are not blamed for it.
        let error = wrong("default-agent = \"10.0.0.5\"\nagents = \"10.0.0.5/8\"\n", &[]);
        assert_eq!(error.lines().count(), 1, "{error}");
        let error = wrong("default-agent = \"10.0.0.5\"\ncert = \"a\"\nagent-tls = \"verify\"\n", &[]);
        assert_eq!(error.lines().count(), 3, "{error}");
    }

    #[test]
    fn a_file_of_nothing_but_errors_is_not_looked_through_for_ever() {
        let text = format!("agents = [{}]\n", "\"x\",".repeat(10_000));
        assert_eq!(wrong(&text, &[]).lines().count(), ERRORS_MAX);
    }

    /// The help would promise what is refused, or keep a limit to itself.
    #[test]
    fn the_ranges_in_the_help_are_those_that_hold() {
        let command = Flags::augment_args(clap::Command::new("dcv-splice").no_binary_name(true));
        let parse = |key: &str, value: &str| {
            let parsed = command.clone().try_get_matches_from([format!("--{key}={value}")]);
            parsed.map(drop).map_err(|error| told(&error))
        };
        let mut looked_at = 0;
        for argument in command.get_arguments() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let key = argument.get_long().unwrap_or_default();
            let range = help.split_once("[range: ").and_then(|(_, rest)| rest.split_once(']'));
            let Some((min, max)) = range.and_then(|(range, _)| range.split_once(" to ")) else { continue };
            looked_at += 1;
            assert_eq!(parse(key, min), Ok(()), "{key}");
            if max.starts_with("--") {
                continue;
            }
            assert_eq!(parse(key, max), Ok(()), "{key}");
            let beyond = match argument.get_value_names().unwrap_or_default() {
                [name] if *name == "TIME" => "100years",
                [name] if *name == "SIZE" => "100GiB",
                _ => continue,
            };
            let error = parse(key, beyond).expect_err(key);
            assert!(error.ends_with(&format!("from {min} to {max}")), "{key}: {error}");
        }
        assert!(looked_at >= 15, "{looked_at}");
    }

    #[test]
    fn the_command_is_no_flag() {
        let words = settings(&["check", "--agents=10.0.0.0/8"]).words().to_vec();
        assert_eq!(words, ["--agents=10.0.0.0/8"]);
    }
}
