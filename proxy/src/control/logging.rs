//! The program's own log: which events are written, and how; and the access log beside it. Never waits for the output.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::LogFormat;
use crate::os::log::{Log, LogWriters, Target};

/// The running logs.
pub(super) struct Logging {
    lines: Log,
    access: Log,
    filter: LogFilter,
}

/// Changes which events are written. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(reload::Handle<Targets, Registry>);

/// What the `h2` crate would say has clients' header lines in it, and no bound.
fn bounded(filter: &Targets) -> Targets {
    filter.clone().with_target("h2", LevelFilter::OFF)
}

impl LogFilter {
    /// From now on `filter` holds.
    pub(super) fn set(&self, filter: &Targets) {
        if let Err(error) = self.0.reload(bounded(filter)) {
            tracing::error!(reason = &*error.to_string(), "--log can't be changed");
        }
    }
}

impl Logging {
    /// Writes events to the standard error output from now on, panics among them.
    pub(super) fn start(logs: &LogWriters, filter: &Targets, format: LogFormat) -> io::Result<Self> {
        let log = logs.start(Target::standard(io::stderr())?);
        let lines: &'static Log = Box::leak(Box::new(log.clone()));
        let layer = fmt::layer().with_ansi(false).with_writer(move || lines);
        let layer = match format {
            LogFormat::Text => layer.with_target(false).boxed(),
            LogFormat::Json => {
                layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
            }
        };
        let (filter, handle) = reload::Layer::new(bounded(filter));
        tracing_subscriber::registry().with(layer.with_filter(filter)).init();
        // Or it would be written by whoever panics, to an output that may be blocked.
        std::panic::set_hook(Box::new(|panic| tracing::error!(reason = &*panic.to_string(), "panic")));
        Ok(Self { lines: log, access: logs.start(Target::Off), filter: LogFilter(handle) })
    }

    /// Where its lines go.
    pub(super) fn lines(&self) -> Log {
        self.lines.clone()
    }

    /// The access log, which goes nowhere yet.
    pub(super) fn access(&self) -> Log {
        self.access.clone()
    }

    /// The handle that changes the filter.
    pub(super) fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}
