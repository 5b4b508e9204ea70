//! The licences of everything that is built in, against those that the project's own can be combined with.

use std::process::Command;

use serde::Deserialize;
use spdx::{Expression, ParseMode};

/// What may be combined with Apache-2.0 and passed on without the source.
const ALLOWED: [&str; 11] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Packages of the lock file whose licence is none of those, a line each.
pub(crate) fn problems() -> Result<Vec<String>, String> {
    let asked = ["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"];
    let told = Command::new(env!("CARGO")).args(asked).current_dir(crate::root()).output();
    let told = told.map_err(|error| format!("cargo metadata: {error}"))?;
    if !told.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&told.stderr)));
    }
    let metadata: Metadata =
        serde_json::from_slice(&told.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    Ok(metadata.packages.iter().filter_map(problem).collect())
}

fn problem(package: &Package) -> Option<String> {
    let Package { name, version, license } = package;
    let license = license.as_deref().unwrap_or("none");
    let says = if is_allowed(license) { return None } else { "see xtask/src/licences.rs for those allowed" };
    Some(format!("Cargo.lock: {name} {version} is under {license}: {says}"))
}

/// Lax: `MIT/Apache-2.0` is an old way to write `MIT OR Apache-2.0`.
fn is_allowed(license: &str) -> bool {
    let expression = Expression::parse_mode(license, ParseMode::LAX);
    expression.is_ok_and(|expression| {
        expression.evaluate(|one| one.license.id().is_some_and(|id| ALLOWED.contains(&id.name)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_is_enough_and_all_of_several_are_needed() {
        for license in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR GPL-2.0) AND Unicode-3.0"] {
            assert!(is_allowed(license), "{license}");
        }
        for license in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "AGPL-3.0", "none", ""] {
            assert!(!is_allowed(license), "{license}");
        }
        let license = Some("GPL-3.0-only".to_owned());
        let package = Package { name: "a".to_owned(), version: "1.0.0".to_owned(), license };
        assert!(
            problem(&package)
                .is_some_and(|says| says.starts_with("Cargo.lock: a 1.0.0 is under GPL-3.0-only"))
        );
    }
}
