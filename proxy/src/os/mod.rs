//! What the operating system is asked for beside the network: files, the output of logs, the sandbox that the program puts
//! itself in, its cgroup and systemd. Never touches a connection. Uses no other folder.

pub(crate) mod cgroup;
pub mod files;
pub(crate) mod log;
pub(crate) mod process_usage;
pub(crate) mod sandbox;
pub(crate) mod seccomp;
pub(crate) mod systemd;
