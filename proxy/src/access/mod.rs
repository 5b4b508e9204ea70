//! Which clients are admitted, and who answers a request: client networks and limits, PROXY headers, passwords, routes, the
//! policy, cookies of pools, and how each rejection is counted. Never dials an agent. Uses `agents` and what is below it.

pub mod admission;
pub(crate) mod htpasswd;
pub(crate) mod offenders;
pub(crate) mod passwords;
pub(crate) mod policy;
pub mod pool_cookie;
pub mod proxy_protocol;
pub(crate) mod rejections;
pub mod route;
