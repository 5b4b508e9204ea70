//! `cargo xtask demo`: two stand-in desktops behind the real proxy, on loopback addresses, to be looked at in a browser.
//! Nothing leaves the machine, and everything it started ends with it.
use harness::agent::{Agent, AgentConfig};
use nix::sys::signal::{Signal as KillSignal, kill};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

/// The desktops: an address of their own each, and a name.
const DESKTOPS: [(Ipv4Addr, &str); 2] =
    [(Ipv4Addr::new(127, 0, 0, 2), "aspen"), (Ipv4Addr::new(127, 0, 0, 3), "basalt")];
/// How long the proxy may take until it listens.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end; browsers keep their connections open, so it is not asked to wait for them.
const STOP: Duration = Duration::from_secs(2);

/// Two stand-in desktops behind the proxy, to be looked at in a browser
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the proxy listens, on 127.0.0.1
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Where the desktops listen, on 127.0.0.2 and 127.0.0.3
    #[arg(long, default_value_t = 8443)]
    agent_port: u16,
    /// Where the admin pages are, on 127.0.0.1
    #[arg(long, default_value_t = 9443)]
    admin_port: u16,
}

/// Builds the proxy, starts everything and waits for Ctrl-C, SIGTERM or the proxy's end.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    // A build takes minutes: what would fail behind it is tried first.
    let [proxy, admin] =
        [args.port, args.admin_port].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let agents = DESKTOPS.map(|(ip, _)| (SocketAddr::from((ip, args.agent_port)), "--agent-port"));
    for (address, flag) in [(proxy, "--port"), (admin, "--admin-port")].into_iter().chain(agents) {
        drop(std::net::TcpListener::bind(address).map_err(|error| unusable(address, flag, &error))?);
    }
    println!("Building the proxy as users get it; the first time takes minutes.");
    let proxy = build()?;
    println!("Starting the proxy and two stand-in desktops.");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| format!("no tokio runtime: {error}"))?.block_on(show(args, &proxy))
}

async fn show(args: &Args, proxy: &Path) -> Result<(), String> {
    let mut stop = Stop::new()?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    // Asked before the proxy is: its answer would otherwise be another program's.
    drop(TcpListener::bind(listen).await.map_err(|error| unusable(listen, "--port", &error))?);
    let _agents = agents(args.agent_port).await?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, args.admin_port));
    let mut proxy = start(proxy, listen, admin, args.agent_port)?;
    let ended = tokio::select! {
        ended = serve(&mut proxy, listen, admin) => Some(ended),
        () = stop.asked() => None,
    };
    match ended {
        Some(ended) => ended,
        None => end(proxy).await,
    }
}

/// The release build, as users get it.
fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = crate::root();
    let mut build = std::process::Command::new(cargo);
    let build = build.args(["build", "--release", "--package", "dcv-splice"]).current_dir(root).status();
    match build {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("the proxy does not build: cargo ended with {status}")),
        Err(error) => return Err(format!("cargo does not start: {error}")),
    }
    Ok(crate::target().join("release/dcv-splice"))
}

async fn agents(port: u16) -> Result<Vec<Agent>, String> {
    let mut agents = Vec::new();
    for (ip, name) in DESKTOPS {
        let listen = SocketAddr::from((ip, port));
        let config = AgentConfig { listen, name: name.into(), ..AgentConfig::default() };
        agents.push(Agent::start(config).await.map_err(|error| unusable(listen, "--agent-port", &error))?);
    }
    Ok(agents)
}

fn unusable(address: SocketAddr, option: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!("{address} is taken by another program: end it, or choose another {option}")
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}

fn start(proxy: &Path, listen: SocketAddr, admin: SocketAddr, agent_port: u16) -> Result<Child, String> {
    let mut command = Command::new(proxy);
    command.arg("--listen").arg(listen.to_string()).arg("--agent-port").arg(agent_port.to_string());
    for (ip, _) in DESKTOPS {
        command.arg("--agents").arg(format!("{ip}/32"));
    }
    command.arg("--default-agent").arg(DESKTOPS[0].0.to_string()).arg("--admin").arg(admin.to_string());
    // A group of its own: Ctrl-C is for this program, which then ends the proxy.
    command.process_group(0).kill_on_drop(true);
    command.spawn().map_err(|error| format!("{} does not start: {error}", proxy.display()))
}

/// Says where to look once the proxy listens; ends when the proxy does, which is an error here.
async fn serve(proxy: &mut Child, listen: SocketAddr, admin: SocketAddr) -> Result<(), String> {
    tokio::select! {
        ended = proxy.wait() => return died(ended),
        ready = timeout(START, listening(listen)) => {
            ready.map_err(|_| format!("the proxy does not listen on {listen} after {} s", START.as_secs()))?;
        }
    }
    announce(listen, admin);
    died(proxy.wait().await)
}

fn died(ended: std::io::Result<ExitStatus>) -> Result<(), String> {
    match ended {
        Ok(status) => Err(format!("the proxy ended by itself: {status}")),
        Err(error) => Err(format!("the proxy cannot be waited for: {error}")),
    }
}

async fn listening(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
}

fn announce(listen: SocketAddr, admin: SocketAddr) {
    println!("\nTwo stand-in desktops behind the proxy:");
    for (ip, name) in DESKTOPS {
        println!("  {name:<8} https://{listen}/{}/", IpAddr::from(ip));
    }
    println!("  status   http://{admin}/");
    println!("The browser warns about the certificate: that is expected, the proxy has just made it itself.");
    println!("If this host is not yours to look at, from the one with the browser:");
    println!("  ssh -L {0}:{listen} -L {1}:{admin} THIS-HOST", listen.port(), admin.port());
    println!("Ctrl-C ends the proxy and both desktops.\n");
}

/// SIGTERM, and SIGKILL for a proxy that does not heed it.
async fn end(mut proxy: Child) -> Result<(), String> {
    println!("\nEnding the proxy: sessions that are open are cut after {} s.", STOP.as_secs());
    if let Some(id) = proxy.id().and_then(|id| id.try_into().ok()) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(id), KillSignal::SIGTERM);
    }
    if timeout(STOP, proxy.wait()).await.is_err() {
        proxy.kill().await.map_err(|error| format!("the proxy does not end: {error}"))?;
    }
    println!("The proxy and both desktops have ended.");
    Ok(())
}

/// What asks this program to stop.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, String> {
        let on = |kind| signal(kind).map_err(|error| format!("no signals: {error}"));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
