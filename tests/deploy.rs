//! `deploy/deploy.sh` over a real sshd into a Debian system made for it, where the package is installed and serves:
//! what it changes, that it leaves everything alone where the configuration or the connection is no good, and that it
//! puts back what was there where the new one does not serve. No systemd runs there: the service was started by hand.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::debian::{Root, package, xtask};
use harness::ports::unused_port;
use harness::process::{Process, eventually};
use harness::sshd::Sshd;
use tempfile::TempDir;

const CONFIG: &str = "/etc/dcv-splice/dcv-splice.toml";

#[test]
fn a_configuration_is_applied_and_the_one_before_is_kept_beside_it() {
    let far = FarSide::new();
    let before = far.config();
    fs::set_permissions(far.root.file(CONFIG), fs::Permissions::from_mode(0o640)).expect("it is there");
    let owner = fs::metadata(far.root.file("/etc/dcv-splice")).expect("it is there").gid();
    std::os::unix::fs::chown(far.root.file(CONFIG), None, Some(owner)).expect("the test is root");
    let config = far.write(
        "it's a 100%h \"name\".toml",
        &far.with("hsts-max-age = \"77s\"\ndefault-agent = \"10.0.0.5\"\n"),
    );
    let said = succeed(&mut far.deploy(&config));
    assert_eq!(far.config(), fs::read_to_string(config).expect("it was written"));
    assert_eq!(far.backups(), [before]);
    let about = fs::metadata(far.root.file(CONFIG)).expect("it is there");
    assert_eq!((about.mode() & 0o777, about.gid()), (0o640, owner));
    assert!(far.headers().contains("max-age=77"), "{}", far.headers());
    for line in [format!("  curl --insecure {}/health", far.url()), format!("  {}/10.0.0.5/", far.url())] {
        assert!(said.lines().any(|said| said == line), "{line} in {said}");
    }
    far.is_clean();
}

#[test]
fn a_package_is_upgraded_before_its_configuration_is_applied() {
    let far = FarSide::new();
    let plain = format!("127.0.0.1:{}", unused_port());
    let config =
        far.write("new.toml", &far.with(&format!("hsts-max-age = \"77s\"\nlisten-plain = [\"{plain}\"]\n")));
    let mut deploy = far.deploy(&config);
    deploy.arg("--package").arg(package(2)).args(["--health", &format!("http://{plain}/health")]);
    let said = succeed(&mut deploy);
    assert!(said.contains(&format!("  {}/AGENT/", far.url())), "{said}");
    assert!(far.root.run("dpkg-query --show dcv-splice").ends_with("-2\n"));
    assert!(far.headers().contains("max-age=77"));
    far.is_clean();
}

#[test]
fn the_command_hands_all_that_it_is_told_to_the_script() {
    let far = FarSide::new();
    let config = far.write("new.toml", &far.with("hsts-max-age = \"77s\"\n"));
    let mut deploy = far.deploy_by(xtask(&["deploy"]), &config);
    let said = succeed(deploy.arg("--package").arg(package(2)));
    assert!(said.contains(&format!("  {}/AGENT/", far.url())), "{said}");
    assert!(far.root.run("dpkg-query --show dcv-splice").ends_with("-2\n"));
    assert!(far.headers().contains("max-age=77"));
    let worse = far.write("worse.toml", &far.with("hsts-max-age = \"a year\"\n"));
    fail(
        1,
        "nothing was changed",
        far.deploy_by(xtask(&["deploy"]), &worse).arg("--package").arg(package(2)),
    );
}

#[test]
fn a_package_that_does_not_serve_gives_way_to_the_one_that_was_deployed_before() {
    let far = FarSide::new();
    let config = far.write("new.toml", &far.with(""));
    succeed(far.deploy(&config).arg("--package").arg(package(2)));
    let worse = far.write("worse.toml", &far.with("hsts-max-age = \"77s\"\n"));
    fail(
        1,
        "the configuration from before is served",
        unhealthy(far.deploy(&worse).arg("--package").arg(package(3))),
    );
    assert!(far.root.run("dpkg-query --show dcv-splice").ends_with("-2\n"));
    assert!(!far.headers().contains("max-age"));
    far.is_clean();
}

#[test]
fn without_a_connection_it_says_so_and_nothing_happens() {
    let far = FarSide::new();
    let config = far.write("new.toml", &far.with("hsts-max-age = \"77s\"\n"));
    let closed = unused_port().to_string();
    fail(1, "no SSH to", far.deploy(&config).args(["--ssh-port", &closed]));
    fail(1, "no SSH to", far.deploy(&config).arg("--key").arg(far.sshd.stranger()));
    let nobody_vouches = far.write("empty", "");
    fail(1, "no SSH to", far.deploy(&config).arg("--known-hosts").arg(nobody_vouches));
    far.is_untouched();
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let far = FarSide::new();
    let bad = far.write("bad.toml", &far.with("hsts-max-age = \"a year\"\n"));
    fail(1, "nothing was changed", &mut far.deploy(&bad));
    fail(1, "nothing was changed", far.deploy(&bad).arg("--package").arg(package(2)));
    assert!(far.root.run("dpkg-query --show dcv-splice").ends_with("-1\n"));
    far.is_untouched();
}

#[test]
fn a_key_that_only_root_can_read_is_found_before_anything_changes() {
    let far = FarSide::new();
    let (cert, key) = ("/etc/dcv-splice/proxy.crt", "/etc/dcv-splice/proxy.key");
    let pair = rcgen::generate_simple_self_signed(["proxy".to_owned()]).expect("a certificate");
    fs::write(far.root.file(cert), pair.cert.pem()).expect("the folder takes files");
    fs::write(far.root.file(key), pair.signing_key.serialize_pem()).expect("the folder takes files");
    fs::set_permissions(far.root.file(key), fs::Permissions::from_mode(0o600)).expect("it is there");
    let config = far.write("new.toml", &far.with(&format!("cert = [\"{cert}\"]\nkey = [\"{key}\"]\n")));
    fail(1, "nothing was changed", &mut far.deploy(&config));
    far.is_untouched();
}

#[test]
fn one_that_does_not_answer_is_rolled_back() {
    let far = FarSide::new();
    let before = far.config();
    let config = far.write("new.toml", &far.with("hsts-max-age = \"77s\"\n"));
    fail(1, "the configuration from before is served", unhealthy(&mut far.deploy(&config)));
    assert_eq!(far.config(), before);
    assert_eq!(far.backups(), [before]);
    assert!(!far.headers().contains("max-age"));
    far.is_clean();
}

#[test]
fn one_that_is_not_taken_over_is_rolled_back() {
    let far = FarSide::new();
    let before = far.config();
    // The port is taken, which no check can tell.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let listen = format!("listen-plain = [\"{}\"]\n", taken.local_addr().expect("it is bound"));
    let config = far.write("new.toml", &far.with(&listen));
    fail(1, "the configuration from before is served", far.deploy(&config).arg("--upgrade"));
    assert_eq!(far.config(), before);
    assert!(far.headers().contains("200"));
    far.is_clean();
}

#[test]
fn a_connection_that_breaks_leaves_no_half_of_a_deploy() {
    let far = FarSide::new();
    let config = far.write("new.toml", &far.with("hsts-max-age = \"77s\"\n"));
    let mut deploy = far.deploy(&config);
    unhealthy(&mut deploy);
    let begun = Process::start(deploy);
    eventually("the configuration is applied", || far.headers().contains("max-age").then_some(()));
    drop(begun);
    eventually("it is rolled back", || (far.config() == far.before).then_some(()));
    eventually("its files are gone", || far.left().is_empty().then_some(()));
    assert!(!far.headers().contains("max-age"));
}

#[test]
fn sudo_is_used_where_it_is_asked_for_and_must_want_no_password() {
    let far = FarSide::new();
    let config = far.write("new.toml", &far.with("hsts-max-age = \"77s\"\n"));
    far.sudo("echo 'sudo: a password is required' >&2; exit 1");
    fail(1, "a password is required", far.deploy(&config).arg("--sudo"));
    far.is_untouched();
    far.sudo("[ \"$1\" = -n ] && shift && exec \"$@\"");
    succeed(far.deploy(&config).arg("--sudo"));
    assert!(far.headers().contains("max-age=77"));
    far.is_clean();
}

#[test]
fn what_can_not_be_meant_is_refused_before_any_connection() {
    for arguments in [
        &["--host", "a;b", "--config", "deploy.rs"][..],
        &["--host", "-oProxyCommand=a", "--config", "deploy.rs"],
        &["--host", "a", "--config", "no such file"],
        &["--host", "a", "--config", "deploy.rs", "--ssh-port", "22x"],
        &["--host", "a", "--config", "deploy.rs", "--health", "http://a/'b"],
        &["--host", "a", "--config"],
        &["--host", "a", "--confg", "deploy.rs"],
        &["--config", "deploy.rs"],
    ] {
        let output = script(arguments).output().expect("the script starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
}

/// The system that is deployed to: the service, and the way in.
struct FarSide {
    sshd: Sshd,
    _service: Process,
    near: TempDir,
    port: u16,
    before: String,
    root: Root,
}

impl FarSide {
    fn new() -> Self {
        let root = Root::new();
        root.install(&package(1));
        let port = unused_port();
        let before = config(port);
        fs::write(root.file(CONFIG), &before).expect("the folder takes files");
        let service = root.serve();
        let sshd = Sshd::start_in(Some(root.path()));
        let near = tempfile::tempdir().expect("a temporary folder");
        let far = Self { sshd, _service: service, near, port, before, root };
        eventually("the service answers", || far.headers().contains("200").then_some(()));
        far
    }

    /// The script with what it needs to get there.
    fn deploy(&self, config: &Path) -> Command {
        self.deploy_by(script(&[]), config)
    }

    fn deploy_by(&self, mut command: Command, config: &Path) -> Command {
        let port = self.sshd.port().to_string();
        command.args(["--host", "127.0.0.1", "--ssh-port", &port, "--user", self.sshd.user()]);
        // A name of a file with a space in it is no two names.
        let (key, known_hosts) = (self.near.path().join("a key"), self.near.path().join("known hosts"));
        fs::copy(self.sshd.key(), &key).expect("the key can be read");
        fs::copy(self.sshd.known_hosts(), &known_hosts).expect("the file can be read");
        command.arg("--key").arg(key).arg("--known-hosts").arg(known_hosts).arg("--config").arg(config);
        command
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.near.path().join(name);
        fs::write(&file, text).expect("the folder takes files");
        file
    }

    fn with(&self, more: &str) -> String {
        config(self.port) + more
    }

    fn config(&self) -> String {
        fs::read_to_string(self.root.file(CONFIG)).expect("the configuration is there")
    }

    /// What was backed up, the earliest first.
    fn backups(&self) -> Vec<String> {
        let folder = fs::read_dir(self.root.file("/etc/dcv-splice")).expect("it was installed");
        let mut files: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.to_string_lossy().contains(".toml."));
        files.sort();
        files.iter().map(|file| fs::read_to_string(file).expect("it is text")).collect()
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The head of an answer to a request for /health.
    fn headers(&self) -> String {
        let ask = format!(
            "curl --silent --insecure --head --request GET --max-time 5 {}/health || true",
            self.url()
        );
        self.root.run(&ask)
    }

    /// A `sudo` that does what it likes: the system has none.
    fn sudo(&self, script: &str) {
        let file = self.sshd.bin().join("sudo");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("the folder takes files");
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("it is there");
    }

    /// Files of a deploy's own.
    fn left(&self) -> String {
        self.root.run("ls -d /tmp/dcv-splice-deploy.* /etc/dcv-splice/*.deployed 2>/dev/null || true")
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(self.left(), "");
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(self.config(), self.before);
        assert_eq!(self.backups(), [""; 0]);
        assert!(self.headers().contains("200") && !self.headers().contains("max-age"));
        self.is_clean();
    }
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/deploy.sh"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

#[track_caller]
fn succeed(deploy: &mut Command) -> String {
    let output = deploy.output().expect("the script starts");
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn fail(code: i32, saying: &str, deploy: &mut Command) {
    let output = deploy.output().expect("the script starts");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(saying), "{said}");
}

/// Asks for its health where nobody answers.
fn unhealthy(deploy: &mut Command) -> &mut Command {
    deploy.args(["--patience", "1", "--health", &format!("http://127.0.0.1:{}/health", unused_port())])
}

fn config(port: u16) -> String {
    format!("listen = [\"127.0.0.1:{port}\"]\nadmin = \"off\"\nagents = [\"10.0.0.0/24\"]\n")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
