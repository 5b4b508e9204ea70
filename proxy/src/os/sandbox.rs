//! The privileges that the program gives up once it is bound: capabilities and new privileges, core dumps, the file system, TCP connections to any port
//! but the agents', and system calls that serving does not take. What a kernel can't take from it is said and kept. Only
//! the calling thread is confined, and those that it starts; what it needs of files later the helper has.

use std::fmt;

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};
use rustix::io;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::os::seccomp;

/// Files: Linux 5.13; TCP ports: Linux 6.7 (landlock(7)). Older kernels do what they can.
const LANDLOCK: ABI = ABI::V4;
/// No core is dumped to a file below a page, and none to a program at exactly this limit (the kernel's fs/coredump.c).
const CORE_BYTES: u64 = 1;
/// Kept open by each worker for when descriptors run out.
const SPARE: &str = "/dev/null";

/// The privileges that were given up.
#[derive(Debug)]
pub(crate) struct SandboxReport {
    /// The program and what it starts can't gain privileges.
    pub no_new_privileges: io::Result<()>,
    /// No capability is left, of root either (capabilities(7)).
    pub no_capabilities: io::Result<()>,
    /// No memory is written to disk, with keys and tokens in it.
    pub no_core_dumps: io::Result<()>,
    /// Files and ports.
    pub landlock: Result<RulesetStatus, RulesetError>,
    /// System calls.
    pub seccomp: Result<(), seccompiler::Error>,
}

/// Gives up what serving doesn't need. Agents are reached at `agent_ports`.
pub(crate) fn confine(agent_ports: &[u16]) -> SandboxReport {
    SandboxReport {
        no_new_privileges: rustix::thread::set_no_new_privs(true),
        no_capabilities: drop_capabilities(),
        no_core_dumps: forbid_core_dumps(),
        landlock: restrict(agent_ports),
        // Last: it does not allow the calls above.
        seccomp: seccomp::restrict(),
    }
}

/// Gives up what the network helper doesn't need: all files, and whatever serving does not need either. It connects to any
/// port, since name servers and resolvers have theirs.
pub(crate) fn confine_network_helper() -> SandboxReport {
    SandboxReport {
        no_new_privileges: rustix::thread::set_no_new_privs(true),
        no_capabilities: drop_capabilities(),
        no_core_dumps: forbid_core_dumps(),
        landlock: forbid_files(),
        // Last: it does not allow the calls above.
        seccomp: seccomp::restrict_network_helper(),
    }
}

/// Gives up all capabilities, and ways to gain any, for a program that is about to be run.
pub(crate) fn give_up_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    drop_capabilities()
}

fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    // The ambient ones go with those that may be inherited.
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// No memory of this process is written to disk.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(CORE_BYTES), maximum: Some(CORE_BYTES) })
}

fn forbid_files() -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default().handle_access(AccessFs::from_all(LANDLOCK))?.create()?;
    Ok(rules.restrict_self()?.ruleset)
}

fn restrict(agent_ports: &[u16]) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .create()?
        .add_rules(
            agent_ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp))),
        )?;
    let rules = match PathFd::new(SPARE) {
        Ok(spare) => rules.add_rule(PathBeneath::new(spare, AccessFs::ReadFile | AccessFs::WriteFile))?,
        Err(_) => rules,
    };
    Ok(rules.restrict_self()?.ruleset)
}

impl fmt::Display for SandboxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.landlock {
            Ok(RulesetStatus::FullyEnforced) => f.write_str("confined to its sockets")?,
            Ok(RulesetStatus::PartiallyEnforced) => {
                f.write_str("confined to its sockets as far as this kernel can (Landlock, Linux 6.7)")?;
            }
            Ok(RulesetStatus::NotEnforced) => {
                f.write_str("not confined to its sockets: this kernel has no Landlock (Linux 5.13)")?;
            }
            Err(error) => write!(f, "not confined to its sockets: {error}")?,
        }
        if let Err(error) = &self.seccomp {
            write!(f, "; it may make any system call: {error}")?;
        }
        if let Err(error) = self.no_new_privileges {
            write!(f, "; it may gain privileges: {error}")?;
        }
        if let Err(error) = self.no_capabilities {
            write!(f, "; it keeps its capabilities: {error}")?;
        }
        if let Err(error) = self.no_core_dumps {
            write!(f, "; it may dump core: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::process::Command;

    use rustix::process::getpriority_process;

    use super::*;

    /// What one thread has given up its process still has.
    #[test]
    fn a_confined_thread_opens_no_file_and_connects_to_the_agents_port_alone() {
        let [agent, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [agent, other] = [&agent, &other].map(|listener| listener.local_addr().expect("an address"));
        let confined = std::thread::spawn(move || {
            let confined = confine(&[agent.port()]);
            let file = File::open("/etc/passwd").is_ok();
            let spare = File::open(SPARE).is_ok();
            let connected = [agent, other].map(|to| TcpStream::connect(to).is_ok());
            (confined, file, spare, connected, TcpListener::bind("127.0.0.1:0").is_ok())
        });
        let (confined, file, spare, connected, bound) = confined.join().expect("no panic");
        assert!(confined.seccomp.is_ok() && confined.no_new_privileges.is_ok());
        assert!(confined.no_core_dumps.is_ok() && confined.no_capabilities.is_ok());
        match confined.landlock.as_ref().expect("rules") {
            RulesetStatus::FullyEnforced => {
                assert_eq!((file, spare, connected, bound), (false, true, [true, false], false));
                assert_eq!(confined.to_string(), "confined to its sockets");
            }
            status => {
                eprintln!("nothing to see on this kernel: {status:?}");
                assert!(confined.to_string().contains("this kernel"));
            }
        }
        assert!(File::open("/etc/passwd").is_ok());
    }

    #[test]
    fn the_network_helper_reaches_the_network_and_nothing_else_of_its_user() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let agent = listener.local_addr().expect("an address");
        let confined = std::thread::spawn(move || {
            let confined = confine_network_helper();
            let file = File::open(SPARE).is_ok();
            let network = TcpStream::connect(agent).is_ok() && TcpListener::bind("127.0.0.1:0").is_ok();
            let unix =
                [UnixStream::pair().is_ok(), UnixDatagram::pair().is_ok(), UnixDatagram::unbound().is_ok()];
            let limit = rustix::process::prlimit(
                rustix::process::Pid::from_raw(1),
                Resource::Cpu,
                Rlimit { current: None, maximum: None },
            );
            (confined, file, network, unix, limit.err(), Command::new("true").spawn().is_ok())
        });
        let (confined, file, network, unix, limit, program) = confined.join().expect("no panic");
        assert!(confined.seccomp.is_ok() && confined.no_capabilities.is_ok() && confined.landlock.is_ok());
        assert_eq!((file, network, program), (false, true, false));
        assert_eq!((unix, limit), ([true, false, false], Some(io::Errno::PERM)));
    }

    #[test]
    fn a_confined_thread_has_no_capability() {
        let own = |thread: &str| {
            let status = std::fs::read_to_string(format!("/proc/self/{thread}status")).expect("a status");
            status.lines().filter(|line| line.starts_with("Cap")).map(str::to_owned).collect::<Vec<_>>()
        };
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            confine(&[1]).no_capabilities.expect("none");
            tell.send(rustix::thread::gettid().as_raw_nonzero()).expect("a test");
            ended.recv()
        });
        let id = told.recv().expect("a thread");
        let left = own(&format!("task/{id}/"));
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert!(left.contains(&format!("{set}\t0000000000000000")), "{left:?}");
        }
        end.send(()).expect("a thread");
        thread.join().expect("no panic").expect("an end");
    }

    #[test]
    fn a_confined_thread_that_wants_no_ring_any_more_can_make_none() {
        let rings = std::thread::spawn(|| {
            confine(&[1]).seccomp.expect("a filter");
            let ring = || io_uring::IoUring::new(2).map(drop).map_err(|error| error.raw_os_error());
            let before = ring();
            seccomp::forbid_rings();
            (before, ring())
        });
        let (before, after) = rings.join().expect("no panic");
        assert_eq!(after, Err(Some(io::Errno::PERM.raw_os_error())));
        assert_ne!(before, after, "rings could be made before, or a kernel forbids them all");
    }

    /// The control plane's ring does whatever it is asked for, unseen by the filter of system calls, and it was made before.
    #[test]
    fn a_ring_without_restrictions_opens_no_file_and_reaches_no_other_port() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "text").expect("a file");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let tried = std::thread::spawn(move || {
            tokio_uring::start(async {
                let opened = tokio_uring::fs::File::open(&path).await;
                let connected = tokio_uring::net::TcpStream::connect(address).await;
                confine(&[1]).landlock.expect("Landlock");
                let tries = [
                    tokio_uring::fs::File::open(&path).await.map(drop),
                    tokio_uring::fs::File::create(path.with_extension("new")).await.map(drop),
                    tokio_uring::fs::remove_file(&path).await,
                    tokio_uring::net::TcpStream::connect(address).await.map(drop),
                ];
                (opened.and(connected.map(drop)), tries)
            })
        });
        let (before, after) = tried.join().expect("no panic");
        before.expect("all was allowed before");
        for result in after {
            assert_eq!(result.map_err(|error| error.kind()), Err(std::io::ErrorKind::PermissionDenied));
        }
    }

    #[test]
    fn a_confined_thread_makes_no_call_that_serving_does_not_take() {
        let confined = std::thread::spawn(|| {
            let before = getpriority_process(None).is_ok();
            confine(&[1]).seccomp.expect("a filter");
            (before, getpriority_process(None), Command::new("true").spawn().map(|_| ()))
        });
        let (before, priority, program) = confined.join().expect("no panic");
        assert!(before);
        assert_eq!(priority, Err(io::Errno::PERM));
        assert_eq!(program.map_err(|error| error.kind()), Err(std::io::ErrorKind::PermissionDenied));
    }
}
