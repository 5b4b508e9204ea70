//! Which clients are admitted, and who answers a request: client networks and limits, PROXY headers, passwords, routes, the
//! policy, and how each rejection is counted. Never dials an agent. Uses `http` and what is below it.

pub mod admission;
pub mod htpasswd;
pub mod passwords;
pub mod policy;
pub mod proxy_protocol;
pub mod rejections;
pub mod route;
