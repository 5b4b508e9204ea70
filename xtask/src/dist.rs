//! `cargo xtask dist`: the Debian package of what stands here, with what clap knows as manual and completions.
//! A staging tree, `dpkg-shlibdeps` and `dpkg-deb` make it: cargo-deb would package no debug build, which the tests
//! want, and is a program more to compile. Nothing is installed on this machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use clap_complete::Shell;
use dcv_splice::config::CommandLine;

use crate::{ebpf, licences};

const NAME: &str = "dcv-splice";
/// A name that reaches nobody: whoever passes the package on puts theirs.
const MAINTAINER: &str = "dcv-splice <dcv-splice@dcv-splice.invalid>";
/// What is packaged as it stands: below `packaging/`, and where it goes.
const FILES: [(&str, &str); 13] = [
    ("copyright", "usr/share/doc/dcv-splice/copyright"),
    ("dcv-splice.service", "lib/systemd/system/dcv-splice.service"),
    ("dcv-splice.toml", "etc/dcv-splice/dcv-splice.toml"),
    ("ebpf.conf", "usr/share/doc/dcv-splice/examples/ebpf.conf"),
    ("fail2ban/filter.conf", "usr/share/dcv-splice/fail2ban/filter.conf"),
    ("fail2ban/jail.conf", "usr/share/dcv-splice/fail2ban/jail.conf"),
    ("grafana/dcv-splice.json", "usr/share/dcv-splice/grafana/dcv-splice.json"),
    ("logrotate", "etc/logrotate.d/dcv-splice"),
    ("prometheus/alerts.yml", "usr/share/dcv-splice/prometheus/alerts.yml"),
    ("prometheus/prometheus.yml", "usr/share/dcv-splice/prometheus/prometheus.yml"),
    ("prometheus/rules.yml", "usr/share/dcv-splice/prometheus/rules.yml"),
    ("modules-load.conf", "usr/share/doc/dcv-splice/examples/modules-load.conf"),
    ("sysctl.conf", "usr/share/doc/dcv-splice/examples/sysctl.conf"),
];
/// Programs that are packaged as they stand.
const PROGRAMS: [(&str, &str); 3] = [
    ("agents-command/ec2", "usr/lib/dcv-splice/agents-command/ec2"),
    ("agents-command/hosts", "usr/lib/dcv-splice/agents-command/hosts"),
    ("agents-command/kubernetes", "usr/lib/dcv-splice/agents-command/kubernetes"),
];
/// What dpkg runs, below `packaging/deb/`.
const SCRIPTS: [&str; 3] = ["postinst", "postrm", "prerm"];
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "usr/share/bash-completion/completions/dcv-splice"),
    (Shell::Fish, "usr/share/fish/vendor_completions.d/dcv-splice.fish"),
    (Shell::Zsh, "usr/share/zsh/vendor-completions/_dcv-splice"),
];

/// What the dist command takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The build to package; `dev` is faster to build and slower to run
    #[arg(long, default_value = "release")]
    profile: String,
    /// The package's own number behind the version: a later one is an upgrade of the same version
    #[arg(long, value_name = "N", default_value_t = 1)]
    revision: u32,
}

impl Default for Args {
    fn default() -> Self {
        Self { profile: "release".to_owned(), revision: 1 }
    }
}

/// Makes the package and prints its path.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    println!("{}", package(args)?.display());
    Ok(())
}

/// The path of the package, made anew.
pub(crate) fn package(args: &Args) -> Result<PathBuf, String> {
    let binary = build(&args.profile)?;
    let dist = folder(&args.profile);
    make_folder(&dist)?;
    // Of its own, so that two at once don't mix; it goes with this function.
    let work = tempfile::tempdir_in(&dist).map_err(|why| format!("{}: {why}", dist.display()))?;
    let tree = work.path().join("tree");
    let version = format!("{}-{}", debian_version(env!("CARGO_PKG_VERSION")), args.revision);
    stage(&tree, &binary)?;
    documents(&tree, &version)?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let depends = libraries(work.path(), &tree.join("usr/bin").join(NAME))?;
    control(&tree, &version, &architecture, &depends)?;
    // Whatever the umask is here.
    output(Command::new("chmod").args(["--recursive", "u=rwX,go=rX"]).arg(&tree))?;
    let package = dist.join(format!("{NAME}_{version}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    // Any dpkg since Debian 7 reads xz; Ubuntu's own default is read by few others.
    pack.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package);
    output(pack.env("SOURCE_DATE_EPOCH", committed("%ct").unwrap_or_else(|| "0".to_owned())))?;
    Ok(package)
}

/// Packages of other builds than the release, such as those of tests, lie elsewhere than what is passed on.
fn folder(profile: &str) -> PathBuf {
    let target = crate::target();
    if profile == "release" { target.join("dist") } else { target.join("dist-of-other-builds") }
}

fn build(profile: &str) -> Result<PathBuf, String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--package", NAME, "--profile", profile]).current_dir(crate::root());
    let status = cargo.status().map_err(|why| format!("cargo: {why}"))?;
    if !status.success() {
        return Err(format!("the proxy does not build: cargo ended with {status}"));
    }
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(crate::target().join(folder).join(NAME))
}

/// All files of the package but those that describe it.
fn stage(tree: &Path, binary: &Path) -> Result<(), String> {
    let packaging = crate::root().join("packaging");
    for (from, to) in FILES {
        put(&tree.join(to), &read(&packaging.join(from))?, 0o644)?;
    }
    for (from, to) in PROGRAMS {
        put(&tree.join(to), &read(&packaging.join(from))?, 0o755)?;
    }
    let program = tree.join("usr/bin").join(NAME);
    put(&program, &read(binary)?, 0o755)?;
    output(
        Command::new("strip").args(["--remove-section=.comment", "--remove-section=.note"]).arg(&program),
    )?;
    let account = ebpf::object();
    if account.exists() {
        put(&tree.join("usr/lib/dcv-splice/account.o"), &read(&account)?, 0o644)?;
    } else {
        eprintln!("== without the kernel's account: `cargo xtask ebpf` builds it");
    }
    complete(tree)?;
    manual(&tree.join("usr/share/man/man1"))
}

/// The project's changes, and the package's own, which has none; the guide for operators; and the licences of what the
/// program is linked with.
fn documents(tree: &Path, version: &str) -> Result<(), String> {
    let date = committed("%cD").unwrap_or_else(|| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned());
    let own = format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * The changes are in changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    );
    let documents = tree.join("usr/share/doc").join(NAME);
    let changes = read(&crate::root().join("CHANGELOG.md"))?;
    let guide = read(&crate::root().join("docs/operations.md"))?;
    let notice = licences::notice(NAME)?.into_bytes();
    for (file, text) in [
        ("changelog", changes),
        ("changelog.Debian", own.into_bytes()),
        ("operations.md", guide),
        ("THIRD-PARTY", notice),
    ] {
        put(&documents.join(file), &text, 0o644)?;
        compress(&documents.join(file))?;
    }
    Ok(())
}

fn complete(tree: &Path) -> Result<(), String> {
    for (shell, to) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut offered(), NAME, &mut script);
        put(&tree.join(to), &script, 0o644)?;
    }
    Ok(())
}

/// The command line without what is for the program's own use, which completions would offer.
fn offered() -> clap::Command {
    let all = CommandLine::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let offered = clap::Command::new(NAME).version(env!("CARGO_PKG_VERSION"));
    offered.args(all.get_arguments().cloned()).subcommands(shown)
}

/// A page for the program and one for each of its commands.
fn manual(folder: &Path) -> Result<(), String> {
    make_folder(folder)?;
    clap_mangen::generate_to(CommandLine::command(), folder).map_err(|why| format!("the manual: {why}"))?;
    let pages = fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    for page in pages.flatten() {
        compress(&page.path())?;
    }
    Ok(())
}

/// The packages that the program's libraries come from, as `dpkg-shlibdeps` knows them. It wants a source package.
fn libraries(work: &Path, program: &Path) -> Result<String, String> {
    let source = format!("Source: {NAME}\n\nPackage: {NAME}\nArchitecture: any\n");
    put(&work.join("debian/control"), source.as_bytes(), 0o644)?;
    let found = output(Command::new("dpkg-shlibdeps").arg("-O").arg(program).current_dir(work))?;
    let found = found.strip_prefix("shlibs:Depends=").map(str::to_owned);
    found.ok_or_else(|| "dpkg-shlibdeps names no package: is the program static?".to_owned())
}

/// What describes the package to dpkg.
fn control(tree: &Path, version: &str, architecture: &str, depends: &str) -> Result<(), String> {
    let deb = crate::root().join("packaging/deb");
    let size =
        output(Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1K"]).arg(tree))?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let mut fields = format!(
        "Version: {version}\nArchitecture: {architecture}\nInstalled-Size: {size}\nMaintainer: {MAINTAINER}\nDepends: adduser, {depends}\n"
    )
    .into_bytes();
    fields.splice(0..0, read(&deb.join("control"))?);
    let about = tree.join("DEBIAN");
    put(&about.join("control"), &fields, 0o644)?;
    let kept = FILES.iter().filter(|(_, to)| to.starts_with("etc/"));
    let kept: Vec<_> = kept.flat_map(|(_, to)| ["/", to, "\n"]).collect();
    let sums = checksums(tree)?;
    put(&about.join("md5sums"), sums.as_bytes(), 0o644)?;
    put(&about.join("conffiles"), kept.concat().as_bytes(), 0o644)?;
    for script in SCRIPTS {
        put(&about.join(script), &read(&deb.join(script))?, 0o755)?;
    }
    Ok(())
}

/// Of every file but those that an administrator may change (deb-md5sums(5)).
fn checksums(tree: &Path) -> Result<String, String> {
    let listed = "find * -type f -not -path 'DEBIAN/*' -not -path 'etc/*' -print0 | LC_ALL=C sort --zero-terminated \
                  | xargs --null md5sum";
    Ok(output(Command::new("sh").args(["-euc", listed]).current_dir(tree))? + "\n")
}

/// `1.0.0~rc.1` comes before `1.0.0` in Debian, and `1.0.0-rc.1` behind it.
fn debian_version(version: &str) -> String {
    version.replacen('-', "~", 1)
}

/// The time of the commit, which files are dated by, so that the same commit makes the same package; none outside of a
/// clone.
fn committed(format: &str) -> Option<String> {
    let format = format!("--format={format}");
    output(Command::new("git").args(["log", "-1", &format]).current_dir(crate::root())).ok()
}

fn compress(file: &Path) -> Result<(), String> {
    output(Command::new("gzip").args(["--best", "--no-name"]).arg(file)).map(drop)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|why| format!("{}: {why}", file.display()))
}

fn put(file: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    if let Some(folder) = file.parent() {
        make_folder(folder)?;
    }
    fs::write(file, bytes)
        .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(mode)))
        .map_err(|why| format!("{}: {why}", file.display()))
}

fn make_folder(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))
}

/// What the program prints, without the line's end; an error says what it said.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_os_string();
    let name = Path::new(&name).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned();
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|why| format!("{name} (apt-get install binutils dpkg-dev gzip): {why}"))?;
    if !done.status.success() {
        return Err(format!("{name} failed: {}", String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_before_another_is_so_for_dpkg_too() {
        assert_eq!(debian_version("1.0.0-rc.1-2"), "1.0.0~rc.1-2");
        assert_eq!(debian_version("1.0.0"), "1.0.0");
    }
}
