//! Agents that are listed by a program or by DNS: how they come, change and go, and what is kept where a source fails.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::name_server::NameServer;
use harness::ports::unused_address;
use harness::process::eventually;
use harness::proxy::{self, Proxy};
use harness::raw_client::RawClient;
use harness::stand_in::StandIn;
use serde_json::Value;
use tempfile::TempDir;

/// A proxy whose agents lie in 127.91.0.0/16.
struct Listed {
    proxy: Proxy,
    folder: TempDir,
}

impl Listed {
    fn start(folder: TempDir, port: u16, flags: &[&str]) -> Self {
        let control = format!("--control={}", folder.path().join("control").display());
        let port = format!("--agent-port={port}");
        let fixed =
            ["--listen-plain=127.0.0.1:0", "--agents=127.91.0.0/16", "--agent-tls=off", &*control, &*port];
        let mut proxy = Proxy::start(&[&fixed[..], flags].concat());
        // It listens before it serves.
        proxy.until("can be reached", |log| log.contains("control socket opened").then_some(()));
        Self { proxy, folder }
    }

    fn operate(&self, words: &[&str]) -> String {
        let mut command = Command::new(proxy::binary());
        let output = command.args(words).arg("--control").arg(self.folder.path().join("control")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn agents(&self) -> Vec<Value> {
        let all: Value = serde_json::from_str(&self.operate(&["agents", "--json"])).unwrap();
        all["agent"].as_array().unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        self.agents().iter().map(|agent| agent["name"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn becomes(&self, names: &[&str]) {
        eventually("the agents are these", || (self.names() == names).then_some(()));
    }

    #[track_caller]
    fn says(&self, what: &str) {
        eventually("the log says it", || self.proxy.log().contains(what).then_some(()));
    }

    async fn ask(&self, path: &str) -> (u16, String) {
        let mut client = RawClient::plain(self.proxy.address()).await;
        client.say(format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n")).await;
        let answer = client.answer().await.unwrap();
        (answer.status, answer.text())
    }
}

/// Writes it in one step.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(fresh, path).unwrap();
}

/// A program that runs `script`.
fn program(folder: &Path, name: &str, script: &str) -> PathBuf {
    let path = folder.join(name);
    replace(&path, &format!("#!/bin/sh\n{script}\n"));
    path
}

async fn agent(name: &str, last: u8, port: u16) -> StandIn {
    StandIn::start(name, SocketAddr::from(([127, 91, 0, last], port))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_lists_agents_and_is_run_again_and_again() {
    let one = agent("one", 1, 0).await;
    let port = one.address.port();
    let _two = agent("two", 2, port).await;
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    replace(&list, r#"{"agent": [{"name": "one", "address": "127.91.0.1", "pools": ["cad"]}]}"#);
    let program =
        program(folder.path(), "program", "test \"$1\" = 'a b' && test -z \"$(cat)\" && cat \"$2\"");
    let command = format!("--agents-command={} 'a b' {}", program.display(), list.display());
    let listed =
        Listed::start(folder, port, &[&*command, "--agents-command-interval=1s", "--admin=127.0.0.1:0"]);
    // It is served only when they are known.
    assert_eq!(listed.ask("/one/x").await, (200, "one /x".to_owned()));
    assert_eq!(listed.agents()[0]["pools"][0], "cad");
    listed.operate(&["drain", "one"]);
    let both =
        r#"{"agent": [{"name": "one", "address": "127.91.0.1"}, {"name": "two", "address": "127.91.0.2"}]}"#;
    replace(&list, both);
    listed.becomes(&["one", "two"]);
    assert_eq!(listed.agents()[0]["state"], "drain");
    assert_eq!(listed.ask("/two/x").await, (200, "two /x".to_owned()));
    // What can't be used changes nothing.
    for (text, says) in [
        ("{\"agent\": []}", "it lists no agents any more: the 2 of before stay"),
        ("{\"agent\": [\n{\"name\": \"one\"}]}", "its list:2:1: an agent without address"),
        (
            "{\"agent\": [{\"name\": \"a\", \"address\": \"10.0.0.1\"}]}",
            "10.0.0.1 lies in no network of --agents",
        ),
        (
            "{\"agent\": [{\"name\": \"a\", \"address\": \"127.91.0.1\", \"tls\": {\"ca\": \"/etc/passwd\"}}]}",
            "a ca is a file",
        ),
        ("\u{1b}[2J", "its list:1:1"),
    ] {
        replace(&list, text);
        listed.says(says);
        assert_eq!(listed.names(), ["one", "two"], "{text}");
    }
    let log = listed.proxy.log();
    assert!(!log.contains('\u{1b}'), "{log}");
    let admin = log.split("admin page at http://").nth(1).unwrap().split('/').next().unwrap();
    let mut client = RawClient::plain(admin.parse().unwrap()).await;
    client.say("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    let metrics = client.answer().await.unwrap().text();
    assert!(metrics.contains("source=\"--agents-command\"} 0\n") && metrics.contains("} 2\n"), "{metrics}");
    replace(&program, "#!/bin/sh\necho no such region >&2\nexit 3\n");
    listed.says("exit status: 3: no such region");
    fs::remove_file(&program).unwrap();
    listed.says("No such file or directory");
    assert_eq!(listed.names(), ["one", "two"]);
    replace(&program, &format!("#!/bin/sh\ncat {}\n", list.display()));
    replace(&list, r#"{"agent": [{"name": "two", "address": "127.91.0.2"}]}"#);
    listed.becomes(&["two"]);
    assert_eq!(listed.ask("/one/x").await.0, 404);
    // Listed again, it is in the state that it was set to.
    replace(&list, both);
    listed.becomes(&["one", "two"]);
    assert_eq!(listed.agents()[0]["state"], "drain");
}

/// Of what runs for long, speaks without end, or would like to have more rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_no_privileges_and_no_end_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let status = folder.path().join("status");
    let script = format!(
        "cat /proc/self/status >{0}.fresh; ls -l /proc/self/fd >>{0}.fresh; echo \"$NOTIFY_SOCKET\" >>{0}.fresh; \
         mv {0}.fresh {0}; echo '{{\"agent\": []}}'",
        status.display()
    );
    let program = program(folder.path(), "program", &script);
    let command = format!("--agents-command={}", program.display());
    let listed = Listed::start(folder, 8443, &[&*command, "--agents-command-interval=1s"]);
    let said = eventually("it was run", || fs::read_to_string(&status).ok());
    for line in [
        "NoNewPrivs:\t1",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    // Its input is empty, its output goes to the helper, and nothing else of the helper's is open.
    assert!(said.contains("0 -> /dev/null") && !said.contains("3 -> socket"), "{said}");
    // A list that has no end.
    replace(&program, "#!/bin/sh\nexec head -c 20000000 /dev/zero\n");
    listed.says("its list is too long");
    assert!(listed.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_file_lists_comes_before_what_a_program_does() {
    let one = agent("file", 1, 0).await;
    let port = one.address.port();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("agents.toml"), one.entry("")).unwrap();
    let list = r#"{"agent": [{"name": "program", "address": "127.91.0.1"}, {"name": "file", "address": "127.91.0.2"}, {"name": "other", "address": "127.91.0.3"}]}"#;
    let program = program(folder.path(), "program", &format!("echo '{list}'"));
    let command = format!("--agents-command={}", program.display());
    let file = format!("--agents-file={}", folder.path().join("agents.toml").display());
    let listed = Listed::start(folder, port, &[&*command, &*file]);
    assert_eq!(listed.names(), ["file", "other"]);
    assert_eq!(listed.ask("/file/x").await.1, "file /x");
    listed.says("program has the address of file");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_dns_are_followed_as_long_as_their_records_are_good() {
    let one = agent("one", 1, 0).await;
    let port = one.address.port();
    let _two = agent("two", 2, port).await;
    let server = NameServer::start(1).await;
    server.set_addresses("desks.example.com", &["127.91.0.1"]);
    server.set_services(
        "_dcv._tcp.cad.example.com",
        &[(port, "WS-17.example.com"), (22, "ssh.example.com"), (port, "gone.example.com")],
    );
    server.set_addresses("ws-17.example.com", &["127.91.0.2"]);
    server.set_addresses("ssh.example.com", &["127.91.0.3"]);
    let names = ["--agents-dns=desks.example.com", "--agents-dns=_dcv._tcp.cad.example.com."];
    let ask = format!("--dns-server={}", server.address);
    let listed = Listed::start(tempfile::tempdir().unwrap(), port, &[&names[..], &[&*ask]].concat());
    assert_eq!(listed.names(), ["ws-17", "desks-127-91-0-1"]);
    assert_eq!(listed.agents()[0]["pools"][0], "cad");
    assert_eq!(listed.ask("/desks-127-91-0-1/x").await.1, "one /x");
    assert_eq!(listed.ask("/ws-17/x").await.1, "two /x");
    listed.says("ssh is left out: port 22 is not one of --agent-ports");
    server.set_addresses("desks.example.com", &["127.91.0.1", "127.91.0.9"]);
    listed.becomes(&["ws-17", "desks-127-91-0-1", "desks-127-91-0-9"]);
    // A name that has no records any more, or nobody who answers for it, changes nothing.
    server.set_addresses("desks.example.com", &[]);
    listed.says("agents are not listed, those of before stay");
    server.fall_silent();
    listed.says("timed out");
    assert_eq!(listed.names().len(), 3);
    server.set_addresses("desks.example.com", &["127.91.0.9"]);
    server.set_services("_dcv._tcp.cad.example.com", &[(port, "ws-17.example.com")]);
    server.set_addresses("ws-17.example.com", &["127.91.0.2"]);
    listed.becomes(&["ws-17", "desks-127-91-0-9"]);
    assert_eq!(listed.ask("/desks-127-91-0-1/x").await.0, 404);
    assert_eq!(listed.ask("/ws-17/x").await.1, "two /x");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_serves_when_it_knows_the_agents_too() {
    let one = agent("one", 1, 0).await;
    let port = one.address.port();
    let server = NameServer::start(60).await;
    server.set_addresses("desks.example.com", &["127.91.0.1"]);
    let ask = format!("--dns-server={}", server.address);
    let front = unused_address();
    let again = format!("--listen-plain={front}");
    let flags = ["--agents-dns=desks.example.com", &*ask, &*again];
    let listed = Listed::start(tempfile::tempdir().unwrap(), port, &flags);
    let asked = server.asked();
    listed.operate(&["drain", "desks-127-91-0-1"]);
    listed.operate(&["upgrade"]);
    assert!(server.asked() > asked);
    assert_eq!(listed.names(), ["desks-127-91-0-1"]);
    assert_eq!(listed.agents()[0]["state"], "drain");
    listed.operate(&["undrain", "desks-127-91-0-1"]);
    let mut client = RawClient::plain(front).await;
    client.say("GET /desks-127-91-0-1/x HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().text(), "one /x");
    // A source that can't say anything to the next process has said it to this one.
    server.fall_silent();
    listed.operate(&["upgrade"]);
    assert_eq!(listed.names(), ["desks-127-91-0-1"]);
    drop(listed);
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_judges_lists_again() {
    let server = NameServer::start(3600).await;
    server.set_addresses("desks.example.com", &["127.91.0.1", "127.92.0.9"]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.toml");
    let list = r#"{"agent": [{"name": "far", "address": "127.92.0.8"}]}"#;
    let program = program(folder.path(), "program", &format!("echo '{list}'"));
    let ask = format!("--dns-server={}", server.address);
    let command = format!("--agents-command={}", program.display());
    let path = format!("--config={}", config.display());
    let control = format!("--control={}", folder.path().join("control").display());
    let both = "agents = [\"127.91.0.0/16\", \"127.92.0.0/16\"]\n";
    let one = "agents = [\"127.91.0.0/16\"]\n";
    fs::write(&config, one).unwrap();
    let fixed = ["--listen-plain=127.0.0.1:0", "--agent-tls=off", "--agents-dns=desks.example.com"];
    let mut proxy = Proxy::start(&[&fixed[..], &[&*ask, &*command, &*path, &*control]].concat());
    proxy.until("can be reached", |log| log.contains("control socket opened").then_some(()));
    let listed = Listed { proxy, folder };
    assert_eq!(listed.names(), ["desks-127-91-0-1"]);
    let asked = server.asked();
    for (text, names) in [
        (both, &["far", "desks-127-91-0-1", "desks-127-92-0-9"][..]),
        (one, &["desks-127-91-0-1"]),
        (both, &["far", "desks-127-91-0-1", "desks-127-92-0-9"]),
    ] {
        fs::write(&config, text).unwrap();
        listed.operate(&["reload"]);
        assert_eq!(listed.names(), names);
    }
    assert_eq!(server.asked(), asked, "nobody was asked again");
}

fn refused(flags: &[&str]) -> String {
    let output = Command::new(proxy::binary()).arg("check").args(flags).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_can_be_no_program_and_no_name_is_refused() {
    assert!(refused(&["--agents-command=list-agents"]).contains("write the whole path"));
    assert!(refused(&["--agents-command=/bin/sh -c 'x"]).contains("a quote is not closed"));
    for name in ["", "_dcv._tcp", "10.0.0.1", "a b.example.com", "a..b", "-\u{e9}"] {
        let flag = format!("--agents-dns={name}");
        assert!(refused(&[&flag]).contains("write a name such as desks.example.com"), "{name}");
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agents-command")
}

/// Stand-ins of the tools that the scripts run: each says what it says to the arguments that it is documented to take.
fn tools() -> TempDir {
    let tools = tempfile::tempdir().unwrap();
    let said = |name: &str, wanted: &str, says: &str| {
        fs::write(tools.path().join(format!("{name}.json")), says).unwrap();
        let script = format!(
            "case \"$*\" in {wanted}) cat {}/{name}.json;; *) echo \"$*\" >&2; exit 1;; esac",
            tools.path().display()
        );
        program(tools.path(), name, &script);
    };
    said(
        "aws",
        "'ec2 describe-instances --output json --filters Name=tag-key,Values=dcv-pool Name=instance-state-name,Values=running'",
        r#"{"Reservations": [{"Instances": [
            {"InstanceId": "i-0a1", "PrivateIpAddress": "127.91.0.1", "Placement": {"AvailabilityZone": "eu-west-3a"},
             "Tags": [{"Key": "dcv-pool", "Value": "CAD"}, {"Key": "Name", "Value": "GPU 07 (Lyon)"}]}]},
            {"Instances": [{"InstanceId": "i-0b2", "PrivateIpAddress": "127.91.0.2", "Placement": {"AvailabilityZone": "eu-west-3b"},
             "Tags": [{"Key": "dcv-pool", "Value": "cad"}]},
             {"InstanceId": "i-0c3", "PrivateIpAddress": "127.91.0.3", "Placement": {"AvailabilityZone": "eu-west-3b"},
             "Tags": [{"Key": "dcv-pool", "Value": ""}, {"Key": "Name", "Value": "asg"}]},
             {"InstanceId": "i-0d4", "PrivateIpAddress": "127.91.0.4", "Placement": {"AvailabilityZone": "eu-west-3b"},
             "Tags": [{"Key": "Name", "Value": "asg"}]}]}]}"#,
    );
    said(
        "kubectl",
        "'get pods --selector app=dcv --field-selector status.phase=Running --output json --namespace desktops'",
        r#"{"items": [
            {"metadata": {"name": "dcv-0", "labels": {"app": "dcv", "dcv-pool": "cad"}}, "status": {"podIP": "127.91.0.1"}, "spec": {"nodeName": "n1"}},
            {"metadata": {"name": "dcv-1", "labels": {"app": "dcv"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"podIP": "127.91.0.2"}, "spec": {}},
            {"metadata": {"name": "dcv-2", "labels": {}}, "status": {}, "spec": {}}]}"#,
    );
    let hosts = "case \"$2\" in ws-1.example.com) printf '127.91.0.1 STREAM ws-1.example.com\\n127.91.0.1 DGRAM\\n';; \
                 WS-2) echo '127.91.0.2 STREAM WS-2';; *) exit 2;; esac";
    program(tools.path(), "getent", hosts);
    tools
}

/// What the tools say, by stand-ins of them: the scripts of the package make lists of it that can be used.
#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_of_the_package_list_agents() {
    let (scripts, tools) = (scripts(), tools());
    for (script, arguments, wanted) in [
        (
            "ec2",
            "",
            &[
                ("gpu-07-lyon", "active", "cad"),
                ("i-0b2", "active", "cad"),
                ("asg-i-0c3", "active", ""),
                ("asg-i-0d4", "active", ""),
            ][..],
        ),
        ("kubernetes", " --namespace desktops", &[("dcv-0", "active", "cad"), ("dcv-1", "drain", "")]),
        (
            "hosts",
            " ws-1.example.com gone.example.com WS-2",
            &[("ws-1", "active", ""), ("ws-2", "active", "")],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("PATH={}:/usr/bin:/bin", tools.path().display());
        let command =
            format!("--agents-command=/usr/bin/env {path} {}{arguments}", scripts.join(script).display());
        let listed = Listed::start(folder, 8443, &[&*command]);
        let found: Vec<_> = listed
            .agents()
            .iter()
            .map(|agent| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&agent["name"]), text(&agent["state"]), text(&agent["pools"][0]))
            })
            .collect();
        let own = |(name, state, pool): &(&str, &str, &str)| {
            ((*name).to_owned(), (*state).to_owned(), (*pool).to_owned())
        };
        let wanted: Vec<_> = wanted.iter().map(own).collect();
        assert_eq!(found, wanted, "{script}: {}", listed.proxy.log());
    }
    let mut shellcheck = Command::new("shellcheck");
    let checked = shellcheck.args(["ec2", "kubernetes", "hosts"].map(|script| scripts.join(script))).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
