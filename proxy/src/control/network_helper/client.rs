//! The serving process's side of the network helper. Whatever the helper has become, nothing gets in but reports of a known
//! form and a bounded length.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::messages::{self, Order, Report};

/// Orders that wait to be sent. The helper reads all the time; one that does not is given up.
const ORDERS_MAX: usize = 1024;
/// Reports that wait to be looked at; the helper waits for them.
const REPORTS_MAX: usize = 16;

/// The network helper that runs.
#[derive(Debug)]
pub(in crate::control) struct NetworkHelper {
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<io::Result<Report>>,
    /// They end with this.
    _tasks: JoinSet<()>,
}

impl NetworkHelper {
    /// The one at the other end of the socket.
    pub(in crate::control) fn at(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let (from, to) = UnixStream::from_std(socket)?.into_split();
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (reporting, reports) = mpsc::channel(REPORTS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(write(to, ordered, reporting.clone()));
        tasks.spawn(read(from, reporting));
        Ok(Self { orders, reports, _tasks: tasks })
    }

    /// Gives it an order. Fails where it has not taken those before for too long.
    pub(in crate::control) fn order(&self, order: Order) -> io::Result<()> {
        self.orders.try_send(order).map_err(|_| io::Error::other("it takes no orders"))
    }

    /// The same of an order that may be left out: where many wait, it is, and that is no failure of the helper's. True where it
    /// is given.
    pub(in crate::control) fn try_order(&self, order: Order) -> bool {
        self.orders.capacity() > ORDERS_MAX / 2 && self.orders.try_send(order).is_ok()
    }

    /// The next report; an error once it has ended. A wait that is given up loses nothing.
    pub(in crate::control) async fn report(&mut self) -> io::Result<Report> {
        self.reports.recv().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut orders: mpsc::Receiver<Order>,
    failed: mpsc::Sender<io::Result<Report>>,
) {
    while let Some(order) = orders.recv().await {
        let written = match messages::line(&order) {
            Ok(line) => to.write_all(&line).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            // Nobody listens any more where it was given up.
            let _ = failed.send(Err(error)).await;
            return;
        }
    }
}

async fn read(from: OwnedReadHalf, reports: mpsc::Sender<io::Result<Report>>) {
    let mut from = BufReader::new(from);
    loop {
        let report = messages::next(&mut from).await;
        let report = report.and_then(|report| report.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        let is_last = report.is_err();
        if reports.send(report).await.is_err() || is_last {
            return;
        }
    }
}
