//! The cookie by which a browser comes back to its agent of a pool: the agent's name, signed, so that nobody can choose one. Reads
//! no file but the key's.

use std::fmt;
use std::path::Path;

use cookie::{Cookie, CookieJar, Key, SameSite};

use crate::http::message::{self, Header};
use crate::os::files::Files;

/// Its name; its path is the pool's.
const NAME: &str = "dcv-splice-pool";
/// Bytes of a key.
const KEY_BYTES: usize = 64;
/// How long a browser keeps it.
const AGE: cookie::time::Duration = cookie::time::Duration::days(30);

/// Signs the cookies. A clone has the same key.
#[derive(Clone)]
pub struct PoolCookies(Key);

impl fmt::Debug for PoolCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolCookies").finish_non_exhaustive()
    }
}

impl PoolCookies {
    /// With a key that nobody else has.
    pub fn new() -> Self {
        Self(Key::generate())
    }

    /// With the key of a file. An error in words where that can't be one.
    pub fn reading(file: &Path, files: &dyn Files) -> Result<Self, String> {
        let text = files.read(file).map_err(|error| error.to_string())?;
        let key = text.get(..KEY_BYTES).and_then(|key| Key::try_from(key).ok());
        key.map(Self).ok_or_else(|| {
            format!("has fewer than {KEY_BYTES} bytes: `openssl rand -hex {KEY_BYTES}` makes a key")
        })
    }

    /// The agent that the cookie of a request names, where it was signed here.
    pub fn agent(&self, headers: &[Header<'_>], pool: &str) -> Option<String> {
        let texts = message::values(headers, "cookie").filter_map(|value| std::str::from_utf8(value).ok());
        let cookies = texts.flat_map(|text| Cookie::split_parse(text.to_owned()).filter_map(Result::ok));
        let jar = CookieJar::new();
        let mut named = cookies.filter(|cookie| cookie.name() == NAME);
        let signed = named.find_map(|cookie| jar.signed(&self.0).verify(cookie))?;
        let (of_pool, agent) = signed.value().split_once('/')?;
        (of_pool == pool).then(|| agent.to_owned())
    }

    /// The header line that gives a browser its cookie.
    pub fn header(&self, pool: &str, agent: &str, secure: bool) -> String {
        let cookie = Cookie::build((NAME, format!("{pool}/{agent}")))
            .path(format!("/pool/{pool}"))
            .max_age(AGE)
            .http_only(true)
            .same_site(SameSite::Lax)
            .secure(secure);
        let mut jar = CookieJar::new();
        jar.signed_mut(&self.0).add(cookie);
        let cookie = jar.get(NAME).map(ToString::to_string);
        format!("Set-Cookie: {}", cookie.unwrap_or_default())
    }
}

impl Default for PoolCookies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(cookies: &PoolCookies, pool: &str, line: &str) -> Option<String> {
        let header = Header { name: "Cookie", value: line.as_bytes() };
        cookies.agent(&[header], pool)
    }

    #[test]
    fn a_cookie_names_an_agent_of_its_pool_to_who_has_signed_it() {
        let cookies = PoolCookies::new();
        let header = cookies.header("cad", "gpu-07", true);
        for part in [
            "Set-Cookie: dcv-splice-pool=",
            "HttpOnly",
            "SameSite=Lax",
            "Secure",
            "Path=/pool/cad",
            "Max-Age=",
        ] {
            assert!(header.contains(part), "{part} in {header}");
        }
        assert!(!cookies.header("cad", "gpu-07", false).contains("Secure"));
        let line = header.strip_prefix("Set-Cookie: ").and_then(|it| it.split(';').next()).expect("a cookie");
        let named = Some("gpu-07".to_owned());
        assert_eq!(agent(&cookies, "cad", line), named);
        assert_eq!(agent(&cookies, "cad", &format!("dcv-splice-pool=cad/gpu-08; a=b; {line}")), named);
        assert_eq!(agent(&cookies, "other", line), None);
        assert_eq!(agent(&PoolCookies::new(), "cad", line), None);
        assert_eq!(agent(&cookies, "cad", &line.replace("gpu-07", "gpu-08")), None);
        for line in ["", "dcv-splice-pool=", "dcv-splice-pool=cad/gpu-07", "dcv-splice-pool=\u{e9}", ";;;=;"]
        {
            assert_eq!(agent(&cookies, "cad", line), None, "{line}");
        }
    }
}
