//! Sessions that end in order, however little TLS hears of it: what the books call them.

use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Secure};
use harness::scripted_agent::ScriptedAgent;

const SWITCHES: &[u8] = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const DATA: &[u8] = b"\x82\x02hi";
const CLOSE: &[u8] = b"\x88\x02\x03\xe8";
const MASKED_CLOSE: &[u8] = b"\x88\x82\x01\x02\x03\x04\x02\xea";

type Leave = fn(RawClient<Secure>);

/// The ending that the books have of a session in which the agent says these records and leaves, and the client, once it
/// has heard them, says its own and leaves.
async fn ending(
    agent_says: &[&'static [u8]],
    agent_leaves: Leave,
    client_says: &[u8],
    leave: Leave,
) -> String {
    let says = agent_says.to_vec();
    let heard = says.concat().len() - SWITCHES.len();
    let said = client_says.len();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let says = says.clone();
        async move {
            agent.head().await;
            for record in says {
                agent.say(record).await;
            }
            assert_eq!(agent.bytes(said).await.len(), said);
            agent_leaves(agent);
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--half-closed-timeout=1s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    assert_eq!(client.bytes(heard).await.len(), heard);
    client.say(client_says).await;
    leave(client);
    let line = front.access_line("GET /127.0.0.1/ws");
    front.recovers().await;
    line.trim_end().rsplit_once("end_reason=").unwrap().1.to_owned()
}

/// Stays until the other side has gone.
fn stay(mut line: RawClient<Secure>) {
    tokio::spawn(async move { line.rest().await });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_sent_a_close_frame_ends_in_order() {
    let early = [SWITCHES, DATA].concat().leak();
    let leaves: [Leave; 2] = [drop, RawClient::reset];
    for leave in leaves {
        assert_eq!(ending(&[SWITCHES, DATA], stay, MASKED_CLOSE, leave).await, "client-ended");
        assert_eq!(ending(&[early], stay, &[DATA, MASKED_CLOSE].concat(), leave).await, "client-ended");
    }
    assert_eq!(
        ending(&[SWITCHES, DATA], stay, b"\x82\x82\x01\x02\x03\x04hi", drop).await,
        "client-truncated"
    );
    assert_eq!(
        ending(&[SWITCHES, DATA], stay, b"\x82\x82\x01\x02\x03\x04hi", RawClient::reset).await,
        "client-reset"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_sent_a_close_frame_ends_in_order() {
    let says: [&[&[u8]]; 3] = [
        &[SWITCHES, DATA, CLOSE],
        &[SWITCHES, [DATA, CLOSE].concat().leak()],
        &[[SWITCHES, DATA, CLOSE].concat().leak()],
    ];
    for says in says {
        assert_eq!(ending(says, drop, b"\x81\x80\0\0\0\0", stay).await, "agent-ended", "{says:?}");
    }
    assert_eq!(ending(&[SWITCHES, CLOSE, DATA], drop, b"x", stay).await, "agent-truncated");
    assert_eq!(ending(&[SWITCHES, DATA], drop, b"x", stay).await, "agent-truncated");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resets_after_the_other_side_has_ended_in_order_is_not_the_end() {
    // The client leaves at the agent's close_notify, with bytes unread.
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(SWITCHES).await;
        agent.say(DATA).await;
        agent.finish().await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--half-closed-timeout=600s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    assert_eq!(client.rest().await.0, DATA);
    client.reset();
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=agent-ended"));
    front.recovers().await;
}
