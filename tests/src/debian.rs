//! A Debian system of its own in a folder, to install the package in: of this machine's release, from wherever this
//! machine's apt gets its packages. The system is made once and kept packed below `target/`; each test unpacks its own.
//! Nothing is installed or started on the machine itself, and no systemd runs: what it would do, a test does.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::process::Process;
use crate::proxy;

/// Besides the essential: what the package depends on or works with, and what tests do to it.
const PACKAGES: &str = "adduser,curl,logrotate,openssh-server,systemd";
/// Runs `$@` in the root `$1`, in namespaces that end with it. The first process is the shell: were it the program,
/// all would end with it, also what it has handed over to.
const INSIDE: &str = r#"
set -eu
root=$1
shift
mount -t proc proc "$root/proc"
[ -c "$root/dev/null" ] || mount --rbind /dev "$root/dev"
chroot "$root" "$@"
"#;
/// The service as systemd would start it, but for its sandbox. The last line keeps the namespace.
const SERVICE: &str = r"
install -d -o dcv-splice -g dcv-splice -m 0750 /run/dcv-splice
umask 0077
setpriv --reuid=dcv-splice --regid=dcv-splice --clear-groups \
    $(sed -n 's/^ExecStart=//p' /lib/systemd/system/dcv-splice.service) &
exec sleep infinity
";

/// The system. It goes with its guard.
#[derive(Debug)]
pub struct Root {
    folder: TempDir,
}

impl Root {
    /// A fresh one; panics where the test does not run as root.
    #[track_caller]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("debian-").tempdir().expect("a temporary folder");
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--numeric-owner", "--xattrs", "--file"]).arg(packed()).arg("-C");
        succeed(unpack.arg(folder.path()));
        Self { folder }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the system's, given its path there.
    pub fn file(&self, inside: &str) -> PathBuf {
        self.path().join(inside.trim_start_matches('/'))
    }

    /// The shell script, to be run inside.
    pub fn script(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, "inside"]);
        command.arg(self.path()).args(["sh", "-euc", script]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    /// What the script prints to stdout; panics if it fails.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        String::from_utf8_lossy(&succeed(&mut self.script(script)).stdout).into_owned()
    }

    /// Installs the package, or upgrades to it; returns what dpkg and the package's scripts have said.
    #[track_caller]
    pub fn install(&self, package: &Path) -> String {
        fs::copy(package, self.file("/tmp/package.deb")).expect("the package can be read");
        self.run("dpkg --install /tmp/package.deb 2>&1; rm /tmp/package.deb")
    }

    /// Starts the service by hand, as its account.
    #[track_caller]
    pub fn serve(&self) -> Process {
        Process::start(self.script(SERVICE)).without_grace()
    }

    /// All files, each with its type, mode, owner and group.
    pub fn files(&self) -> BTreeMap<String, String> {
        let listed = self.run(r"find / -xdev \( -path /proc -o -path /dev -o -path /tmp \) -prune -o -printf '%p\t%y %m %u:%g\n'");
        let parts = listed.lines().filter_map(|line| line.split_once('\t'));
        parts.map(|(path, about)| (path.to_owned(), about.to_owned())).collect()
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

/// The project's package of this revision, of the same build that tests run; made once.
#[track_caller]
pub fn package(revision: u32) -> PathBuf {
    static MADE: Mutex<BTreeMap<u32, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(revision).or_insert_with(|| make_package(revision)).clone()
}

fn make_package(revision: u32) -> PathBuf {
    let mut dist = xtask(&["dist", "--profile", "dev", "--revision", &revision.to_string()]);
    let made = PathBuf::from(String::from_utf8_lossy(&succeed(&mut dist).stdout).trim());
    // Nobody is to take it for one that is passed on.
    let folder = proxy::target_directory().join("debian/packages");
    fs::create_dir_all(&folder).expect("the target directory takes folders");
    let own = folder.join(made.file_name().expect("a package has a name"));
    fs::rename(made, &own).expect("both are in one folder");
    own
}

/// The project's command, on the build that tests run.
pub fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    command.arg("xtask").args(arguments).stdin(Stdio::null());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", proxy::target_directory());
    command
}

/// The packed system, made the first time it is asked for.
fn packed() -> PathBuf {
    let codename = release();
    let folder = proxy::target_directory().join("debian");
    fs::create_dir_all(&folder).expect("the target directory takes folders");
    let packed = folder.join(format!("{codename}-{}.tar", PACKAGES.replace(',', "-")));
    // Held until this function ends: another test may be at it.
    let lock = File::create(folder.join("lock")).expect("the folder takes files");
    lock.lock().expect("a file can be locked");
    if !packed.exists() {
        let unfinished = folder.join("unfinished.tar");
        bootstrap(&codename, &folder, &unfinished);
        fs::rename(unfinished, &packed).expect("both are in one folder");
    }
    packed
}

fn bootstrap(codename: &str, folder: &Path, to: &Path) {
    let (sources, options) = (folder.join("sources.list"), folder.join("apt.conf"));
    fs::write(&sources, apt_sources(codename)).expect("the folder takes files");
    fs::write(&options, apt_options()).expect("the folder takes files");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={PACKAGES}")).arg(format!("--aptopt={}", options.display()));
    succeed(command.arg(codename).arg(to).arg(sources));
}

/// As the program was linked to this release's libraries, it runs on no earlier one.
fn release() -> String {
    let about = fs::read_to_string("/etc/os-release").expect("a Debian system has an os-release");
    let codename = about.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.expect("a release has a name").trim_matches('"').to_owned()
}

/// Where this machine gets the release's packages from.
fn apt_sources(codename: &str) -> Vec<u8> {
    let mut targets = Command::new("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]);
    let sources = succeed(targets.arg(format!("Codename: {codename}"))).stdout;
    assert!(!sources.is_empty(), "apt knows no packages of {codename}: apt-get update");
    sources
}

/// How this machine gets them: by which proxy, and with which checks.
fn apt_options() -> String {
    let dump = succeed(Command::new("apt-config").args(["dump", "Acquire"])).stdout;
    let dump = String::from_utf8_lossy(&dump);
    // What else is downloaded is the machine's own affair.
    dump.lines().filter(|line| !line.contains("::IndexTargets")).flat_map(|line| [line, "\n"]).collect()
}

/// Runs it to its end; panics with what it said if it fails.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| panic!("{name} doesn't start: {error}"));
    let [said, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{name} failed ({}):\n{said}{failed}", output.status);
    output
}
