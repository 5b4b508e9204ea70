//! What the operating system is asked for beside the network: files, the output of logs, the sandbox that the program puts
//! itself in, its cgroup and systemd. Never touches a connection. Uses no other folder.

pub mod cgroup;
pub mod files;
pub mod log;
pub mod sandbox;
pub mod seccomp;
pub mod systemd;
