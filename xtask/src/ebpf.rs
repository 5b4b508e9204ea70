//! `cargo xtask ebpf`: builds the kernel's part of the account, `ebpf/`, which wants another target and a compiler that
//! has the source of `core`. Installs what Debian has of that, and says what to install elsewhere.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages;

/// The linker, which is also the code generator; built against the very LLVM of the compiler.
const LINKER: &str = "0.13.0";
/// Debian's current compiler with the source of `core`.
const PACKAGES: [&str; 3] = ["cargo-web", "rust-web-src", "rustc-web"];
/// Where shared LLVMs are, beside the compiler's own.
const LIBRARIES: [&str; 3] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
/// What a cargo that runs this one has set for its own compiler.
const OF_OUTER_CARGO: [&str; 5] =
    ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "LD_LIBRARY_PATH"];

/// Where the object is, once it is built.
pub(crate) fn object() -> PathBuf {
    crate::target().join("ebpf/account.o")
}

/// Builds the object; the error says what is missing.
pub(crate) fn run() -> Result<(), String> {
    let toolchain = match Toolchain::find() {
        Some(toolchain) => toolchain,
        None => install()?,
    };
    println!("== {} with LLVM {}", toolchain.rustc.display(), toolchain.llvm);
    let linker = linker(&toolchain)?;
    build(&toolchain, &linker)?;
    let made = crate::target().join("ebpf/build/bpfel-unknown-none/release/account");
    fs::copy(&made, object()).map_err(|why| format!("{}: {why}", made.display()))?;
    println!("{}", object().display());
    Ok(())
}

/// A compiler that can build `core` for another target.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
    llvm: String,
    is_nightly: bool,
}

impl Toolchain {
    /// A nightly of rustup's, or the distribution's.
    fn find() -> Option<Self> {
        let nightly = said(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
        let nightly = nightly.map(|sysroot| Path::new(&sysroot).join("bin"));
        let folders = nightly.into_iter().chain([PathBuf::from("/usr/bin")]);
        folders.into_iter().find_map(|folder| Self::of(folder.join("rustc"), folder.join("cargo")))
    }

    fn of(rustc: PathBuf, cargo: PathBuf) -> Option<Self> {
        let sysroot = PathBuf::from(said(Command::new(&rustc).args(["--print", "sysroot"]))?);
        let has_core = sysroot.join("lib/rustlib/src/rust/library/core").exists();
        let version = said(Command::new(&rustc).arg("-vV")).filter(|_| has_core && cargo.exists())?;
        let line = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
        let llvm = line("LLVM version: ")?.split('.').next()?.to_owned();
        let is_nightly = line("release: ")?.contains("nightly");
        Some(Self { rustc, cargo, sysroot, llvm, is_nightly })
    }

    /// Its LLVM as a shared library.
    fn library(&self) -> Result<PathBuf, String> {
        let name = format!("libLLVM.so.{}.", self.llvm);
        let folders = [self.sysroot.join("lib")].into_iter().chain(LIBRARIES.map(PathBuf::from));
        let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name));
        found.next().map(|entry| entry.path()).ok_or(format!("no {name}* beside {}", self.rustc.display()))
    }
}

fn install() -> Result<Toolchain, String> {
    let elsewhere = "elsewhere: rustup toolchain install nightly --component rust-src";
    println!("== installing {}", PACKAGES.join(" "));
    packages::install(&[PACKAGES.join(" ")]).map_err(|why| format!("{why}; {elsewhere}"))?;
    Toolchain::find().ok_or_else(|| {
        format!(
            "no compiler with the source of `core`. Debian 12: apt-get install {}; {elsewhere}",
            PACKAGES.join(" ")
        )
    })
}

/// The linker for the compiler's LLVM, built if there is none yet; takes some three minutes on two cores.
fn linker(toolchain: &Toolchain) -> Result<PathBuf, String> {
    let folder = crate::target().join(format!("tools/bpf-linker-{LINKER}-llvm{}", toolchain.llvm));
    let linker = folder.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    let library = toolchain.library()?;
    link_library(&library, &folder.join("lib")).map_err(|why| format!("{}: {why}", library.display()))?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command
        .args(["install", "bpf-linker", "--version", LINKER, "--locked", "--no-default-features", "--root"])
        .arg(&folder)
        .args(["--features", &format!("llvm-{}", toolchain.llvm), "--config", "profile.release.debug=0"])
        .env("LLVM_PREFIX", &folder)
        .env("CARGO_TARGET_DIR", folder.join("build"));
    succeed(&mut command)?;
    // Hundreds of megabytes that nothing needs any more; what stays of them does no harm.
    let _ = fs::remove_dir_all(folder.join("build"));
    Ok(linker)
}

/// Puts the library where the linker's build looks for it, by its own name and by the one of development packages.
fn link_library(library: &Path, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for name in [Some("libLLVM.so".as_ref()), library.file_name()].into_iter().flatten() {
        let link = folder.join(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(library, link)?,
        }
    }
    Ok(())
}

fn build(toolchain: &Toolchain, linker: &Path) -> Result<(), String> {
    let linker = format!("-Clinker={}", linker.display());
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    let flags = [&architecture, "-Cdebuginfo=2", "-Clink-arg=--btf", &linker].join("\u{1f}");
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(crate::root().join("ebpf"))
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(crate::target().join("ebpf/build"))
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", OsString::from(flags));
    for name in OF_OUTER_CARGO {
        command.env_remove(name);
    }
    if !toolchain.is_nightly {
        // What it needs of a stable compiler is not stable.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    succeed(&mut command)
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed ({status})")),
        Err(why) => Err(format!("{program}: {why}")),
    }
}
