//! Who may come and ask, and for which agent: client networks and limits, PROXY headers, passwords, routes, and how each
//! rejection is counted. Never dials an agent. Uses `http` and what is below it.

pub mod admission;
pub mod htpasswd;
pub mod passwords;
pub mod proxy_protocol;
pub mod rejections;
pub mod route;
