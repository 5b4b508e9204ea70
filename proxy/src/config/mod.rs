//! Flags, the configuration file and what they resolve to, with every limit by its name. Never binds, dials or reads anything
//! but configuration. Uses the folders whose limits it names; used by `worker` and `control` only.

mod file;
mod flags;
mod model;
mod renamed;
mod settings;
mod sources;
mod units;

pub use flags::{
    AccessLogFormat, AdminAt, AgentTls, ClientCert, Command, CommandLine, ControlFlags, DrainFlags, EbpfMode,
    EndFlags, Flags, IoBackend, LimitFlags, LogFormat, SessionFilter, SessionFlags, TlsMin, TopFlags,
};
pub use model::*;
pub use settings::{Resolved, Settings};
pub use sources::{CommandWords, ResolverUrl};
