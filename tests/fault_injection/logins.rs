//! Agents that log a connection in, and not a request (NTLM, Negotiate): a login serves the client that made it, and
//! nobody else.

use std::sync::Arc;

use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{Answer, RawClient, Secure, header};
use harness::scripted_agent::ScriptedAgent;

/// An agent whose connections remember what name was shown on them last, and answer with it. Who has shown none is
/// asked for it by `challenge`.
async fn remembering(challenge: &str) -> ScriptedAgent {
    let challenge: Arc<str> = challenge.into();
    ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let challenge = challenge.clone();
        async move {
            let mut user = None;
            while let Some(head) = agent.head().await {
                let shown = header(&head, "authorization").and_then(|shown| shown.split(' ').nth(1));
                user = shown.map(str::to_owned).or(user);
                let answer = match &user {
                    Some(user) => {
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{user}", user.len())
                    }
                    None => {
                        format!("HTTP/1.1 401 Unauthorized\r\n{challenge}\r\nContent-Length: 0\r\n\r\n")
                    }
                };
                agent.say(answer).await;
            }
        }
    })
    .await
}

async fn ask(front: &ProxyUnderTest, client: &mut RawClient, headers: &str) -> Answer {
    client.say(front.request("GET /", headers)).await;
    client.answer().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_served_as_the_client_that_logged_in_before() {
    for scheme in ["NTLM", "ntlm", "Negotiate", "nEGOTIATE", "Kerberos", "Nego2", "CredSSP", "X-Unheard-Of"] {
        let agent = remembering("WWW-Authenticate: Basic realm=\"x\"").await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        let mut alice = RawClient::plain(front.plain()).await;
        let shown = format!("Authorization: {scheme} alice\r\n");
        assert_eq!(ask(&front, &mut alice, &shown).await.text(), "alice");
        for _ in 0..2 {
            assert_eq!(front.ask("GET /").await.status, 401, "{scheme}");
            let mut bob = RawClient::plain(front.plain()).await;
            assert_eq!(ask(&front, &mut bob, "").await.status, 401, "{scheme}");
        }
        drop(alice);
        assert_eq!(front.ask("GET /").await.status, 401, "{scheme}, once she has left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_lasts_as_long_as_its_clients_connection_and_ends_with_it() {
    let agent = remembering("www-authenticate: Basic realm=\"a, b\", NTLM").await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut alice = RawClient::secure(front.secure()).await;
    alice.say(front.request("GET /", "")).await;
    assert_eq!(alice.answer().await.unwrap().status, 401);
    for (shown, user) in [("Authorization: NTLM one\r\n", "one"), ("Authorization: NTLM alice\r\n", "alice")]
    {
        alice.say(front.request("POST /", &format!("{shown}Content-Length: 0\r\n"))).await;
        assert_eq!(alice.answer().await.unwrap().text(), user);
        assert_eq!(front.ask("GET /").await.status, 401);
    }
    for _ in 0..3 {
        alice.say(front.request("GET /", "")).await;
        assert_eq!(alice.answer().await.unwrap().text(), "alice");
    }
    // Bob's connections were closed with his.
    assert_eq!(agent.accepted(), 3);
    drop(alice);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_an_agent_has_spoken_of_a_login_on_serves_one_client() {
    const SAID: [&str; 8] = [
        "WWW-Authenticate: NTLM",
        "WWW-Authenticate: Basic realm=\"x\"\r\nwww-authenticate: NEGOTIATE YII=",
        "WWW-Authenticate: Digest qop=\"auth, auth-int\", nonce=\"\\\"\" , , Negotiate",
        "WWW-Authenticate: Basic realm=\"never closed, NTLM",
        "WWW-Authenticate: Basic realm=\"x\"\r\nPersistent-Auth: true",
        "WWW-Authenticate: Basic realm=\"x\"\r\nPERSISTENT-AUTH: false",
        "WWW-Authenticate: Basic realm=\"x\"\r\nAuthentication-Info: Negotiate oRQ=",
        "Proxy-Authenticate: NTLM",
    ];
    for said in SAID {
        let agent = remembering(said).await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        front.ask("GET /").await;
        front.ask("GET /").await;
        assert_eq!(agent.accepted(), 2, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_for_one_request_keeps_no_connection_from_others() {
    let agent = remembering("WWW-Authenticate: Digest qop=\"auth, NTLM\", nonce=x, Basic realm=NTLM").await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    front.ask("GET /").await;
    for shown in ["Basic YTpi", "Bearer a", "Digest username=\"x\", response=y", "SCRAM-SHA-256 data=x"] {
        let mut client = RawClient::plain(front.plain()).await;
        assert_eq!(ask(&front, &mut client, &format!("Authorization: {shown}\r\n")).await.status, 200);
    }
    assert_eq!(agent.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_speaks_for_others_has_no_login_kept() {
    for sign in ["Via: 1.1 balancer", "X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.7"] {
        let agent = remembering("WWW-Authenticate: NTLM").await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        let mut balancer = RawClient::plain(front.plain()).await;
        let shown = format!("{sign}\r\nAuthorization: NTLM alice\r\n");
        assert_eq!(ask(&front, &mut balancer, &shown).await.text(), "alice");
        assert_eq!(ask(&front, &mut balancer, &format!("{sign}\r\n")).await.status, 401, "{sign}");
        assert_eq!(ask(&front, &mut balancer, "Authorization: NTLM bob\r\n").await.text(), "bob");
        assert_eq!(ask(&front, &mut balancer, &format!("{sign}\r\n")).await.status, 401, "{sign}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_its_agent_has_ended_is_asked_for_again() {
    let agent = ScriptedAgent::secure(|number, mut agent: RawClient<Secure>| async move {
        while let Some(head) = agent.head().await {
            let shown = header(&head, "authorization").is_some();
            let status = if shown { "200 OK" } else { "401 Unauthorized" };
            agent
                .say(format!("HTTP/1.1 {status}\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"))
                .await;
            if number == 0 {
                return agent.finish().await;
            }
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut alice = RawClient::plain(front.plain()).await;
    assert_eq!(ask(&front, &mut alice, "Authorization: NTLM alice\r\n").await.status, 200);
    assert_eq!(ask(&front, &mut alice, "").await.status, 401);
    assert_eq!(ask(&front, &mut alice, "Authorization: NTLM alice\r\n").await.status, 200);
    assert_eq!(agent.accepted(), 2);
    drop(alice);
    front.recovers().await;
}
