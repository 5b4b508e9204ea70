//! The program's own log: which events are written, and how. Never waits for the output, which `os::log` writes from a
//! thread of its own.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::LogFormat;
use crate::os::log::{Finish, Log, Target};

/// The running log. Ends, with its last lines, when it is dropped.
pub(super) struct Logging {
    lines: Finish,
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
    pub(super) fn start(filter: &Targets, format: LogFormat) -> io::Result<Self> {
        let finish = Finish(Log::to(Target::standard(io::stderr())?)?);
        let lines: &'static Log = Box::leak(Box::new(finish.0.clone()));
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
        Ok(Self { lines: finish, filter: LogFilter(handle) })
    }

    /// Where its lines go.
    pub(super) fn lines(&self) -> Log {
        self.lines.0.clone()
    }

    /// The handle that changes the filter.
    pub(super) fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}
