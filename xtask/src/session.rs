//! `cargo xtask session`: sees to it that an agent has the DCV session its user will connect to, over SSH. It creates
//! a session that is missing and shows the one that is there; it never changes, replaces or closes one.

use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::ssh::{Done, Login, quoted, user_name};

/// The longest id that DCV takes.
const ID_MAX: usize = 128;

/// Which session, on which agent
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The agent's address, as in the proxy's URLs
    #[arg(long, value_name = "IP")]
    agent: Ipv4Addr,
    /// The session's id
    #[arg(long, default_value = "desktop-session", value_parser = session_id)]
    name: String,
    /// Whose session it is; unless given, who logs in over SSH
    #[arg(long, value_name = "USER", value_parser = user_name)]
    owner: Option<String>,
    /// A desktop of its own (virtual), or the machine's screen (console)
    #[arg(long = "type", value_name = "TYPE", default_value = "virtual")]
    kind: Kind,
    /// The proxy as browsers reach it, scheme, name and port, for the URL to open
    #[arg(long, value_name = "URL", value_parser = proxy_url)]
    proxy: Option<String>,
    /// Run `dcv` by `sudo -n` there
    #[arg(long)]
    sudo: bool,
    #[command(flatten)]
    login: Login,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Virtual,
    Console,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::Console => "console",
        }
    }
}

/// Finds or creates the session and says what it is; an error if it is not there then, or is another's.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let found = find(args)?;
    let owner = owner(args, &found.user)?;
    let created = !found.has_it && create(args, &owner, &found.user)?;
    let session = describe(args, &owner, created)?;
    check(args, &owner, &session)?;
    println!("{} on {}: {}", args.name, args.agent, if created { "created" } else { "was there" });
    show(args, &session);
    Ok(())
}

/// What the agent's list says.
struct Found {
    /// Who is logged in there.
    user: String,
    has_it: bool,
}

/// What is read of one session: `dcv` prints more.
#[derive(Debug, Deserialize)]
struct Session {
    id: String,
    owner: String,
    /// Old versions don't tell.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "num-of-connections")]
    connections: Option<u64>,
}

/// Part of what the list says of a session.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
}

fn find(args: &Args) -> Result<Found, String> {
    let list = dcv(args, &["list-sessions", "--json"]);
    let done = args.login.run(args.agent.into(), &format!("id -un && {list}"))?;
    succeeded(args, &done, "list-sessions", "Is it running? On the agent: systemctl status dcvserver")?;
    let (user, listed) = done.stdout.split_once('\n').unwrap_or_default();
    // Where there are none, it may print nothing at all.
    let json = if listed.trim().is_empty() { "[]" } else { listed };
    let sessions: Vec<Listed> =
        serde_json::from_str(json).map_err(|_| strange("dcv list-sessions --json", listed))?;
    Ok(Found { user: user.to_owned(), has_it: sessions.iter().any(|session| session.id == args.name) })
}

fn owner(args: &Args, user: &str) -> Result<String, String> {
    let unusable = |why| format!("{user} on {} can't be the owner (--owner): {why}", args.agent);
    args.owner.clone().map_or_else(|| user_name(user).map_err(unusable), Ok)
}

/// Creates it and returns true; false if somebody else has done so since it was looked for.
fn create(args: &Args, owner: &str, user: &str) -> Result<bool, String> {
    let runs_as = if args.sudo { "root" } else { user };
    let kind = format!("--type={}", args.kind.word());
    let mut words = vec!["create-session", &kind, "--owner", owner];
    // A virtual session's desktop runs as the one who creates it, unless root says otherwise.
    if args.kind == Kind::Virtual && owner != runs_as {
        if runs_as != "root" {
            return Err(format!(
                "{user} can't start a desktop of {owner}'s on {}: log in as root, or give --sudo",
                args.agent
            ));
        }
        words.extend(["--user", owner]);
    }
    words.push(&args.name);
    let done = args.login.run(args.agent.into(), &dcv(args, &words))?;
    if !done.succeeded() && find(args).is_ok_and(|found| found.has_it) {
        return Ok(false);
    }
    succeeded(args, &done, "create-session", needs(args.kind)).map(|()| true)
}

fn needs(kind: Kind) -> &'static str {
    match kind {
        Kind::Virtual => {
            "A virtual session needs Linux, the package nice-xdcv and a desktop environment there, and that no \
             console session runs. On the agent: less /var/log/dcv/sessionlauncher.log"
        }
        Kind::Console => {
            "A console session needs root (--ssh-user root, or --sudo), and that no other session runs. On the \
             agent: less /var/log/dcv/server.log"
        }
    }
}

/// The session as it is now. A desktop that can't start takes the session, created a moment ago, with it.
fn describe(args: &Args, owner: &str, created: bool) -> Result<Session, String> {
    let done = args.login.run(args.agent.into(), &dcv(args, &["describe-session", &args.name, "--json"]))?;
    let hint = if created {
        format!(
            "It was created and has ended since: its desktop did not start. On the agent: less \
             /var/log/dcv/dcv-session.{owner}.{}.log ~{owner}/.xsession-errors",
            args.name
        )
    } else {
        "It was there a moment ago. Try again".to_owned()
    };
    succeeded(args, &done, "describe-session", &hint)?;
    serde_json::from_str(&done.stdout).map_err(|_| strange("dcv describe-session --json", &done.stdout))
}

/// Somebody may be working in a session of that id: it is left as it is.
fn check(args: &Args, owner: &str, session: &Session) -> Result<(), String> {
    let wanted = args.kind.word();
    let kind = session.kind.as_deref().unwrap_or(wanted);
    if (session.owner.as_str(), kind) == (owner, wanted) {
        return Ok(());
    }
    Err(format!(
        "{} has a session {} already: {kind}, of {}. Wanted: {wanted}, of {owner}. It is left as it is: choose \
         another --name, or close it there (dcv close-session {})",
        args.agent, session.id, session.owner, session.id
    ))
}

fn show(args: &Args, session: &Session) {
    println!("  type         {}", session.kind.as_deref().unwrap_or("unknown"));
    println!("  owner        {}", session.owner);
    if let Some(connections) = session.connections {
        println!("  connections  {connections}");
    }
    let proxy = args.proxy.as_deref().unwrap_or("https://PROXY:8443");
    println!("  browser      {proxy}/{}/#{}", args.agent, session.id);
}

/// The line that runs `dcv` on the agent.
fn dcv(args: &Args, words: &[&str]) -> String {
    let start: &[&str] = if args.sudo { &["sudo", "-n", "dcv"] } else { &["dcv"] };
    start.iter().chain(words).map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// What `dcv` says itself is passed on; the hint says where to look if that is not enough.
fn succeeded(args: &Args, done: &Done, command: &str, hint: &str) -> Result<(), String> {
    let said = done.stderr.trim();
    if done.succeeded() {
        return Ok(());
    }
    if done.not_found() || (args.sudo && said.contains("command not found")) {
        return Err(format!(
            "no `dcv` on {}: install the DCV server there (package nice-dcv-server)",
            args.agent
        ));
    }
    let hint = if args.sudo && said.starts_with("sudo:") {
        "--sudo needs a rule without a password (NOPASSWD) for who logs in"
    } else {
        hint
    };
    Err(format!("`dcv {command}` failed on {}: {said}\n{hint}", args.agent))
}

fn strange(command: &str, printed: &str) -> String {
    format!("`{command}` printed what this program can't read: {}", printed.trim())
}

/// What DCV allows, except that a dash in front would look like an option.
fn session_id(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if (1..=ID_MAX).contains(&text.len()) && text.chars().all(is_allowed) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err("a session's id has 1 to 128 letters, digits, `_` and `-`, and doesn't start with `-`".to_owned())
}

/// Scheme, host and port; a slash at the end is dropped.
fn proxy_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    match host {
        Some(host) if !host.is_empty() && host.chars().all(is_allowed) => Ok(url.to_owned()),
        _ => Err("want a URL without a path, as https://proxy.example.com:8443".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_what_dcv_allows_and_is_no_option() {
        for id in ["desktop-session", "a", "A_1", &"a".repeat(128)] {
            assert_eq!(session_id(id).as_deref(), Ok(id));
        }
        for id in ["", "-a", "--json", "a b", "a;b", "a'b", "$(x)", "a\n", "\u{e9}", &"a".repeat(129)] {
            assert!(session_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_proxy_is_a_url_without_a_path() {
        for url in ["https://proxy.example.com:8443", "http://10.0.0.1", "https://[2001:db8::1]:8443"] {
            assert_eq!(proxy_url(url).as_deref(), Ok(url));
            assert_eq!(proxy_url(&format!("{url}/")).as_deref(), Ok(url));
        }
        for url in
            ["", "proxy:8443", "https://", "https://proxy/10.0.0.5", "https://p?x", "ftp://p", "https://a b"]
        {
            assert!(proxy_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_session_is_read_from_what_dcv_prints() {
        let printed = r#"{"id": "a", "owner": "b", "name": "c", "num-of-connections": 2, "licenses": [],
            "storage-root": "", "type": "virtual", "x11-display": ":2"}"#;
        let session: Session = serde_json::from_str(printed).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((&*session.id, &*session.owner, session.connections), ("a", "b", Some(2)));
        assert_eq!(session.kind.as_deref(), Some("virtual"));
    }
}
