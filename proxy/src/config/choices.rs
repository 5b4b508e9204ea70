//! The values of flags that are one of a few, as they are typed. What they mean is decided where they are used.

use clap::ValueEnum;

/// How TLS to the agents is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AgentTls {
    /// TLS, with any certificate.
    Insecure,
    /// TLS, verified by --agent-ca (with --agent-name) or --agent-pin.
    Verify,
    /// Plain HTTP.
    Off,
}

/// Whether clients may speak HTTP/2.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Http2 {
    /// Those that offer it in TLS, or begin with it on a plain connection.
    #[default]
    On,
    /// HTTP/1.1 for all.
    Off,
}

/// Whether a client may open a WebSocket over HTTP/2.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Http2Websocket {
    /// Those that know how (RFC 8441).
    On,
    /// Browsers open them over HTTP/1.1, each on a connection of its own.
    #[default]
    Off,
}

/// Whether sessions end whose user was removed, or whose client may no longer come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum EndRevoked {
    /// As soon as the change is applied.
    On,
    /// They go on; what was changed holds for new connections.
    #[default]
    Off,
}

/// Whether agents are probed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Probe {
    /// They are not.
    #[default]
    Off,
    /// By a TCP connection.
    Tcp,
    /// By a TLS handshake, whatever the certificate.
    Tls,
    /// By a request, which any answer will do for.
    Http,
}

/// The lowest version of TLS for clients.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum TlsMin {
    /// TLS 1.2, with forward secrecy and AEAD only.
    #[default]
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[value(name = "1.3")]
    Tls13,
}

/// Whether clients need a certificate of their own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum ClientCert {
    /// A client needs a verified certificate.
    #[default]
    Required,
    /// A client may have one, which must be verified.
    Optional,
}

/// How a worker waits for sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum IoBackend {
    /// `io_uring`, or epoll if it is not available.
    #[default]
    Auto,
    /// `io_uring` (Linux 6.1 and later).
    IoUring,
    /// epoll(7).
    Epoll,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// Time, level, event, fields.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The form of the access log's lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum AccessLogFormat {
    /// The combined format of web servers, and fields behind it.
    #[default]
    Combined,
    /// One JSON object per line.
    Json,
}

/// Whether the kernel counts connections too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum EbpfMode {
    /// If the kernel and the permissions allow it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// The program does not start without it.
    Require,
}

/// Who seals and opens the TLS records of sessions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum SessionTls {
    /// This program.
    #[default]
    User,
    /// The kernel; the program does not start where that can't.
    Kernel,
    /// The kernel where that can and is fast.
    Auto,
}
