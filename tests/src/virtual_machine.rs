//! A virtual machine with Debian's own kernel, for what depends on the kernel: the files of this machine, read only, and a network
//! of its own. It is emulated, so that it needs no right to anything, and is some ten times slower.
//! Debian packages: busybox-static debian-archive-keyring kmod qemu-system-x86 xz-utils
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::Process;
use crate::proxy::target_directory;

/// What Debian's kernels have as modules, and is needed: files of this machine, TLS and its ciphers, what `ss` asks. Some are built in,
/// or have another name, in one of the kernels.
const MODULES: [&str; 15] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "ctr",
    "ghash-generic",
    "gcm",
    "aesni-intel",
    "chacha",
    "chacha_generic",
    "poly1305_generic",
    "chacha20poly1305",
    "tls",
    "tcp_bbr",
    "tcp_diag",
    "inet_diag",
];
/// Its first program. The file system is one in memory, with this machine's programs, settings and the repository in it.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host
mount -t tmpfs system /system
for made in proc sys dev tmp run var root; do mkdir -p "/system/$made"; done
for linked in bin sbin lib lib64; do ln -s "usr/$linked" "/system/$linked"; done
while read -r seen; do mkdir -p "/system$seen"; mount --bind "/host$seen" "/system$seen"; done </seen
mount -t proc proc /system/proc
mount -t sysfs sys /system/sys
mount -t devtmpfs dev /system/dev
mkdir -p /system/dev/shm
mount -t tmpfs shm /system/dev/shm
ip link set lo up
cp /script /system/script
chroot /system /bin/sh /script 2>&1
echo "exit code $?"
poweroff -f
"#;
/// How long it may run.
const TIME_MAX: Duration = Duration::from_mins(15);
const MEMORY_MIB: u32 = 3072;

/// One of Debian's kernels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kernel {
    /// That of this machine's release.
    OfRelease,
    /// The newest that was backported to the release after it.
    Backported,
}

/// A kernel to be booted.
#[derive(Debug)]
pub struct VirtualMachine {
    folder: PathBuf,
    image: PathBuf,
    modules: PathBuf,
}

impl VirtualMachine {
    /// With that kernel, which is fetched once.
    pub fn new(kernel: Kernel) -> Self {
        let folder = target_directory().join("kernels").join(format!("{kernel:?}"));
        let root = folder.join("root");
        if !root.is_dir() {
            // What was interrupted is done again.
            let _ = fs::remove_dir_all(&folder);
            let fresh = folder.join("fresh");
            fs::create_dir_all(&fresh).expect("room");
            for archive in fetch(kernel, &folder) {
                output(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&fresh));
            }
            // Where they are depends on the release.
            let modules = fresh.join("usr/lib/modules");
            if modules.is_dir() {
                fs::create_dir_all(fresh.join("lib")).expect("room");
                fs::rename(modules, fresh.join("lib/modules")).expect("room");
            }
            output(Command::new("depmod").arg("-b").arg(&fresh).arg(release(&fresh)));
            fs::rename(fresh, &root).expect("room");
        }
        let release = release(&root);
        let modules = root.join("lib/modules").join(&release);
        let images = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file()).expect("a kernel");
        Self { folder, image, modules }
    }

    /// Runs a shell script in it, as root and with nothing else; what it writes, and its exit code.
    pub fn run(&self, script: &str) -> (i32, String) {
        let work = tempfile::tempdir_in(&self.folder).expect("room");
        let disk = work.path().join("initrd");
        self.pack(work.path(), script, &disk);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35", "-cpu", "max", "-smp", "2", "-m", &MEMORY_MIB.to_string()]);
        // Its processors take turns. Where they run at once, one may still meet a breakpoint that another has taken out of the
        // kernel's code: seen in three of some eighty starts of Linux 7.3, each of which ended there.
        command.args(["-accel", "tcg,thread=single"]);
        command.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-nic", "none"]);
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(&disk);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        let mut machine = Process::start(command);
        assert!(machine.wait_for(TIME_MAX).success(), "{}", machine.log());
        let said = machine.output().replace('\r', "");
        let (said, code) =
            said.rsplit_once("exit code ").unwrap_or_else(|| panic!("it does not boot: {said}"));
        let code = code.lines().next().and_then(|code| code.trim().parse().ok()).expect("an exit code");
        (code, said.to_owned())
    }

    /// Its first file system.
    fn pack(&self, work: &Path, script: &str, disk: &Path) {
        let root = work.join("root");
        for folder in ["bin", "proc", "host", "system", "modules"] {
            fs::create_dir_all(root.join(folder)).expect("room");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
        fs::write(root.join("init"), INIT).expect("room");
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).expect("a file");
        fs::write(root.join("script"), script).expect("room");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder");
        let seen = [Path::new("/usr"), Path::new("/etc"), repository, &target_directory()];
        let seen: Vec<_> = seen.iter().map(|path| format!("{}\n", path.display())).collect();
        fs::write(root.join("seen"), seen.concat()).expect("room");
        fs::write(root.join("modules/order"), self.take_modules(&root.join("modules"))).expect("room");
        let pack = "find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >\"$0\"";
        output(Command::new("sh").current_dir(&root).args(["-c", pack]).arg(disk));
    }

    /// Copies the modules and those that they need; their names, each behind those that it needs.
    fn take_modules(&self, to: &Path) -> String {
        let needed = fs::read_to_string(self.modules.join("modules.dep")).expect("depmod has run");
        let mut order: Vec<String> = Vec::new();
        for module in MODULES {
            let line = needed.lines().find_map(|line| {
                let (file, needs) = line.split_once(':')?;
                let name = file.rsplit('/').next()?.split(".ko").next()?;
                (name == module).then_some((file, needs))
            });
            let Some((file, needs)) = line else { continue };
            // The list has what is needed first at its end.
            for file in needs.split_whitespace().rev().chain([file]) {
                let unpacked = file.strip_suffix(".xz");
                let name = unpacked.unwrap_or(file).rsplit('/').next().unwrap_or(file).to_owned();
                if !order.contains(&name) {
                    let (from, to) = (self.modules.join(file), to.join(&name));
                    let program = if unpacked.is_some() { "xz -dc" } else { "cat" };
                    let copy = format!("{program} \"$0\" >\"$1\"");
                    output(Command::new("sh").args(["-c", &copy]).arg(from).arg(to));
                    order.push(name);
                }
            }
        }
        order.iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{name}");
            text
        })
    }
}

/// The release of the one kernel whose modules lie there.
fn release(root: &Path) -> String {
    let found = fs::read_dir(root.join("lib/modules")).expect("modules").flatten().next().expect("a kernel");
    found.file_name().into_string().expect("a name")
}

/// Fetches the packages of a kernel.
fn fetch(kernel: Kernel, folder: &Path) -> Vec<PathBuf> {
    let config = (kernel == Kernel::Backported).then(|| backports(folder));
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(folder).envs(config.iter().map(|config| ("APT_CONFIG", config)));
        command
    };
    let depends = |package: &str| -> Vec<String> {
        let listed = apt("apt-cache").args(["depends", package]).output().expect("apt");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-"));
        names.map(|name| format!("linux-{name}")).collect()
    };
    let mut images = depends("linux-image-amd64");
    if images.is_empty() {
        // A fresh machine knows of no packages.
        output(apt("apt-get").arg("update"));
        images = depends("linux-image-amd64");
    }
    let image =
        images.into_iter().find(|name| name.starts_with("linux-image-")).expect("a kernel of the release");
    // Later ones are in several packages.
    let parts = depends(&image)
        .into_iter()
        .filter(|it| it.starts_with("linux-binary-") || it.starts_with("linux-modules-"));
    for package in parts.chain([image.clone()]) {
        output(apt("apt-get").args(["download", &package]));
    }
    let files = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|it| it == "deb")).collect()
}

/// A state of apt's own for backports of the next release, from where this machine has its packages; its configuration.
fn backports(folder: &Path) -> PathBuf {
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Component: main"]));
    let archive =
        targets.lines().find(|uri| !uri.contains("security")).expect("an archive of Debian").to_owned();
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join("apt").join(part)).expect("room");
    }
    let apt = folder.join("apt");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keys}] {archive} trixie-backports main\n");
    fs::write(apt.join("sources.list"), source).expect("room");
    let config = format!(
        "Dir::State::lists \"{0}/lists\";\nDir::Cache \"{0}/cache\";\nDir::Etc::sourcelist \"{0}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\nDir::State::status \"/dev/null\";\n",
        apt.display()
    );
    fs::write(apt.join("apt.conf"), config).expect("room");
    apt.join("apt.conf")
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
