//! A virtual machine with Debian's own kernel, for what depends on the kernel: the files of this machine, read only, and a network
//! of its own. It is emulated, so that it needs no right to anything, and is some ten times slower.
//! Debian packages: busybox-static kmod qemu-system-x86
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

/// What the kernel of Debian has as modules, and is needed: files of this machine, TLS, what `ss` asks.
const MODULES: [&str; 7] = ["virtio_pci", "9pnet_virtio", "9p", "tls", "tcp_bbr", "tcp_diag", "inet_diag"];
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

/// A kernel to be booted.
#[derive(Debug)]
pub struct VirtualMachine {
    folder: PathBuf,
    image: PathBuf,
    modules: PathBuf,
}

impl VirtualMachine {
    /// With the kernel of this machine's Debian release, which is fetched once.
    pub fn with_debian_kernel() -> Self {
        let release = kernel_release().or_else(|| {
            // A fresh machine knows of no packages.
            output(Command::new("apt-get").arg("update"));
            kernel_release()
        });
        let release = release.expect("the kernel of the release");
        let folder = target_directory().join("kernels").join(&release);
        let root = folder.join("root");
        if !root.is_dir() {
            fs::create_dir_all(&folder).expect("room");
            output(
                Command::new("apt-get")
                    .current_dir(&folder)
                    .args(["download", &format!("linux-image-{release}")]),
            );
            let archive = fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path());
            let archive = archive.filter(|path| path.extension().is_some_and(|it| it == "deb")).max();
            // Where it is interrupted, it is done again.
            let fresh = folder.join("fresh");
            output(Command::new("dpkg-deb").arg("-x").arg(archive.expect("a package")).arg(&fresh));
            output(Command::new("depmod").arg("-b").arg(&fresh).arg(&release));
            fs::rename(fresh, &root).expect("room");
        }
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        let modules = root.join("lib/modules").join(release);
        Self { folder, image, modules }
    }

    /// Runs a shell script in it, as root and with nothing else; what it writes, and its exit code.
    pub fn run(&self, script: &str) -> (i32, String) {
        let work = tempfile::tempdir_in(&self.folder).expect("room");
        let disk = work.path().join("initrd");
        self.pack(work.path(), script, &disk);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35", "-cpu", "max", "-smp", "2", "-m", &MEMORY_MIB.to_string()]);
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
                file.ends_with(&format!("/{module}.ko")).then_some((file, needs))
            });
            let (file, needs) = line.unwrap_or_else(|| panic!("the kernel has no module {module}"));
            // The list has what is needed first at its end.
            for file in needs.split_whitespace().rev().chain([file]) {
                let name = file.rsplit('/').next().unwrap_or(file).to_owned();
                if !order.contains(&name) {
                    fs::copy(self.modules.join(file), to.join(&name)).expect("room");
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

/// The kernel that the release's package of kernels depends on.
fn kernel_release() -> Option<String> {
    let listed = Command::new("apt-cache").args(["depends", "linux-image-amd64"]).output().expect("apt");
    let listed = String::from_utf8_lossy(&listed.stdout);
    let package = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    package.map(str::to_owned)
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
