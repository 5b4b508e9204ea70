//! Commands on another machine, by the system's `ssh` as its user has configured it. It never asks anything, never
//! leaves a host key unchecked, and what it passes on reaches the far side word by word, whatever is in a word.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// No answer for this long ends a connection attempt; an established one is given up after three times as long.
const PATIENCE: [&str; 2] = ["ConnectTimeout=10", "ServerAliveInterval=10"];
/// The exit status of `ssh` when it is ssh that failed, not the command.
const SSH_FAILED: i32 = 255;
const NOT_FOUND: i32 = 127;
/// Longer than any account's name.
const USER_NAME_MAX: usize = 255;

/// How to log in.
#[derive(clap::Args)]
pub(crate) struct Login {
    /// Whom to log in as; unless given, whom ssh chooses
    #[arg(long, value_name = "USER", value_parser = user_name)]
    pub(crate) ssh_user: Option<String>,
    /// The port; unless given, the one ssh is configured for, or 22
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ssh_port: Option<u16>,
    /// The private key; unless given, those ssh tries
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The file that vouches for the host's key; unless given, the one ssh is configured for
    #[arg(long, value_name = "FILE", value_parser = plain_path)]
    known_hosts: Option<PathBuf>,
}

/// What a command on the far side came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    code: Option<i32>,
}

impl Done {
    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Whether the far side's shell has found no such command.
    pub(crate) fn not_found(&self) -> bool {
        self.code == Some(NOT_FOUND)
    }
}

impl Login {
    /// Runs a line of the far side's shell; an error if it could not be run there at all.
    pub(crate) fn run(&self, host: IpAddr, line: &str) -> Result<Done, String> {
        let mut command = Command::new("ssh");
        command.args(["-o", "BatchMode=yes"]).args(PATIENCE.iter().flat_map(|option| ["-o", option]));
        let output = command
            .args(self.options())
            .args(["--", &host.to_string(), line])
            .stdin(Stdio::null())
            .output()
            .map_err(|why| format!("ssh (apt-get install openssh-client): {why}"))?;
        let (stdout, stderr) = (printable(&output.stdout), printable(&output.stderr));
        match output.status.code() {
            Some(SSH_FAILED) => Err(self.unreachable(host, &stderr)),
            code => Ok(Done { stdout, stderr, code }),
        }
    }

    fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        if let Some(port) = self.ssh_port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = &self.ssh_user {
            options.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(key) = &self.key {
            let key = key.display().to_string();
            options.extend(["-i".to_owned(), key, "-o".to_owned(), "IdentitiesOnly=yes".to_owned()]);
        }
        if let Some(file) = &self.known_hosts {
            options.extend(["-o".to_owned(), format!("UserKnownHostsFile=\"{}\"", file.display())]);
        }
        options
    }

    /// By hand, ssh may ask: whether to trust the host, or for a key's passphrase.
    fn unreachable(&self, host: IpAddr, why: &str) -> String {
        let words: Vec<_> = self.options().iter().map(|word| quoted(word)).collect();
        let by_hand = ["ssh".to_owned()].into_iter().chain(words).chain([host.to_string()]);
        format!("no SSH to {host}: {}\nTry by hand: {}", why.trim(), by_hand.collect::<Vec<_>>().join(" "))
    }
}

/// The word as a shell takes it for one, unchanged; a plain one is left readable.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A name as POSIX wants it to be portable; it can't be taken for an option.
pub(crate) fn user_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=USER_NAME_MAX).contains(&text.len()) && text.chars().all(is_allowed) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err("a user's name has letters, digits, `.`, `_` and `-`, and doesn't start with `-`".to_owned())
}

/// ssh reads this option as its configuration: quotes can be put around a path, but some characters mean more.
fn plain_path(text: &str) -> Result<PathBuf, String> {
    if text.contains(['"', '\\', '%', '$']) {
        return Err("ssh takes no path with `\"`, `\\`, `%` or `$` here".to_owned());
    }
    Ok(text.into())
}

/// What the far side says is shown on a terminal, which it must not control.
fn printable(bytes: &[u8]) -> String {
    let is_shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    String::from_utf8_lossy(bytes).chars().filter(is_shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        for word in
            ["", "plain-1", "two words", "$(touch x)", "it's", "'", "a\nb", "`x`;\"y\"", "*", "~", "-x"]
        {
            let line = format!("printf %s {}", quoted(word));
            let output = Command::new("sh").args(["-c", &line]).output().map(|output| output.stdout);
            assert_eq!(output.ok().as_deref(), Some(word.as_bytes()), "{line}");
        }
    }

    #[test]
    fn a_user_name_has_nothing_a_shell_or_ssh_could_act_on() {
        for name in ["root", "first.last", "_apt", "a-b", "A1"] {
            assert_eq!(user_name(name).as_deref(), Ok(name));
        }
        for name in ["", "-l", "a b", "a;b", "$(x)", "a'b", "a\nb", "a@b", "a:b", &"a".repeat(256)] {
            assert!(user_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_far_side_does_not_control_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\r\n\tc\x07"), "a[2Jb\n\tc");
    }
}
