//! A real OpenSSH server on a loopback port, with a host key, a client key and a folder that commands are looked
//! for in first. Of the machine's own SSH, server or client, it reads and changes nothing; what was started through
//! it ends with it. As root it runs in namespaces of its own, on the machine's files or on those of another root.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User};
use tempfile::TempDir;

use crate::ports::unused_port;
use crate::process::{Process, eventually};

const SSHD: &str = "/usr/sbin/sshd";
/// What a login has besides the folder of the test's own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Ports tried: another program may take one between the choice and the start.
const ATTEMPTS: usize = 10;

/// Runs `$@` in the root `$1` with a `/proc` of the namespace, and with devices where the root has none. sshd wants an
/// empty `/run/sshd`: there it is made, on the machine's own files it is seen by nobody else.
const ISOLATED: &str = r#"
set -eu
root=$1
shift
if [ "$root" = / ]; then
    mount -t tmpfs -o mode=755 tmpfs /run
else
    mount -t proc proc "$root/proc"
    [ -c "$root/dev/null" ] || mount --rbind /dev "$root/dev"
fi
mkdir -p "$root/run/sshd"
exec chroot "$root" "$@"
"#;

/// A running SSH server. Dropping it ends the server, its connections and, as root, all that was started by them.
#[derive(Debug)]
pub struct Sshd {
    process: Process,
    port: u16,
    user: String,
    // Dropped last: the server reads its files.
    folder: TempDir,
}

impl Sshd {
    /// A server on this machine's files, for the user who runs the test.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_in(None)
    }

    /// The same on the files below `root`, a system of its own that has `openssh-server` installed; wants to be root.
    #[track_caller]
    pub fn start_in(root: Option<&Path>) -> Self {
        let root = root.unwrap_or(Path::new("/"));
        let folder = tempfile::Builder::new().prefix("sshd-").tempdir_in(root.join("tmp"));
        let folder = folder.expect("a folder in /tmp of the server's root");
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten().expect("who runs the test has a name").name;
        for name in ["host", "client"] {
            make_key(&folder.path().join(name));
        }
        fs::create_dir(folder.path().join("bin")).expect("the folder is new");
        for _ in 0..ATTEMPTS {
            let port = unused_port();
            let config = configure(folder.path(), root, port);
            let mut process = Process::start(server(root, uid, &config));
            if listens(&mut process) {
                return Self { process, port, user, folder };
            }
        }
        panic!("{ATTEMPTS} free ports were taken before sshd came to listen");
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whom it lets in: who runs the test.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The private key it lets in.
    pub fn key(&self) -> PathBuf {
        self.file("client")
    }

    /// A private key it does not let in.
    pub fn stranger(&self) -> PathBuf {
        let key = self.file("stranger");
        if !key.exists() {
            make_key(&key);
        }
        key
    }

    /// The `known_hosts` file that vouches for it.
    pub fn known_hosts(&self) -> PathBuf {
        let file = self.file("known_hosts");
        let key = fs::read_to_string(self.file("host.pub")).expect("the host key was made");
        fs::write(&file, format!("[127.0.0.1]:{} {key}", self.port)).expect("the folder takes files");
        file
    }

    /// The folder, empty at first, in which commands are looked for before anywhere else.
    pub fn bin(&self) -> PathBuf {
        self.file("bin")
    }

    /// What `ssh` takes before the command: options that read no configuration of the user's, and the destination.
    pub fn ssh_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-F", "none", "-p"].map(str::to_owned).into();
        arguments.extend([self.port.to_string(), "-i".into(), self.key().display().to_string()]);
        for option in ["BatchMode=yes", "IdentitiesOnly=yes", "GlobalKnownHostsFile=none"] {
            arguments.extend(["-o".into(), option.into()]);
        }
        arguments.extend(["-o".into(), format!("UserKnownHostsFile={}", self.known_hosts().display())]);
        arguments.push(format!("{}@127.0.0.1", self.user));
        arguments
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn make_key(file: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .status()
        .expect("ssh-keygen starts (openssh-client)");
    assert!(made.success(), "no key in {}", file.display());
}

/// Writes the configuration; returns its path as the server sees it. At a `HOME` without files no shell's start-up
/// file changes the path or prints.
fn configure(folder: &Path, root: &Path, port: u16) -> PathBuf {
    let inside = Path::new("/").join(folder.strip_prefix(root).expect("the folder lies in the root"));
    let seen = inside.display();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {seen}/host\nAuthorizedKeysFile {seen}/client.pub\n\
         PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\nPrintMotd no\nSubsystem sftp internal-sftp\n\
         SetEnv PATH={seen}/bin:{PATH} HOME={seen}\n"
    );
    fs::write(folder.join("sshd_config"), config).expect("the folder takes files");
    inside.join("sshd_config")
}

/// The pid namespace ends all that a connection left running when sshd, its first process, ends.
fn server(root: &Path, uid: Uid, config: &Path) -> Command {
    let mut command = Command::new(if uid.is_root() { "unshare" } else { SSHD });
    if uid.is_root() {
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ISOLATED, "sh"]);
        command.args([root, Path::new(SSHD)]);
    } else {
        assert_eq!(root, Path::new("/"), "only root can serve another root");
    }
    command.args(["-D", "-e", "-f"]).arg(config);
    command
}

/// Whether it came to listen; panics if it ended for another reason than a port that is taken.
fn listens(process: &mut Process) -> bool {
    eventually("sshd listens or ends", || {
        if process.log().contains("Server listening on") {
            return Some(true);
        }
        process.ended().map(|_| {
            process.wait();
            assert!(process.log().contains("Address already in use"), "sshd ended:\n{}", process.log());
            false
        })
    })
}
