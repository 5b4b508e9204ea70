//! Flags, the configuration file and what they resolve to, with every limit by its name. Never binds, dials or reads anything
//! but configuration. Uses the folders whose limits it names; used by `worker` and `control` only.

mod choices;
mod file;
mod flags;
mod model;
mod renamed;
mod settings;
mod sources;
mod units;

pub use choices::{
    AccessLogFormat, AgentTls, ClientCert, EbpfMode, IoBackend, LogFormat, SessionTls, TlsMin,
};
pub use flags::{
    AdminAt, Command, CommandLine, ControlFlags, DrainFlags, EndFlags, Flags, LimitFlags, SessionFilter,
    SessionFlags, TopFlags,
};
pub use model::*;
pub use settings::{Resolved, Settings};
pub use sources::{CommandWords, ResolverUrl};
