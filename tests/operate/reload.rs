//! Settings that change while it serves.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use harness::process::{Process, eventually};
use harness::proxy;
use harness::raw_client::{End, RawClient, Secure};
use nix::sys::signal::Signal;

use super::{Files, Service, agent, echoes, replace};

/// The certificate that it shows, as PEM text has it.
async fn shown(service: &Service) -> Vec<u8> {
    let stream = service.client().await.into_stream();
    let certificates = stream.get_ref().1.peer_certificates().expect("a certificate");
    certificates[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_go_by_a_reload_and_sessions_by_what_they_began_with() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let mut session = service.session("/echo").await;
    echoes(&mut session).await;
    assert_eq!(service.ask("/x").await.status, 200);
    let identity = service.files.certify();
    service.files.configure(&format!(
        "agents = \"192.0.2.0/24\"\nrequest-line-max = \"256B\"\nhsts-max-age = \"5s\"\naccess-log = \"{}\"\n",
        service.files.path("second.log").display()
    ));
    service.does("reload");
    let strange = service.ask("/x").await;
    assert_eq!((strange.status, strange.header("strict-transport-security")), (403, Some("max-age=5")));
    assert_eq!(service.ask(&format!("/{}", "x".repeat(300))).await.status, 414);
    assert_eq!(shown(&service).await, identity.chain().unwrap()[0].to_vec());
    echoes(&mut session).await;
    session.finish().await;
    assert_eq!(session.rest().await.1, End::Clean);
    // The line of what ends now goes to the log of now.
    eventually("the session's line is written", || {
        service.files.log_lines("second.log").iter().any(|line| line.contains("/echo ")).then_some(())
    });
    assert!(service.files.log_lines("access.log").iter().any(|line| line.contains("/x ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_can_not_be_used_changes_nothing_and_says_why() {
    let agent = agent().await;
    let mut service = Service::start(agent.address, "");
    let before = shown(&service).await;
    service.files.certify();
    let listen = format!("listen = \"{}\"", service.files.address);
    for (more, told) in [
        ("agnts = []\n", "did you mean agents?"),
        ("connect-timeout = \"0ms\"\n", "invalid value '0ms'"),
        ("cert = \"/nowhere\"\n", "/nowhere"),
        ("access-log = \"/nowhere/at/all\"\n", "/nowhere/at/all"),
        ("key = \"/etc/passwd\"\n", "/etc/passwd"),
        ("listen = \"127.0.0.1:1\"\n", "listen can't change while it runs: `dcv-splice upgrade` takes it up"),
        ("workers = 3\n", "workers can't change while it runs"),
    ] {
        service.files.configure(more);
        let said = service.refuses("reload");
        let place = format!("{}:", service.files.path("proxy.toml").display());
        assert!(said.contains(told) && said.contains(&place), "{more}: {said}");
        assert_eq!(service.ask("/x").await.status, 200, "{more}");
    }
    fs::remove_file(service.files.path("proxy.toml")).unwrap();
    assert!(service.refuses("reload").contains("proxy.toml"));
    // A signal has the log for its answer.
    service.proxy.signal(Signal::SIGHUP);
    service.proxy.until("says that nothing has changed", |log| {
        (log.matches("reload failed, nothing has changed reason=").count() == 9).then_some(())
    });
    // What was refused is not taken up by the way when a certificate changes; that was taken up long ago.
    service.files.configure("listen = \"127.0.0.1:1\"\nagents = []\n");
    service.refuses("reload");
    let taken_up = || service.proxy.log().matches("changed files loaded").count();
    let earlier = taken_up();
    let identity = service.files.certify();
    eventually("the new certificate is taken up", || (taken_up() > earlier).then_some(()));
    assert_eq!(service.ask("/x").await.status, 200);
    replace(&service.files.path("proxy.toml"), &listen);
    let now = shown(&service).await;
    assert!(now != before && now == identity.chain().unwrap()[0].to_vec());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_in_two_steps_is_taken_up_and_the_old_one_serves_meanwhile() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    service.files.configure("hsts-max-age = \"9s\"\n");
    service.does("reload");
    let before = shown(&service).await;
    let renewed =
        harness::certificates::Identity::self_signed(harness::certificates::KeyKind::Rsa, &["localhost"]);
    // What is not reloaded yet does not come with it.
    service.files.configure("agents = []\n");
    replace(&service.files.path("proxy.crt"), &renewed.cert_pem);
    eventually("the log says that they are no pair", || {
        service.proxy.log().contains("do not fit together yet").then_some(())
    });
    assert_eq!(shown(&service).await, before);
    replace(&service.files.path("proxy.key"), &renewed.key_pem);
    eventually("the pair is read", || service.proxy.log().contains("changed files loaded").then_some(()));
    assert_eq!(shown(&service).await, renewed.chain().unwrap()[0].to_vec());
    let answer = service.ask("/x").await;
    assert_eq!((answer.status, answer.header("strict-transport-security")), (200, Some("max-age=9")));
    service.does("reload");
    assert_eq!(service.ask("/x").await.status, 403);
    assert!(!service.proxy.log().contains("ERROR"), "nothing was wrong: {}", service.proxy.log());
}

/// Those who renew certificates ask for a reload afterwards, whatever else the file says by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_is_refused_swallows_no_renewal() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    service.files.configure("workers = 1\n");
    let identity = service.files.certify();
    service.refuses("reload");
    eventually("the certificate is taken up", || {
        service.proxy.log().contains("changed files loaded").then_some(())
    });
    assert_eq!(shown(&service).await, identity.chain().unwrap()[0].to_vec());
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_at_the_same_time_all_come_off_and_the_last_configuration_holds() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let flag = service.files.flag("control", "control");
    for round in 1..=5 {
        service.files.configure(&format!("hsts-max-age = \"{round}s\"\n"));
        // A renewal in the middle of them.
        let identity = service.files.certify();
        let asked: Vec<_> =
            (0..4).map(|_| Process::start(proxy::command(&["reload", &flag])).without_grace()).collect();
        for mut asked in asked {
            assert_eq!(asked.wait().code(), Some(0), "{}", asked.log());
        }
        let answer = service.ask("/x").await;
        assert_eq!(answer.header("strict-transport-security"), Some(&*format!("max-age={round}")));
        assert_eq!(shown(&service).await, identity.chain().unwrap()[0].to_vec());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_keep_others_waiting_keep_nobody_waiting_here() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let path = service.files.path("proxy.toml");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(service.refuses("reload").contains("is no regular file"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(service.refuses("reload").contains("is no regular file"));
    fs::remove_dir(&path).unwrap();
    let log = service.files.path("fifo");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
    service.files.configure(&format!("access-log = \"{}\"\n", log.display()));
    assert!(service.refuses("reload").contains("fifo"));
    service.files.configure("");
    service.does("reload");
}

/// Clients may have all descriptors that there are; it has to get over that.
#[tokio::test(flavor = "multi_thread")]
async fn a_want_of_descriptors_ends_no_reloads() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let inner = files.command(proxy::binary());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    let service = Service::start_by(files, command);
    let clients: Vec<_> =
        (0..60).map(|_| std::net::TcpStream::connect(service.files.address).unwrap()).collect();
    eventually("all descriptors are taken", || {
        service.proxy.log().contains("no file descriptor is left").then_some(())
    });
    // What can't come over changes nothing, and is not taken up by the way later.
    service.files.configure("hsts-max-age = \"3s\"\n");
    service.proxy.signal(Signal::SIGHUP);
    eventually("it is refused", || {
        service
            .proxy
            .log()
            .contains("nothing has changed reason=\"there are too few file descriptors")
            .then_some(())
    });
    let identity = service.files.certify();
    eventually("the files do not arrive", || {
        service.proxy.log().contains("the old ones stay in use reason=\"there are too few").then_some(())
    });
    drop(clients);
    eventually("they arrive later", || service.proxy.log().contains("changed files loaded").then_some(()));
    assert_eq!(shown(&service).await, identity.chain().unwrap()[0].to_vec());
    assert_eq!(service.ask("/x").await.header("strict-transport-security"), None);
    service.does("reload");
    assert_eq!(service.ask("/x").await.header("strict-transport-security"), Some("max-age=3"));
}

/// The helper is who waits for a disk; it stands still here altogether.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_keeps_neither_status_nor_a_stop_waiting() {
    let agent = agent().await;
    let mut service = Service::start(agent.address, "");
    let children = format!("/proc/{0}/task/{0}/children", service.proxy.pid());
    let helper = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let helper = nix::unistd::Pid::from_raw(helper);
    nix::sys::signal::kill(helper, Signal::SIGSTOP).unwrap();
    let flag = service.files.flag("control", "control");
    let ask = |word: &str| Process::start(proxy::command(&[word, &flag])).without_grace();
    let mut waiting: Vec<_> = (0..10).map(|_| ask("reload")).collect();
    eventually("those beyond the limit are refused", || {
        (waiting.iter_mut().filter_map(Process::ended).count() == 4).then_some(())
    });
    assert!(service.refuses("reload").contains("the helper has not answered"));
    assert!(service.does("status").contains("serving"));
    service.proxy.signal(Signal::SIGTERM);
    let status = service.proxy.wait();
    nix::sys::signal::kill(helper, Signal::SIGCONT).unwrap();
    assert_eq!(status.code(), Some(0));
}

/// It is the listening socket's option that a connection goes by.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_let_go_by_the_stall_time_of_the_last_reload() {
    let agent = agent().await;
    let service = Service::start(agent.address, "tcp-user-timeout = \"600s\"\n");
    service.files.configure("tcp-user-timeout = \"1s\"\n");
    service.does("reload");
    let client = service.session("/stream").await;
    eventually("the session is ended", || {
        let lines = service.files.log_lines("access.log");
        lines.iter().any(|line| line.contains("/stream ") && line.contains("client-stalled")).then_some(())
    });
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_it_made_itself_stays_the_same() {
    let agent = agent().await;
    let service = Service::start(agent.address, "cert = []\nkey = []\n");
    let before = shown(&service).await;
    service.does("reload");
    assert_eq!(shown(&service).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_its_own_socket_is_replaced_by_the_control_socket() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let precious = files.path("precious");
    fs::write(&precious, "x").unwrap();
    files.configure(&format!("control = \"{}\"\n", precious.display()));
    let mut process = Process::start(files.command(proxy::binary()));
    assert_eq!(process.wait().code(), Some(1));
    assert!(process.log().contains("there is something else"), "{}", process.log());
    assert_eq!(fs::read(&precious).unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_check_makes_nothing() {
    let agent = agent().await;
    let files = Files::new(agent.address);
    let mut check = std::process::Command::new(proxy::binary());
    check.arg("check").arg(files.flag("config", "proxy.toml"));
    let mut check = Process::start(check);
    assert_eq!(check.wait().code(), Some(0), "{}", check.log());
    assert!(!files.path("access.log").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_its_connection_gets_the_answer_it_waits_for_and_comes_anew() {
    let (begun, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (tell, answer) = tokio::sync::watch::channel(false);
    let agent = harness::scripted_agent::ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let (begun, mut answer) = (begun.clone(), answer.clone());
        async move {
            while agent.head().await.is_some() {
                begun.send(()).unwrap();
                answer.wait_for(|answer| *answer).await.unwrap();
                agent.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let service = Service::start(agent.address, "");
    let mut idle = service.client().await;
    idle.say("GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n").await;
    assert_eq!(idle.answer().await.unwrap().header("connection"), Some("keep-alive"));
    let mut waiting = service.client().await;
    waiting.say(service.request("/x")).await;
    told.recv().await.unwrap();
    // Connected, and has not asked for anything yet.
    let mut silent = service.client().await;
    service.does("reload");
    assert_eq!(idle.rest().await, (Vec::new(), End::Clean));
    tell.send(true).unwrap();
    let answered = waiting.answer().await.unwrap();
    assert_eq!((answered.status, answered.header("connection")), (200, Some("close")));
    silent.say(service.request("/x")).await;
    let answered = silent.answer().await.unwrap();
    assert_eq!((answered.status, answered.header("connection")), (200, Some("close")));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_that_were_moved_away_are_opened_again_and_no_line_is_lost() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let lines = |name: &str| service.files.log_lines(name).len();
    for (rotated, by_signal) in [("1", false), ("2", true)] {
        assert_eq!(service.ask("/x").await.status, 200);
        fs::rename(service.files.path("access.log"), service.files.path(rotated)).unwrap();
        assert_eq!(service.ask("/x").await.status, 200);
        eventually("both lines are there", || (lines(rotated) == 2).then_some(()));
        if by_signal {
            service.proxy.signal(Signal::SIGUSR1);
        } else {
            service.does("reopen");
        }
        eventually("the log is there again", || service.files.path("access.log").exists().then_some(()));
    }
    eventually("the second time is over", || {
        (service.proxy.log().matches("access log reopened").count() == 2).then_some(())
    });
    assert_eq!(service.ask("/x").await.status, 200);
    eventually("the line is in the new log", || (lines("access.log") == 1).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_is_for_its_user_alone_and_takes_commands_alone() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let path = service.files.path("control");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Others wait while these say nothing.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for word in ["stop\n", "\n", &"x".repeat(100_000), "status status\n", "reload"] {
        let mut stream = UnixStream::connect(&path).unwrap();
        // It may have gone before it has taken all.
        let _ = stream.write_all(word.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer == "there is no such command" || word == "reload" || answer.is_empty(),
            "{word}: {answer}"
        );
    }
    drop(silent);
    assert!(service.does("status").contains("serving"));
    // A second one does not take its place.
    let mut second = service.files.command(proxy::binary());
    second.arg("--listen=127.0.0.1:0");
    let mut second = Process::start(second);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("another dcv-splice is reached there"), "{}", second.log());
    assert!(service.does("status").contains("serving"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_lost_in_a_hundred_reloads_and_nothing_piles_up() {
    let agent = agent().await;
    let service = Service::start(agent.address, "");
    let (stop, frames) = service.stream().await;
    service.does("reload");
    let (descriptors, threads) = (service.proxy.descriptors(), service.proxy.threads());
    for number in 0..100 {
        service.files.configure(&format!("connect-timeout = \"{}ms\"\n", 1000 + number));
        service.does("reload");
    }
    stop.send(()).unwrap();
    assert!(frames.await.unwrap() > 60, "frames have come meanwhile");
    eventually("nothing is held of former settings", || {
        (service.proxy.descriptors() <= descriptors && service.proxy.threads() <= threads).then_some(())
    });
}
