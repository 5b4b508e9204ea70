//! The proxy on Debian's own kernels, the oldest that is promised and the newest, in a virtual machine: a desktop's channels, their ends, byte for
//! byte. Other tests are run there as they are.
//! Debian packages: busybox-static debian-archive-keyring kmod qemu-system-x86 xz-utils
#![allow(clippy::unwrap_used)]

use harness::proxy::{self, SESSION_TLS, test_program};
use harness::virtual_machine::{Kernel, VirtualMachine};

/// Tests of `interop`: few, as the machine is slow, and together most of what a session does.
const TESTS: [&str; 7] = [
    "sockets::frames_right_behind_the_101_arrive",
    "sockets::frames_right_behind_the_upgrade_arrive",
    "sockets::pings_are_answered_by_the_agent",
    "sockets::the_eight_sockets_of_a_desktop_run_at_the_same_time",
    "sockets::a_message_of_50_mib_passes_whole",
    "sockets::when_the_agent_ends_first_the_client_may_go_on_to_its_own_end",
    "sockets::when_the_client_ends_first_the_agent_may_go_on_to_its_own_end",
];

/// The one that takes longest.
const LONG: &str = "a_message_of_50_mib_passes_whole";

#[test]
fn a_desktops_channels_are_the_same_on_the_kernel_of_debian() {
    runs_on(Kernel::OfRelease, "user");
}

#[test]
fn a_desktops_channels_are_the_same_on_the_newest_kernel_of_debian_where_that_does_their_tls() {
    runs_on(Kernel::Backported, "kernel");
}

#[track_caller]
fn runs_on(kernel: Kernel, session_tls: &str) {
    let machine = VirtualMachine::new(kernel);
    // It is built here: nothing can be there.
    proxy::binary();
    let program = test_program("interop");
    // Where the kernel does TLS, `kernel_tls` moves as much.
    let tests: Vec<_> = TESTS
        .iter()
        .filter(|name| session_tls == "user" || !name.ends_with(LONG))
        .map(|name| format!(" {name}"))
        .collect();
    let count = tests.len();
    let tests = tests.concat();
    let script = format!(
        "export CARGO=true PATH=/usr/sbin:/usr/bin HOME=/tmp {SESSION_TLS}={session_tls}\nuname -r\n{} --exact --test-threads=1 --color=never{tests}\n",
        program.display()
    );
    let (code, said) = machine.run(&script);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("-amd64\n"), "Debian's kernel: {said}");
    let result = format!("test result: ok. {count} passed; 0 failed");
    assert!(said.contains(&result), "{said}");
}
