//! The Debian packages that tests drive: browsers, X servers, an SSH server, another proxy to compare with.
//! It never installs a compiler: without one this program would not have been built.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

/// Test target -> what it needs; a target that is not named here needs nothing.
const NEEDED: [(&str, &[&str]); 19] = [
    ("interop", &["bubblewrap", "curl", "iproute2", "nghttp2-client", "nginx-light", "openssl"]),
    ("ebpf", &["libcap2-bin", "nftables"]),
    ("fault_injection", &["openssl"]),
    ("monitoring", &["curl", "openssl", "prometheus"]),
    ("pinned", &["iproute2"]),
    ("security", &["fail2ban"]),
    ("session", &["openssh-client", "openssh-server"]),
    ("deploy", &["binutils", "dpkg-dev", "mmdebstrap", "openssh-client"]),
    ("dist", &["binutils", "dpkg-dev", "mmdebstrap", "shellcheck"]),
    ("sshd", &["openssh-client", "openssh-server"]),
    ("lag", &["iproute2"]),
    ("manifests", &["shellcheck"]),
    ("sources", &["jq", "shellcheck"]),
    ("starvation", &["iproute2"]),
    ("top", &["tmux"]),
    ("debian_kernel", &["busybox-static", "debian-archive-keyring", "kmod", "qemu-system-x86", "xz-utils"]),
    (
        "kernel_tls",
        &["busybox-static", "debian-archive-keyring", "iproute2", "kmod", "qemu-system-x86", "xz-utils"],
    ),
    ("admin_pages", &["chromium", "chromium-driver"]),
    (
        "desktop",
        &[
            "chromium",
            "chromium-driver",
            "novnc",
            "tigervnc-standalone-server",
            "websockify",
            "x11-apps",
            "x11-xserver-utils",
            "xterm",
        ],
    ),
];

/// Installs each argument, a list of packages, so that one that fails does not take the others with it.
///
/// Debian starts a service as soon as it is installed, and nginx's would take port 80: `policy-rc.d` is how
/// a machine says no to that. The file is removed again, and one that was there before is left alone.
/// A freshly started machine may still be installing its updates, hence the wait for the lock.
const INSTALL: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update
failed=0
for packages; do
    apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $packages || failed=1
done
exit "$failed"
"#;

/// What the test target needs and this machine lacks.
pub(crate) fn missing(target: &str) -> Result<Vec<&'static str>, String> {
    let needed = needed(target);
    if needed.is_empty() {
        return Ok(Vec::new());
    }
    // Its exit code says no more than that one of them is unknown, which the list tells too.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])
        .args(needed)
        .output()
        .map_err(|why| format!("dpkg-query (is this Debian or Ubuntu?): {why}"))?;
    Ok(absent(needed, &String::from_utf8_lossy(&output.stdout)))
}

/// Installs the lists of packages, as root or through sudo.
pub(crate) fn install(lists: &[String]) -> Result<(), String> {
    let mut command = as_root();
    command.args(["sh", "-c", INSTALL, "install"]).args(lists).stdin(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("installing {} failed ({status})", lists.join(" "))),
        Err(why) if why.kind() == ErrorKind::NotFound => {
            Err(format!("no sudo here; as root: apt-get install {}", lists.join(" ")))
        }
        Err(why) => Err(format!("installing {}: {why}", lists.join(" "))),
    }
}

fn needed(target: &str) -> &'static [&'static str] {
    NEEDED.iter().find(|(name, _)| *name == target).map_or(&[], |(_, packages)| packages)
}

/// Reads dpkg's list: two letters, what is wanted and what is, then the name.
fn absent(needed: &[&'static str], listed: &str) -> Vec<&'static str> {
    let installed = |name: &str| {
        listed.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|state| state.ends_with('i')) && words.next() == Some(name)
        })
    };
    needed.iter().copied().filter(|name| !installed(name)).collect()
}

/// `env` runs a command as it is, so that both ways read alike.
fn as_root() -> Command {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    Command::new(if is_root { "env" } else { "sudo" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or its packages would not be installed, and nobody would be told.
    #[test]
    fn each_target_that_needs_packages_exists() {
        let root = crate::root();
        let absent = NEEDED.iter().filter(|(target, _)| !root.join(format!("tests/{target}.rs")).is_file());
        assert_eq!(absent.map(|(target, _)| *target).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn only_what_dpkg_calls_installed_is_present() {
        let listed = "ii  curl\nhi  openssl\nrc  nginx-light\nun  xterm\niU  novnc\n";
        let needed = ["curl", "openssl", "nginx-light", "xterm", "novnc", "chromium"];
        assert_eq!(absent(&needed, listed), ["nginx-light", "xterm", "novnc", "chromium"]);
    }

    #[test]
    fn a_name_is_compared_whole() {
        assert_eq!(absent(&["chromium"], "ii  chromium-driver\n"), ["chromium"]);
    }

    #[test]
    fn a_target_without_a_row_needs_nothing() {
        assert_eq!(missing("no such target"), Ok(Vec::new()));
    }
}
