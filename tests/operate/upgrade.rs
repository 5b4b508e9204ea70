//! The next binary takes over.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::ports::unused_address;
use harness::process::{Process, eventually};
use harness::proxy;
use harness::raw_client::{End, RawClient};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Files, Service, agent, echoes};

/// Asks for `/health` by new connections until it is told to stop; gives how often, and panics at the first that fails.
fn knock(address: std::net::SocketAddr) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let knocking = tokio::spawn(async move {
        let mut answered = 0;
        while !stopped.load(Ordering::Relaxed) {
            let mut client = RawClient::secure(address).await;
            client.say("GET /health HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n").await;
            assert_eq!(client.answer().await.expect("an answer").status, 200);
            answered += 1;
        }
        answered
    });
    (stop, knocking)
}

/// A service whose binary is nobody else's.
fn with_own_binary(agent: std::net::SocketAddr) -> (Service, PathBuf) {
    let files = Files::new(agent);
    let binary = files.path("dcv-splice");
    fs::copy(proxy::binary(), &binary).unwrap();
    (Service::start_from(files, &binary), binary)
}

fn replace_binary(binary: &Path, text: &str) {
    fs::remove_file(binary).unwrap();
    fs::write(binary, text).unwrap();
    fs::set_permissions(binary, fs::Permissions::from_mode(0o755)).unwrap();
}

fn end(process: u32) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(process.try_into().unwrap()), Signal::SIGTERM);
}

fn is_gone(process: u32) -> bool {
    !PathBuf::from(format!("/proc/{process}/exe")).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_lost_and_no_connection_refused_in_twenty_upgrades() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let (stop, frames) = service.stream().await;
    let knocking: Vec<_> = (0..4).map(|_| knock(service.files.address)).collect();
    let mut processes = vec![service.serving()];
    for _ in 0..20 {
        service.does("upgrade");
        processes.push(service.serving());
        assert_eq!(service.ask("/x").await.status, 200);
    }
    processes.dedup();
    assert_eq!(processes.len(), 21);
    for (stop, knocking) in knocking {
        stop.store(true, Ordering::Relaxed);
        assert!(knocking.await.unwrap() > 20);
    }
    // The first process has the session; those between had nothing to stay for.
    eventually("two processes are left", || (service.does("status").lines().count() == 2).then_some(()));
    let status = service.does("status");
    let [serving, draining] = [0, 1].map(|line| status.lines().nth(line).unwrap().to_owned());
    assert!(serving.contains("serving") && draining.contains("draining"), "{status}");
    assert!(
        draining.contains(&format!("process {},", processes[0])) && draining.contains("connections 1"),
        "{status}"
    );
    stop.send(()).unwrap();
    assert!(frames.await.unwrap() > 60, "frames have come meanwhile");
    eventually("the first process has ended", || is_gone(processes[0]).then_some(()));
    assert_eq!(service.does("status").lines().count(), 1);
    end(service.serving());
    eventually("nothing is left", || is_gone(processes[20]).then_some(()));
    eventually("the control socket is gone", || {
        let left = fs::read_dir(service.files.folder.path()).unwrap();
        let left =
            left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("control"));
        (left.count() == 0).then_some(())
    });
}

/// A command that comes while one process takes over from another must find one of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_control_path_is_never_missing_in_twenty_upgrades() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    watch.add_watch(service.files.folder.path(), gone).unwrap();
    for _ in 0..20 {
        service.does("upgrade");
        service.does("reload");
    }
    let mut names = Vec::new();
    while let Ok(events) = watch.read_events() {
        names.extend(events.into_iter().filter_map(|event| event.name?.into_string().ok()));
    }
    assert!(names.iter().any(|name| name.starts_with("control.")), "it sees what goes: {names:?}");
    assert!(!names.contains(&"control".to_owned()), "{names:?}");
    end(service.serving());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_ended_in_order_when_the_time_after_an_upgrade_is_over() {
    let agent = agent().await;
    let mut service = Service::start(agent.address, "upgrade-drain-timeout = \"1s\"\n");
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    service.proxy.signal(Signal::SIGUSR2);
    assert_eq!(session.rest().await, (Vec::new(), End::Clean));
    assert_eq!(service.proxy.wait().code(), Some(0));
    assert!(service.files.log_lines("access.log").iter().any(|line| line.contains("end_reason=drained")));
    assert_eq!(service.ask("/x").await.status, 200);
    end(service.serving());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_old_process_too() {
    let agent = agent().await;
    let mut service = Service::start(agent.address, "drain-timeout = \"1s\"\n");
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    service.does("upgrade");
    let serving = service.serving();
    echoes(&mut session).await;
    // As systemd does with all processes of a service.
    end(serving);
    service.proxy.signal(Signal::SIGTERM);
    assert_eq!(session.rest().await, (Vec::new(), End::Clean));
    assert_eq!(service.proxy.wait().code(), Some(0));
    eventually("the new one has ended", || is_gone(serving).then_some(()));
}

/// One that drains is not what a command is for, and would keep a fresh start from the path.
#[tokio::test(flavor = "multi_thread")]
async fn the_control_path_goes_with_the_process_that_serves() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let mut session = service.session("/echo").await;
    service.does("upgrade");
    let serving = service.serving();
    assert_ne!(serving, service.proxy.pid());
    end(serving);
    eventually("the path is gone", || {
        fs::symlink_metadata(service.files.path("control")).is_err().then_some(())
    });
    eventually("its socket is gone", || {
        (!service.files.path(&format!("control.{serving}")).exists()).then_some(())
    });
    assert!(fs::symlink_metadata(service.files.path("control")).is_err());
    echoes(&mut session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_one_that_fails_leaves_the_old_one_serving() {
    let agent = agent().await;
    let (service, binary) = with_own_binary(agent.address);
    let before = service.serving();
    let mut session = service.session("/echo").await;
    let put = |text: &str| replace_binary(&binary, text);
    let ended = "ended before it could serve";
    put("#!/bin/sh\nexit 3\n");
    assert!(service.refuses("upgrade").contains(ended));
    put("no program");
    assert!(service.refuses("upgrade").contains("can't be started"));
    fs::remove_file(&binary).unwrap();
    assert!(service.refuses("upgrade").contains("No such file"));
    fs::copy(proxy::binary(), &binary).unwrap();
    for more in ["agnts = []\n", "listen = \"192.0.2.1:1\"\n"] {
        service.files.configure(more);
        assert!(service.refuses("upgrade").contains(ended));
    }
    assert!(service.proxy.log().contains("did you mean agents?"), "{}", service.proxy.log());
    assert_eq!(service.serving(), before);
    echoes(&mut session).await;
    service.files.configure("hsts-max-age = \"7s\"\n");
    service.does("reload");
    assert_eq!(service.ask("/x").await.header("strict-transport-security"), Some("max-age=7"));
    service.does("upgrade");
    assert_ne!(service.serving(), before);
    echoes(&mut session).await;
    end(service.serving());
}

/// It is ready, and learns that it is not waited for any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_next_one_that_comes_too_late_takes_nothing_with_it() {
    let agent = agent().await;
    let (service, binary) = with_own_binary(agent.address);
    let before = service.serving();
    let (stop, knocking) = knock(service.files.address);
    let late = format!("#!/bin/sh\nexec '{}' \"$@\" </dev/null\n", proxy::binary().display());
    replace_binary(&binary, &late);
    for _ in 0..3 {
        assert!(service.refuses("upgrade").contains("ended before it could serve"));
    }
    eventually("all of them have found out", || {
        (service.proxy.log().matches("Socket operation on non-socket").count() == 3).then_some(())
    });
    assert_eq!(service.serving(), before);
    service.does("reload");
    stop.store(true, Ordering::Relaxed);
    knocking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_upgrades_at_once_one_comes_off() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    // It stays until its session has ended, and so has an answer for everybody.
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    let flag = service.files.flag("control", "control");
    let ask = || Process::start(proxy::command(&["upgrade", &flag])).without_grace();
    let codes = [ask(), ask(), ask()].map(|mut asked| (asked.wait().code(), asked.log()));
    let done = codes.iter().filter(|(code, _)| *code == Some(0)).count();
    assert!(done >= 1, "{codes:?}");
    // Whoever found the next process has asked that one.
    eventually("one process serves", || {
        let status = service.does("status");
        (status.matches("serving").count() == 1 && status.lines().count() <= 1 + done).then_some(())
    });
    let listening = fs::read_dir(service.files.folder.path()).unwrap();
    let names = listening.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let sockets = names.filter(|name| name.starts_with("control.")).count();
    assert!(sockets <= 1 + done, "{sockets} sockets after {done} upgrades");
    end(service.serving());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_takes_up_what_a_reload_can_not() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let more = unused_address();
    service.files.configure(&format!("listen = [\"{}\", \"{more}\"]\nworkers = 3\n", service.files.address));
    service.refuses("reload");
    service.does("upgrade");
    assert_eq!(service.ask("/x").await.status, 200);
    RawClient::secure(more).await;
    service.files.configure(&format!("listen = \"{more}\"\nworkers = 1\n"));
    service.does("upgrade");
    RawClient::secure(more).await;
    eventually("it listens no longer where it is not to", || {
        std::net::TcpStream::connect(service.files.address).is_err().then_some(())
    });
    end(service.serving());
}
