//! A row of the table: bytes from a client, what they make an agent see, and what the client is answered.
//! The builders fill in what a class of rows has in common, so that a row shows what it is about.

/// The agent that most rows ask for.
pub(crate) const AGENT: &str = "127.0.0.2";
/// What every agent is told of a client that came by plain HTTP; `*` stands for an id that the proxy has made.
pub(crate) const TOLD: &str =
    "X-Real-IP: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Request-Id: *\r\n";

/// What an agent is to see.
#[derive(Debug)]
pub(crate) enum Agent {
    /// These requests, each by a connection of its own; not one connection where there are none.
    Sees(Vec<Vec<u8>>),
    /// Perhaps a beginning, but no whole request.
    SeesNoneWhole,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) request: Vec<u8>,
    pub(crate) agent: Agent,
    /// The status of each answer.
    pub(crate) statuses: Vec<u16>,
    /// Whether the client may go on asking.
    pub(crate) stays: bool,
    /// A header line of the proxy's own answer.
    pub(crate) line: Option<String>,
}

/// A request that is forwarded so; the client may go on asking.
pub(crate) fn forwarded(name: &str, request: impl AsRef<[u8]>, seen: impl AsRef<[u8]>) -> Row {
    let agent = Agent::Sees(vec![seen.as_ref().to_vec()]);
    Row { agent, statuses: vec![204], stays: true, ..refused(name, 0, request) }
}

/// A request that no agent gets to see, and that the client's connection ends with.
pub(crate) fn refused(name: &str, status: u16, request: impl AsRef<[u8]>) -> Row {
    let agent = Agent::Sees(Vec::new());
    let request = request.as_ref().to_vec();
    Row { name: name.to_owned(), request, agent, statuses: vec![status], stays: false, line: None }
}

impl Row {
    /// The client's connection ends with the answer.
    pub(crate) fn closes(self) -> Self {
        Self { stays: false, ..self }
    }

    /// The client's connection stays after the answer.
    pub(crate) fn stays(self) -> Self {
        Self { stays: true, ..self }
    }

    /// The agent sees `to` where it would have seen `from`.
    pub(crate) fn seeing(self, from: &str, to: &str) -> Self {
        let Agent::Sees(heads) = &self.agent else { return self };
        let heads = heads.iter().map(|head| String::from_utf8_lossy(head).replacen(from, to, 1).into_bytes());
        Self { agent: Agent::Sees(heads.collect()), ..self }
    }

    /// The proxy's answer has this header line.
    pub(crate) fn with_line(self, line: &str) -> Self {
        Self { line: Some(line.to_owned()), ..self }
    }
}

/// Lines, each with its end.
pub(crate) fn lines(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [*line, "\r\n"]).collect()
}

/// A head of a client.
pub(crate) fn head(line: &str, fields: &[&str]) -> String {
    [line, "\r\n", &lines(fields), "\r\n"].concat()
}

/// The head that an agent sees for it.
pub(crate) fn seen(line: &str, host: &str, fields: &[&str]) -> String {
    [line, "\r\nHost: ", host, "\r\n", TOLD, &lines(fields), "\r\n"].concat()
}

/// A GET for a target, and the path that the agent sees.
pub(crate) fn path(target: &str, path: &str) -> Row {
    let asked = head(&format!("GET {target} HTTP/1.1"), &["Host: desk.example"]);
    forwarded(short(target), asked, seen(&format!("GET {path} HTTP/1.1"), "desk.example", &[]))
}

/// A GET for a target that the proxy answers itself, and is done with.
pub(crate) fn answered(target: &str, status: u16) -> Row {
    no_path(target, status).stays()
}

/// A GET for a target that is refused as malformed.
pub(crate) fn no_path(target: &str, status: u16) -> Row {
    let asked = head(&format!("GET {target} HTTP/1.1"), &["Host: desk.example"]);
    refused(short(target), status, asked)
}

fn short(target: &str) -> &str {
    target.get(..60).unwrap_or(target)
}

/// A request line that is forwarded so.
pub(crate) fn line(asked: &str, told: &str) -> Row {
    forwarded(asked, head(asked, &["Host: desk.example"]), seen(told, "desk.example", &[]))
}

/// A request line that is refused.
pub(crate) fn bad_line(asked: &str, status: u16) -> Row {
    refused(asked, status, head(asked, &["Host: desk.example"]))
}

/// Header lines after Host, and those that the agent sees after what it is told.
pub(crate) fn fields(name: &str, asked: &[&str], told: &[&str]) -> Row {
    let asked = head("GET /127.0.0.2/x HTTP/1.1", &[&["Host: desk.example"], asked].concat());
    forwarded(name, asked, seen("GET /x HTTP/1.1", "desk.example", told))
}

/// Bytes after Host's line that make a head bad; an empty line is added.
pub(crate) fn bad_fields(name: &str, bytes: impl AsRef<[u8]>) -> Row {
    let start: &[u8] = b"GET /127.0.0.2/x HTTP/1.1\r\nHost: desk.example\r\n";
    refused(name, 400, [start, bytes.as_ref(), b"\r\n\r\n"].concat())
}

/// The header lines and body of a POST, and those that the agent sees.
pub(crate) fn post(name: &str, asked: (&[&str], &str), told: (&[&str], &str)) -> Row {
    let head = head("POST /127.0.0.2/x HTTP/1.1", &[&["Host: desk.example"], asked.0].concat());
    forwarded(name, head + asked.1, seen("POST /x HTTP/1.1", "desk.example", told.0) + told.1)
}

/// The header lines and body of a POST that is refused.
pub(crate) fn bad_post(name: &str, status: u16, fields: &[&str], body: &str) -> Row {
    let head = head("POST /127.0.0.2/x HTTP/1.1", &[&["Host: desk.example"], fields].concat());
    refused(name, status, head + body)
}
