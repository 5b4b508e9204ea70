//! What is said at the start of what the kernel can do, and sessions that go on while the proxy changes.

use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::process::{Process, eventually};
use harness::proxy::{binary, command};
use harness::virtual_machine::Kernel;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bytes::{echo, exchange, noise};
use crate::peer::{Heard, Peer, TLS12, TLS13};
use crate::scene::{Front, with_kernel_tls, with_kernel_tls_of};

#[test]
fn it_is_said_what_the_kernel_can_do_and_auto_makes_use_of_it() {
    with_kernel_tls("changes::it_is_said_what_the_kernel_can_do_and_auto_makes_use_of_it", || {
        let front = Front::new("auto", &[]);
        let told = eventually("it is said", || {
            let log = front.proxy.log();
            log.lines().find(|line| line.contains("kernel TLS: ")).map(str::to_owned)
        });
        let ciphers = "AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305";
        for part in [&*format!("TLS 1.2 with {ciphers}; TLS 1.3 with {ciphers}"), "; AES by "] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("slow"), "{told}");
        for suite in [TLS12, TLS13] {
            let client = |mut peer: Peer| {
                exchange(&mut peer, &noise(1000));
                front.expects_in_kernel(&[suite, suite]);
                peer.finish();
                peer.rest()
            };
            assert_eq!(front.session([suite, suite], client, echo).0, (Vec::new(), Heard::Goodbye));
        }
        // A session of the program's own is none of the kernel's.
        let front = Front::new("user", &[]);
        let client = |mut peer: Peer| {
            exchange(&mut peer, &noise(1000));
            assert_eq!(front.in_kernel(), 0);
            peer.finish();
            peer.rest()
        };
        assert_eq!(front.session([TLS12, TLS12], client, echo).0, (Vec::new(), Heard::Goodbye));
    });
}

#[test]
fn sessions_go_on_over_reloads_and_upgrades() {
    with_kernel_tls("changes::sessions_go_on_over_reloads_and_upgrades", || {
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}/control", folder.path().display());
        let front = Front::new("kernel", &[&control]);
        eventually("it takes commands", || front.proxy.log().contains("control socket opened").then_some(()));
        let _serving = Serving(&control);
        let bytes = noise(200_000);
        let client = |mut peer: Peer| {
            for change in ["reload", "upgrade", "upgrade"] {
                exchange(&mut peer, &bytes);
                tell(&[change], &control);
            }
            exchange(&mut peer, &bytes);
            let other = |mut other: Peer| {
                exchange(&mut other, &bytes);
                exchange(&mut peer, &bytes);
                front.expects_in_kernel(&[TLS12; 4]);
                other.finish();
                other.rest().1
            };
            assert_eq!(front.session([TLS12, TLS12], other, echo).0, Heard::Goodbye);
            peer.finish();
            peer.rest().1
        };
        let (end, _, written) = front.session([TLS12, TLS12], client, echo);
        assert_eq!(
            (end, written.bytes),
            (Heard::Goodbye, [200_000; 2]),
            "that of the session that ended first"
        );
    });
}

#[test]
fn a_client_that_takes_nothing_hears_what_was_taken_and_a_goodbye_when_its_session_is_ended() {
    const NAME: &str =
        "changes::a_client_that_takes_nothing_hears_what_was_taken_and_a_goodbye_when_its_session_is_ended";
    // The kernels don't differ in it: one is enough.
    with_kernel_tls_of(&[Kernel::Backported], NAME, || {
        let folder = tempfile::tempdir().unwrap();
        let bytes = noise(8 << 20);
        for by in ["user", "kernel"] {
            let control = format!("--control={}/{by}", folder.path().display());
            let front = Front::new(by, &[&control]);
            eventually("it takes commands", || {
                front.proxy.log().contains("control socket opened").then_some(())
            });
            let suite = if front.renews_keys() { TLS13 } else { TLS12 };
            let client = |mut peer: Peer| {
                thread::sleep(Duration::from_secs(1));
                assert_eq!(tell(&["end", "--agent=127.0.0.1"], &control), "sessions ended: 1\n");
                let (heard, end) = peer.rest();
                (heard.len(), bytes.starts_with(&heard), end)
            };
            let agent = |mut peer: Peer| {
                // Nobody takes all of it.
                peer.say(&bytes);
                peer.rest().1
            };
            let ((heard, is_same, end), _, written) = front.session([suite, suite], client, agent);
            assert_eq!((is_same, end), (true, Heard::Goodbye), "{by}");
            assert_eq!(
                (&*written.end_reason, written.bytes),
                ("ended-by-operator", [0, heard as u64]),
                "{by}"
            );
            assert!(heard > 100_000, "{heard}");
        }
    });
}

/// The process that serves in the end, which nobody else would end.
struct Serving<'a>(&'a str);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let status = eventually("it says which process serves", || {
            let mut process = Process::start(command(&["status", self.0])).without_grace();
            process.wait().success().then(|| process.output())
        });
        let serving = status.split([' ', ',']).nth(1).and_then(|pid| pid.parse().ok());
        if let Some(serving) = serving {
            let _ = kill(Pid::from_raw(serving), Signal::SIGKILL);
        }
    }
}

/// Gives a command to the process that serves.
fn tell(words: &[&str], control: &str) -> String {
    let mut order = Command::new(binary());
    order.args(words).arg(control);
    let mut process = Process::start(order).without_grace();
    assert!(process.wait().success(), "{words:?}: {}", process.log());
    process.output()
}
