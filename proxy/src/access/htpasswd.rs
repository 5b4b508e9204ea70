//! Names and password hashes of an htpasswd file, and the header that a browser shows a password in (RFC 7617). Pure, and
//! slow on purpose: a bcrypt hash takes tens of milliseconds to compare, so no worker may do it.

use std::collections::HashMap;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bcrypt::HashParts;
use zeroize::Zeroizing;

/// The highest cost that is taken: a comparison at it takes some 4 seconds.
const COST_MAX: u32 = 16;
/// Bytes of a password that bcrypt looks at: what follows makes it no other.
const PASSWORD_BYTES: usize = 72;
/// Bytes of an `Authorization` value that is looked at.
const CREDENTIALS_BYTES_MAX: usize = 1024;

/// An invalid line, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {says}")]
pub struct LineError {
    /// The line, from 1.
    pub line: usize,
    says: &'static str,
}

/// The users.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Users {
    hashes: HashMap<String, String>,
    /// What a name that is unknown is compared with, so that it takes as long as one that is not. And one whose own
    /// hash costs less.
    costliest: Option<(u32, String)>,
}

/// A name and a password, as a client shows them.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    /// The name.
    pub name: String,
    /// Overwritten when it is dropped.
    password: Zeroizing<Vec<u8>>,
}

impl FromStr for Users {
    type Err = LineError;

    /// Reads lines of `name:hash`, as Apache and nginx do: what follows a second colon is a comment; empty lines and
    /// those that start with `#` say nothing, nor do spaces around a line and a byte order mark.
    fn from_str(text: &str) -> Result<Self, LineError> {
        let mut users = Self::default();
        let mut cost = 0;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // Lines may end as on an old Mac too: what follows must not be taken for a comment.
        for (index, line) in text.lines().flat_map(|line| line.split('\r')).map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |says| LineError { line: index + 1, says };
            let (name, hash) =
                line.split_once(':').ok_or(wrong("write name:hash, as `htpasswd -B -n NAME` prints it"))?;
            let hash = hash.split(':').next().unwrap_or(hash).trim_end();
            let parts = bcrypt_parts(hash).map_err(wrong)?;
            if name.contains(char::REPLACEMENT_CHARACTER) {
                return Err(wrong("write the name in UTF-8, as browsers send it"));
            }
            if name.is_empty() || users.hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong("each line names one user, who has a line of their own"));
            }
            if parts.get_cost() > cost {
                cost = parts.get_cost();
                users.costliest = Some((cost, hash.to_owned()));
            }
        }
        Ok(users)
    }
}

fn bcrypt_parts(hash: &str) -> Result<HashParts, &'static str> {
    let is_bcrypt = ["$2y$", "$2b$", "$2a$"].iter().any(|version| hash.starts_with(version));
    let parts = HashParts::from_str(hash).ok().filter(|_| is_bcrypt);
    let parts = parts.ok_or("only bcrypt hashes are taken: make one with `htpasswd -B`")?;
    if (4..=COST_MAX).contains(&parts.get_cost()) {
        Ok(parts)
    } else {
        Err("a cost of 10 to 12 is meant (`htpasswd -B -C 12`), and no more than 16")
    }
}

impl Users {
    /// Whether there is a user of that name.
    pub fn has(&self, name: &str) -> bool {
        self.hashes.contains_key(name)
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether that name has that password. Takes as long for a name that is unknown.
    pub fn know(&self, credentials: &Credentials) -> bool {
        let Some((cost, costliest)) = &self.costliest else { return false };
        let matches = |hash: &str| bcrypt::verify(credentials.password.as_slice(), hash).unwrap_or(false);
        let Some(hash) = self.hashes.get(&credentials.name) else {
            matches(costliest);
            return false;
        };
        let is_cheap = HashParts::from_str(hash).is_ok_and(|parts| parts.get_cost() < *cost);
        if is_cheap {
            matches(costliest);
        }
        matches(hash)
    }
}

impl Credentials {
    /// The password, which is never to be written down.
    pub fn password(&self) -> &[u8] {
        &self.password
    }

    /// From the value of an `Authorization` header; none where it is not `Basic`, or malformed.
    pub fn from_header(value: &[u8]) -> Option<Self> {
        let (scheme, encoded) = value.split_at_checked(6).filter(|_| value.len() <= CREDENTIALS_BYTES_MAX)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let decoded = Zeroizing::new(BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?);
        let colon = memchr::memchr(b':', &decoded)?;
        let name = std::str::from_utf8(&decoded[..colon]).ok()?;
        let password = &decoded[colon + 1..];
        let password = &password[..password.len().min(PASSWORD_BYTES)];
        // RFC 7617 2. And bcrypt would read a password, NUL and the password again as the password.
        let is_text = !name.chars().any(char::is_control) && !password.iter().any(u8::is_ascii_control);
        let is_meant = !name.is_empty() && is_text;
        is_meant.then(|| Self { name: name.to_owned(), password: Zeroizing::new(password.to_vec()) })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lowest cost, so that the tests take milliseconds.
    fn line(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, 4).expect("a hash"))
    }

    fn shown(name: &str, password: &str) -> Credentials {
        let value = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
        Credentials::from_header(value.as_bytes()).expect("credentials")
    }

    #[test]
    fn a_name_is_known_by_its_own_password() {
        let text = format!("# staff\n\n{}{}", line("ann", "one:two"), line("b\u{f6}b", "three"));
        let users: Users = text.parse().expect("users");
        for (name, password, known) in [
            ("ann", "one:two", true),
            ("b\u{f6}b", "three", true),
            ("ann", "three", false),
            ("ann", "", false),
            ("carl", "one:two", false),
            ("# staff", "", false),
        ] {
            assert_eq!(users.know(&shown(name, password)), known, "{name} {password}");
        }
        assert!(!Users::default().know(&shown("ann", "one:two")));
        assert!(users.has("ann") && !users.has("carl"));
    }

    #[test]
    fn a_file_is_read_as_apache_and_nginx_read_it() {
        let [ann, bob] = [line("ann", "one"), line("bob", "two")].map(|line| line.trim_end().to_owned());
        for text in [
            format!("{ann}:Ann of sales:room 5\n{bob}:\n"),
            format!("\u{feff}{ann}\r\n\r\n# staff\r\n{bob}:Bob\r\n"),
            format!("  {ann}  \n \t\n\t# staff\n{bob} : Bob"),
            format!("{ann}:Ann\r{bob}\r"),
        ] {
            let users: Users = text.parse().expect(&text);
            for (name, password, known) in [("ann", "one", true), ("bob", "two", true), ("ann", "two", false)]
            {
                assert_eq!(users.know(&shown(name, password)), known, "{name} {password} of {text}");
            }
        }
    }

    #[test]
    fn a_hash_of_apache_is_read() {
        // Of `htpasswd -B -b -n -C 5 ann secret`.
        let text = "ann:$2y$05$vd86lDt7lsx56fj/eIHQZ.Bu32VhL922hcKhGMRMZSdgBsAX60PBG\n";
        assert!(text.parse::<Users>().is_ok_and(|users| users.know(&shown("ann", "secret"))));
    }

    #[test]
    fn what_is_no_line_of_a_name_and_a_bcrypt_hash_is_refused_with_its_number() {
        let good = line("ann", "one");
        for bad in [
            "ann",
            "carl:$apr1$x$y",
            "carl:$apr1$x$y:Carl",
            "c\u{fffd}rl:$2y$04$abcdefghijklmnopqrstuuBm3kX4BPnlYkZ0p9CXCTHoDR9NzdGC2",
            "carl:{SHA}abc",
            "carl:secret",
            ":$2y$04$abcdefghijklmnopqrstuuBm3kX4BPnlYkZ0p9CXCTHoDR9NzdGC2",
            "carl:$2y$04$short",
            "carl:$2y$31$abcdefghijklmnopqrstuuBm3kX4BPnlYkZ0p9CXCTHoDR9NzdGC2",
            &line("ann", "two"),
        ] {
            let error = format!("{good}{bad}").parse::<Users>().expect_err(bad);
            assert_eq!(error.line, 2, "{bad}");
            assert!(error.to_string().starts_with("line 2: "));
        }
    }

    #[test]
    fn a_header_that_shows_no_password_is_none() {
        for value in
            ["", "Basic", "Basic ", "Bearer YTpi", "Basic !!", "Basic YQ==", "Basic OmI=", "Basic CjpiCg=="]
        {
            assert_eq!(Credentials::from_header(value.as_bytes()), None, "{value}");
        }
        for password in ["a\0a", "a\n"] {
            let value = format!("Basic {}", BASE64_STANDARD.encode(format!("ann:{password}")));
            assert_eq!(Credentials::from_header(value.as_bytes()), None, "{password:?}");
        }
        assert_eq!(shown("ann", &"p".repeat(80)), shown("ann", &"p".repeat(72)), "bcrypt sees no difference");
        let long = format!("Basic {}", "YTpi".repeat(300));
        assert_eq!(Credentials::from_header(long.as_bytes()), None);
        assert_eq!(
            Credentials::from_header(b"bAsIc YTpiOmM=").map(|shown| shown.password().to_vec()),
            Some(b"b:c".to_vec())
        );
        assert!(!format!("{:?}", shown("ann", "secret")).contains("115"));
    }
}
