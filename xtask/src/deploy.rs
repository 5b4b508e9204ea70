//! `cargo xtask deploy`: makes the package unless there is one, and hands all to `deploy/deploy.sh`, which does the
//! work and is all that a machine without Rust needs.

use std::path::PathBuf;
use std::process::Command;

use crate::dist;

/// What the deploy command takes; `deploy/deploy.sh --help` says more.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name or address that SSH and browsers reach the proxy by
    #[arg(long, value_name = "H")]
    host: String,
    /// The configuration
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// The port of SSH
    #[arg(long, value_name = "P", default_value_t = 22)]
    ssh_port: u16,
    /// The private key; without it, those that ssh finds by itself
    #[arg(long, value_name = "K")]
    key: Option<PathBuf>,
    /// The account there
    #[arg(long, value_name = "U", default_value = "root")]
    user: String,
    /// A package that was made before; without it one is made
    #[arg(long, value_name = "DEB")]
    package: Option<PathBuf>,
    /// The file that has the host's key
    #[arg(long, value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// Become root by sudo there
    #[arg(long)]
    sudo: bool,
}

/// Ends with the script's own words where it fails.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let package = args.package.clone().map_or_else(|| dist::package(&dist::Args::default()), Ok)?;
    let mut script = Command::new(crate::root().join("deploy/deploy.sh"));
    script.args(["--host", &args.host, "--user", &args.user, "--ssh-port", &args.ssh_port.to_string()]);
    script.arg("--config").arg(&args.config).arg("--package").arg(package);
    let files = [("--key", &args.key), ("--known-hosts", &args.known_hosts)];
    for (option, file) in files.into_iter().filter_map(|(option, file)| Some((option, file.as_ref()?))) {
        script.arg(option).arg(file);
    }
    if args.sudo {
        script.arg("--sudo");
    }
    let status = script.status().map_err(|why| format!("deploy/deploy.sh: {why}"))?;
    if status.success() { Ok(()) } else { Err(format!("deploy/deploy.sh: {status}")) }
}
