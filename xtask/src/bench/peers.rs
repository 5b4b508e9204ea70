//! The peers: what each is, its configuration, and how it is started in front of the load's agent.
//! All get the same certificate, two workers, and TLS 1.3 with AES-256-GCM on both legs (the load's two ends offer
//! nothing else), on loopback ports of their own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use clap::ValueEnum;
use dcv_splice::transport::kernel_tls::KernelTlsTrial;
use harness::certificates::Identity;
use harness::process::Process;
use serde::Serialize;

use super::part::{self, Role};
use super::relay::RelayPlan;

/// What stands between client and agent.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Peer {
    /// Nothing
    Direct,
    /// A TCP relay that copies, without TLS of its own: the floor
    L4,
    /// The same with splice(2)
    L4Splice,
    /// nginx by the published recipe
    NginxRecipe,
    /// nginx as an expert would set it up
    NginxTuned,
    /// `HAProxy`
    Haproxy,
    /// This project's proxy, release build
    DcvSplice,
    /// The same with the kernel's account (root; `cargo xtask ebpf` first)
    DcvSpliceEbpf,
    /// The same with sessions' TLS in the kernel
    DcvSpliceKtls,
    /// Another build of it, the one of --before
    DcvSpliceBefore,
}

/// Where everything of one run is.
pub(super) struct Place<'a> {
    /// For configurations and logs.
    pub(super) directory: &'a Path,
    pub(super) identity: &'a Identity,
    /// The measured load's agent, and those of what runs beside it: other addresses, the same port.
    pub(super) agents: [SocketAddr; 3],
    pub(super) is_secure: bool,
    /// Whether clients speak HTTP/2.
    pub(super) is_http2: bool,
    /// Where the peer listens.
    pub(super) listen: Ipv4Addr,
    /// The proxy's release build.
    pub(super) proxy: &'a Path,
    /// Another build of it to compare with.
    pub(super) before: Option<&'a Path>,
    /// For the proxy.
    pub(super) flags: &'a [String],
}

/// A started peer.
pub(super) struct Running {
    /// None for `direct`.
    pub(super) process: Option<Process>,
    /// The way to each agent.
    pub(super) entrances: [Entrance; 3],
}

/// The way to one agent.
pub(super) struct Entrance {
    /// Where clients connect to.
    pub(super) address: SocketAddr,
    /// What stands before the agent's own paths.
    pub(super) prefix: String,
}

impl Place<'_> {
    fn port(&self) -> u16 {
        self.agents[0].port()
    }
}

impl Peer {
    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The program it needs that is not built here, and its package.
    pub(super) fn needs(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::NginxRecipe | Self::NginxTuned => Some(("/usr/sbin/nginx", "nginx-light")),
            Self::Haproxy => Some(("/usr/sbin/haproxy", "haproxy")),
            _ => None,
        }
    }

    /// Why this host can't run it, where that is not a program that is missing.
    pub(super) fn impossible(self) -> Option<&'static str> {
        static KERNEL_TLS: OnceLock<bool> = OnceLock::new();
        let has_tls = || *KERNEL_TLS.get_or_init(|| KernelTlsTrial::run().is_ok());
        (self == Self::DcvSpliceKtls && !has_tls()).then_some("this kernel does no TLS (modprobe tls)")
    }

    /// What its program says of its version.
    pub(super) fn version(self, proxy: &Path, before: Option<&Path>) -> String {
        let (program, flag) = match self {
            Self::Direct | Self::L4 | Self::L4Splice => return "-".into(),
            Self::NginxRecipe | Self::NginxTuned => (Path::new("/usr/sbin/nginx"), "-v"),
            Self::Haproxy => (Path::new("/usr/sbin/haproxy"), "-v"),
            Self::DcvSplice | Self::DcvSpliceEbpf | Self::DcvSpliceKtls => (proxy, "--version"),
            Self::DcvSpliceBefore => (before.unwrap_or(proxy), "--version"),
        };
        let Ok(output) = Command::new(program).arg(flag).output() else { return "unknown".into() };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").trim().to_owned()
    }

    /// Starts it and waits until it listens.
    pub(super) fn start(self, place: &Place) -> Result<Running, String> {
        let entrance = |address| Entrance { address, prefix: String::new() };
        let address = free(place.listen)?;
        let command = match self {
            Self::Direct => return Ok(Running { process: None, entrances: place.agents.map(entrance) }),
            Self::L4 | Self::L4Splice => {
                let listen = [address, free(place.listen)?, free(place.listen)?];
                let routes = listen.into_iter().zip(place.agents).collect();
                let plan = RelayPlan { routes, splice: self == Self::L4Splice };
                let process = Process::start(part::command(Role::Relay, &plan)?).without_grace();
                let process = listen.into_iter().try_fold(process, part::listening)?;
                return Ok(Running { process: Some(process), entrances: listen.map(entrance) });
            }
            Self::NginxRecipe => nginx(place, &nginx_recipe(place, address))?,
            Self::NginxTuned => nginx(place, &nginx_tuned(place, address))?,
            Self::Haproxy => haproxy(place, address)?,
            Self::DcvSplice => {
                let mut command = dcv_splice(place, place.proxy, address, "off");
                command.args(place.flags);
                command
            }
            Self::DcvSpliceEbpf => dcv_splice(place, place.proxy, address, "require"),
            Self::DcvSpliceKtls => {
                let mut command = dcv_splice(place, place.proxy, address, "off");
                command.args(["--session-tls", "kernel"]);
                command
            }
            Self::DcvSpliceBefore => dcv_splice(place, place.before.unwrap_or(place.proxy), address, "off"),
        };
        let process = Process::start(part::tied(&command)?).without_grace();
        let process = part::listening(process, address)?;
        let entrances = place.agents.map(|agent| Entrance { address, prefix: format!("/{}", agent.ip()) });
        Ok(Running { process: Some(process), entrances })
    }
}

/// An address that nothing listens on.
pub(super) fn free(ip: Ipv4Addr) -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|why| format!("no free port on {ip}: {why}"))
}

fn dcv_splice(place: &Place, program: &Path, listen: SocketAddr, ebpf: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--ebpf", ebpf, "--ebpf-object"]).arg(crate::ebpf::object());
    command.args(["--workers", "2", "--admin", "off", "--agent-port", &place.port().to_string()]);
    // The load is one client.
    command.args([
        "--connections-max",
        "9500",
        "--client-connections-max",
        "9500",
        "--client-rate",
        "1000000",
    ]);
    for agent in place.agents {
        command.args(["--agents", &format!("{}/32", agent.ip())]);
    }
    if place.is_http2 {
        command.args(["--http2", "on"]);
    }
    if place.is_secure {
        command.args(["--listen", &listen.to_string()]);
        command.arg("--cert").arg(place.directory.join("cert.pem"));
        command.arg("--key").arg(place.directory.join("key.pem"));
    } else {
        command.args(["--listen-plain", &listen.to_string(), "--agent-tls", "off"]);
    }
    command
}

fn nginx(place: &Place, config: &str) -> Result<Command, String> {
    let file = write(place, "nginx.conf", config)?;
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(file).arg("-p").arg(place.directory);
    Ok(command)
}

/// The published recipe; its regexes are quoted, or nginx would not start, HTTP/2 is asked for as Debian's version
/// wants it, and TLS 1.3 to the agent is allowed, as later versions do by default.
fn nginx_recipe(place: &Place, listen: SocketAddr) -> String {
    let (scheme, secure) = if place.is_secure { ("https", " ssl http2") } else { ("http", "") };
    let folder = place.directory.display();
    let port = place.port();
    let forward = "proxy_http_version 1.1; proxy_ssl_verify off;
            proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
            proxy_connect_timeout 10s; proxy_read_timeout 300s; proxy_send_timeout 300s; proxy_buffering off;";
    format!(
        "{head}
        events {{ worker_connections 4096; }}
        http {{
          {temporary}
          proxy_ssl_protocols TLSv1.2 TLSv1.3;
          access_log {folder}/access.log;
          map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
          server {{
            listen {listen}{secure};
            {certificate}
            ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:SSL:10m; ssl_session_timeout 10m;
            client_max_body_size 1g;
            location /health {{ return 200 'DCV Proxy OK'; }}
            location ~ \"^/([0-9]{{1,3}}\\.[0-9]{{1,3}}\\.[0-9]{{1,3}}\\.[0-9]{{1,3}})/(.*)$\" {{
              proxy_pass {scheme}://$1:{port}/$2; {forward}
            }}
            location ~ \"^/([0-9]{{1,3}}\\.[0-9]{{1,3}}\\.[0-9]{{1,3}}\\.[0-9]{{1,3}})$\" {{
              proxy_pass {scheme}://$1:{port}/; {forward}
            }}
          }}
        }}",
        head = nginx_head(place),
        temporary = nginx_temporary(place),
        certificate = nginx_certificate(place),
    )
}

/// Agent connections are kept and their sessions resumed, the query stays, the agent is chosen by a map.
fn nginx_tuned(place: &Place, listen: SocketAddr) -> String {
    let (scheme, secure) = match (place.is_secure, place.is_http2) {
        (false, _) => ("http", ""),
        (true, false) => ("https", " ssl"),
        (true, true) => ("https", " ssl http2"),
    };
    let agents = || (0..).zip(place.agents);
    let choice = |(at, agent): (u8, SocketAddr)| {
        format!("\"~^/{}/\" agent_{at};", agent.ip().to_string().replace('.', "\\."))
    };
    let upstream = |(at, agent)| {
        format!("upstream agent_{at} {{ server {agent}; keepalive 256; keepalive_requests 1000000000; }}")
    };
    let choices = agents().map(choice).collect::<String>();
    let upstreams = agents().map(upstream).collect::<String>();
    format!(
        "{head}
        worker_rlimit_nofile 20000;
        events {{ worker_connections 19000; }}
        http {{
          {temporary}
          proxy_ssl_protocols TLSv1.2 TLSv1.3;
          access_log off; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000000;
          map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
          map $request_uri $agent {{ {choices} default ''; }}
          map $request_uri $rest {{ \"~^/[0-9.]+(?<tail>/.*)$\" $tail; default $request_uri; }}
          {upstreams}
          server {{
            listen {listen}{secure} reuseport;
            {certificate}
            ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:SSL:50m; ssl_session_tickets on; ssl_buffer_size 16k;
            client_max_body_size 1g;
            location = /health {{ return 200 'DCV Proxy OK'; }}
            location / {{
              if ($agent = '') {{ return 404; }}
              proxy_pass {scheme}://$agent$rest;
              proxy_http_version 1.1; proxy_ssl_verify off; proxy_ssl_session_reuse on;
              proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
              proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
              proxy_set_header X-Forwarded-Proto $scheme;
              proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
              proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;
              proxy_request_buffering off; proxy_read_timeout 1h; proxy_send_timeout 1h;
            }}
          }}
        }}",
        head = nginx_head(place),
        temporary = nginx_temporary(place),
        certificate = nginx_certificate(place),
    )
}

fn nginx_head(place: &Place) -> String {
    let folder = place.directory.display();
    format!("daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log stderr error;")
}

fn nginx_temporary(place: &Place) -> String {
    let folder = place.directory.display();
    let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    names.map(|name| format!("{name}_temp_path {folder}/{name};")).join(" ")
}

fn nginx_certificate(place: &Place) -> String {
    let folder = place.directory.display();
    if !place.is_secure {
        return String::new();
    }
    format!("ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;")
}

fn haproxy(place: &Place, listen: SocketAddr) -> Result<Command, String> {
    let bundle = format!("{}{}", place.identity.cert_pem, place.identity.key_pem);
    let bundle = write(place, "bundle.pem", &bundle)?;
    let (front, back) = if place.is_secure {
        let protocol = if place.is_http2 { "h2" } else { "http/1.1" };
        (format!("ssl crt {} alpn {protocol}", bundle.display()), "ssl verify none")
    } else {
        (String::new(), "")
    };
    let port = place.port();
    let config = format!(
        "global
            nbthread 2
            maxconn 9500
            maxpipes 100
         defaults
            maxconn 9500
            mode http
            option splice-auto
            option http-keep-alive
            http-reuse always
            timeout connect 5s
            timeout client 1h
            timeout server 1h
            timeout tunnel 1h
         frontend clients
            bind {listen} {front}
            http-request return status 200 content-type text/plain string OK if {{ path /health }}
            acl to_agent path_reg ^/[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+/
            http-request deny unless to_agent
            http-request set-var(txn.agent) path,field(2,/)
            http-request set-path %[path,regsub(^/[0-9.]+/,/)]
            option forwardfor
            default_backend agents
         backend agents
            http-request set-dst var(txn.agent)
            http-request set-dst-port int({port})
            server agent 0.0.0.0:0 {back}\n"
    );
    let file = write(place, "haproxy.cfg", &config)?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn write(place: &Place, name: &str, text: &str) -> Result<PathBuf, String> {
    let file = place.directory.join(name);
    fs::write(&file, text).map_err(|why| format!("{}: {why}", file.display()))?;
    Ok(file)
}
