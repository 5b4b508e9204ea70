//! Which agent a path names, what the proxy answers itself, and who is never dialled.

use super::row::{Row, answered, bad_post, fields, forwarded, head, path, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [addresses(), one_slash_short(), health(), strangers()].into_iter().flatten().collect()
}

/// Four decimal numbers without leading zeros are an address, and an IPv6 address in brackets; what only looks like one is told so.
fn addresses() -> Vec<Row> {
    const NO_ADDRESS: [&str; 16] = [
        "/10%2E0%2E0%2E5/",
        "/127%2e0%2e0%2e3/x",
        "/127.0.0.3%2fx",
        "/127.0.0.3%00/x",
        "/127.0.0.3;a/x",
        "/127.0.0.3:8443/x",
        "/127.0.0.3@127.0.0.3/x",
        "/127.0.0/x",
        "/127.0.0.3.4/x",
        "/127.0.0.3./x",
        "/127.0.0..3/x",
        "/127.0..3/x",
        "/.../x",
        "/127.0.0.x/x",
        "/0x7f.0.0.3/x",
        "/2130706435/x",
    ];
    const BAD_ADDRESS: [&str; 14] = [
        "/010.0.0.5/",
        "/127.0.0.03/x",
        "/127.00.0.3/x",
        "/0127.0.0.3/x",
        "/256.1.1.1/x",
        "/999.1.1.1/",
        "/127.0.0.256",
        "/127.0.0.4294967299/x?q",
        "/1111111111111111111111.1.1.1",
        "/[::ffff:127.0.0.3]/x",
        "/[127.0.0.3]/x",
        "/[2001:db8::5/x",
        "/[2001:db8::5]:8443/x",
        "/[::1%25lo]/x",
    ];
    let others = [
        path("/::1/x", "/::1/x"),
        path("/x/127.0.0.3/", "/x/127.0.0.3/"),
        path("/%20/127.0.0.3/", "/%20/127.0.0.3/"),
    ];
    let default = NO_ADDRESS.map(|target| path(target, target));
    let refused = BAD_ADDRESS.map(|target| answered(target, 404));
    default.into_iter().chain(refused).chain(others).collect()
}

/// `/<ip>` without a slash would make the page's relative links point beside the prefix.
fn one_slash_short() -> Vec<Row> {
    let to = |target, location: &str| answered(target, 308).with_line(&format!("Location: {location}"));
    vec![
        to("/127.0.0.2", "/127.0.0.2/"),
        to("/127.0.0.2?", "/127.0.0.2/?"),
        to("/127.0.0.2?q=1&r", "/127.0.0.2/?q=1&r"),
        to("/127.0.0.2?/127.0.0.3/", "/127.0.0.2/?/127.0.0.3/"),
        to("http://desk.example/127.0.0.2?q", "/127.0.0.2/?q"),
        upgrade("an upgrade on /<ip>", "/127.0.0.2", "/"),
        upgrade("an upgrade on /<ip>?q", "/127.0.0.2?q", "/?q"),
        bad_post_to("a POST with a body to /<ip>", "/127.0.0.2", 308),
    ]
}

const WEBSOCKET: [&str; 3] = ["Host: h", "Upgrade: websocket", "Connection: Upgrade"];

fn upgrade(name: &str, target: &str, path: &str) -> Row {
    let told = seen(&format!("GET {path} HTTP/1.1"), "h\r\nUpgrade: websocket\r\nConnection: upgrade", &[]);
    forwarded(name, head(&format!("GET {target} HTTP/1.1"), &WEBSOCKET), told).closes()
}

fn bad_post_to(name: &str, target: &str, status: u16) -> Row {
    let asked = head(&format!("POST {target} HTTP/1.1"), &["Host: h", "Content-Length: 5"]);
    refused(name, status, asked + "hello")
}

fn health() -> Vec<Row> {
    let own = |line: &str, status| refused(line, status, head(line, &["Host: h"])).stays();
    vec![
        own("GET /health HTTP/1.1", 200),
        own("GET /health?x HTTP/1.1", 200),
        own("GET /health?/127.0.0.2/ HTTP/1.1", 200),
        own("GET http://h/health HTTP/1.1", 200),
        own("HEAD /health HTTP/1.1", 200),
        own("POST /health HTTP/1.1", 405).with_line("Allow: GET, HEAD"),
        own("OPTIONS /health HTTP/1.1", 405),
        own("get /health HTTP/1.1", 405),
        own("GET /health HTTP/1.0", 200).closes(),
        refused("health, then close", 200, head("GET /health HTTP/1.1", &["Host: h", "Connection: close"])),
        refused("health without Host", 400, head("GET /health HTTP/1.1", &[])),
        bad_post_to("a body to health", "/health", 405),
        path("/healthx", "/healthx"),
        path("/health/", "/health/"),
        path("/health/x", "/health/x"),
        path("/health;x", "/health;x"),
        path("/Health", "/Health"),
        path("//health", "//health"),
        path("/%68ealth", "/%68ealth"),
        path("/127.0.0.2/health", "/health"),
    ]
}

/// Addresses in no `--agents` prefix.
fn strangers() -> Vec<Row> {
    const TARGETS: [&str; 11] = [
        "/127.0.0.1/x",
        "/127.0.0.4/x",
        "/127.0.0.1",
        "/127.0.0.1?q",
        "/10.0.0.5/x",
        "/8.8.8.8/x",
        "/0.0.0.0/x",
        "/255.255.255.255/x",
        "/169.254.169.254/latest/meta-data/",
        "/224.0.0.1/x",
        "/126.255.255.255/x",
    ];
    let others = [
        bad_post_to("a POST to a stranger", "/127.0.0.1/x", 403),
        refused("an upgrade to a stranger", 403, head("GET /127.0.0.1/ws HTTP/1.1", &WEBSOCKET)),
        refused("an upgrade to a stranger's root", 403, head("GET /127.0.0.1 HTTP/1.1", &WEBSOCKET)),
        refused("a HEAD to a stranger", 403, head("HEAD /127.0.0.1/x HTTP/1.1", &["Host: h"])).stays(),
        bad_post("a body over the limit", 413, &["Content-Length: 65537"], ""),
        fields(
            "a stranger in X-Forwarded-Host",
            &["X-Forwarded-Host: 127.0.0.3"],
            &["X-Forwarded-Host: 127.0.0.3"],
        ),
    ];
    TARGETS.map(|target| answered(target, 403)).into_iter().chain(others).collect()
}

/// Rows of a proxy that may dial every address but for loopback ones, of which only the agent's is named.
pub(crate) fn everywhere() -> Vec<Row> {
    const SPECIAL: [&str; 17] = [
        "/127.0.0.1/x",
        "/127.0.0.3/x",
        "/127.255.255.255/x",
        "/0.0.0.0/x",
        "/0.0.0.1/x",
        "/169.254.0.1/x",
        "/169.254.169.254/latest/meta-data/",
        "/224.0.0.1/x",
        "/239.255.255.255/x",
        "/240.0.0.1/x",
        "/255.255.255.255/x",
        "/0.0.0.0?q",
        "/[::1]/x",
        "/[::]/x",
        "/[fe80::1]/x",
        "/[ff02::1]/x",
        "/[::1]?q",
    ];
    SPECIAL.map(|target| answered(target, 403)).into_iter().chain([path("/127.0.0.2/x", "/x")]).collect()
}

/// Rows of a proxy without a default agent.
pub(crate) fn without_default() -> Vec<Row> {
    let refused = ["/", "/x", "/health/", "/10%2E0%2E0%2E5/", "//127.0.0.2/", "/127.0.0/x"];
    refused.map(|target| answered(target, 404)).into_iter().chain([path("/127.0.0.2/x", "/x")]).collect()
}
