//! A kernel that does not know the options by which queues are bounded: sessions go on without.

use std::collections::BTreeMap;

use harness::process::Process;
use harness::proxy::command;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

const BYTES: usize = 4 << 20;

/// Has setsockopt(2) fail for these options, in this thread and in all processes that it starts, as in a kernel that does
/// not know them.
fn forget(options: &[(i32, i32)]) {
    let argument = |index, value: i32| {
        let value = value.try_into().unwrap();
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
    };
    let rules = options
        .iter()
        .map(|(level, name)| SeccompRule::new(vec![argument(1, *level), argument(2, *name)]).unwrap());
    let rules = BTreeMap::from([(libc::SYS_setsockopt, rules.collect())]);
    let unknown = SeccompAction::Errno(libc::ENOPROTOOPT.try_into().unwrap());
    let target = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, target).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// A session that moves some bytes each way, of a client that takes nothing for a while.
async fn session() {
    let agent = ScriptedAgent::plain(|_, mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        line.say(vec![1; BYTES]).await;
        assert_eq!(line.bytes(BYTES).await, vec![2; BYTES]);
        line.say("x").await;
    })
    .await;
    let mut front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say(front.upgrade("/ws")).await;
    client.head().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(client.bytes(BYTES).await, vec![1; BYTES]);
    client.say(vec![2; BYTES]).await;
    assert_eq!(client.bytes(1).await, b"x");
    let line = "the kernel can't bound the queues of sessions";
    front.proxy.until(line, |log| log.contains(line).then_some(()));
    let log = front.proxy.log();
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

/// Without TLS in the kernel there is nothing to start with where it is asked for, and nothing is missing otherwise.
#[test]
fn tls_that_the_kernel_does_not_have_is_said_before_anything_is_bound() {
    std::thread::spawn(|| {
        forget(&[(libc::IPPROTO_TCP, libc::TCP_ULP)]);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("--listen={}", taken.local_addr().unwrap());
        let began = std::time::Instant::now();
        let mut refused = Process::start(command(&[&listen, "--session-tls=kernel"])).without_grace();
        assert_eq!(refused.wait().code(), Some(2), "{}", refused.log());
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
        let log = refused.log();
        assert!(log.contains("--session-tls kernel: kernel TLS: this kernel does not do it"), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let agent = ScriptedAgent::plain(|_, mut line| async move {
                line.head().await;
                line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
                assert_eq!(line.bytes(2).await, b"hi");
                line.say("ho").await;
            })
            .await;
            let flags = ["--agent-tls=off", "--session-tls=auto"];
            let front = ProxyUnderTest::start(agent.address, &flags).await;
            assert!(front.proxy.log().contains("sessions are sealed and opened by this program"));
            let mut client = RawClient::secure(front.secure()).await;
            client.say(front.upgrade("/ws")).await;
            client.head().await.unwrap();
            client.say("hi").await;
            assert_eq!(client.bytes(2).await, b"ho");
        });
    })
    .join()
    .unwrap();
}

#[test]
fn an_option_that_the_kernel_does_not_know_is_said_once_and_sessions_go_on() {
    const TCP: i32 = libc::IPPROTO_TCP;
    let unknown = [
        vec![(libc::SOL_SOCKET, libc::SO_BUF_LOCK)],
        vec![(TCP, libc::TCP_NOTSENT_LOWAT)],
        vec![(TCP, libc::TCP_WINDOW_CLAMP)],
        vec![
            (TCP, libc::TCP_NOTSENT_LOWAT),
            (TCP, libc::TCP_WINDOW_CLAMP),
            (libc::SOL_SOCKET, libc::SO_BUF_LOCK),
        ],
    ];
    for options in unknown {
        let thread = std::thread::spawn(move || {
            println!("without {options:?}");
            forget(&options);
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(session());
        });
        thread.join().unwrap();
    }
}
