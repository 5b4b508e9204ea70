//! Sessions whose TLS the kernel does: byte for byte what they are where the program does it, their ends and what a side may
//! say of the connection itself included. On a machine whose kernel has no TLS each test runs in virtual machines with
//! Debian's kernels, of which the older can't change keys: there sessions of TLS 1.3 stay with the program.
//! Debian packages: busybox-static debian-archive-keyring iproute2 kmod qemu-system-x86 xz-utils
#![allow(clippy::unwrap_used)]

#[path = "kernel_tls/bytes.rs"]
mod bytes;
#[path = "kernel_tls/changes.rs"]
mod changes;
#[path = "kernel_tls/ends.rs"]
mod ends;
#[path = "kernel_tls/peer.rs"]
mod peer;
#[path = "kernel_tls/records.rs"]
mod records;
#[path = "kernel_tls/scene.rs"]
mod scene;
