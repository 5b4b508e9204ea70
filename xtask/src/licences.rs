//! The licences of everything that is built in, against those that the project's own can be combined with, and what a
//! package has to say of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
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

/// How names of files begin that hold a licence, or what a licence wants to be passed on.
const TEXTS: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

impl Package {
    /// What runs in the compiler is not part of the program.
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

/// `dev`, `build`, or nothing for what is linked.
#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// Packages of the lock file whose licence is none of those, a line each.
pub(crate) fn problems() -> Result<Vec<String>, String> {
    Ok(metadata()?.packages.iter().filter_map(problem).collect())
}

fn metadata() -> Result<Metadata, String> {
    let asked = ["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"];
    let told = Command::new(env!("CARGO")).args(asked).current_dir(crate::root()).output();
    let told = told.map_err(|error| format!("cargo metadata: {error}"))?;
    if !told.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&told.stderr)));
    }
    serde_json::from_slice(&told.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

/// What the program of this package is linked with: each crate with its licence and the texts that its source has; a
/// text that several have is there once.
pub(crate) fn notice(program: &str) -> Result<String, String> {
    let metadata = metadata()?;
    let linked = linked(&metadata, program);
    let mut crates = Vec::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked {
        let name = format!("{} {}", package.name, package.version);
        let found = package_texts(package)?;
        let license = package.license.as_deref().unwrap_or("see its text");
        let without = if found.is_empty() { " (its source has no text of it)" } else { "" };
        crates.push(format!("{name}: {license}{without}\n"));
        for text in found {
            let users = texts.entry(text).or_default();
            if users.last() != Some(&name) {
                users.push(name.clone());
            }
        }
    }
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|(_, one), (_, other)| one.cmp(other));
    let texts: Vec<_> = texts
        .into_iter()
        .map(|(text, users)| format!("\n{}\n{}:\n\n{text}\n", "=".repeat(80), users.join(", ")))
        .collect();
    Ok(format!("{program} is linked with these crates:\n\n{}{}", crates.concat(), texts.concat()))
}

/// By name and version, without the project's own.
fn linked<'a>(metadata: &'a Metadata, program: &str) -> Vec<&'a Package> {
    let packages: HashMap<_, _> = metadata.packages.iter().map(|it| (it.id.as_str(), it)).collect();
    let nodes: HashMap<_, _> = metadata.resolve.nodes.iter().map(|it| (it.id.as_str(), it)).collect();
    let root = metadata.packages.iter().find(|package| package.name == program);
    let (mut seen, mut left) = (BTreeSet::new(), Vec::from_iter(root.map(|root| root.id.as_str())));
    while let Some(id) = left.pop() {
        let is_macro = packages.get(id).is_none_or(|package| package.is_macro());
        if is_macro || !seen.insert(id) {
            continue;
        }
        let deps = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let is_linked = |dep: &&Dependency| dep.dep_kinds.iter().any(|it| it.kind.is_none());
        left.extend(deps.filter(is_linked).map(|dep| dep.pkg.as_str()));
    }
    let mut linked: Vec<_> = seen.iter().filter_map(|id| packages.get(id).copied()).collect();
    linked.retain(|package| package.name != program);
    linked.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    linked
}

/// The texts beside its manifest, and of sources of others that lie one folder below.
fn package_texts(package: &Package) -> Result<Vec<String>, String> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let mut folders = vec![folder.to_owned()];
    folders.extend(entries(folder)?.into_iter().filter(|path| path.is_dir()));
    let mut found = BTreeSet::new();
    for folder in folders {
        for file in entries(&folder)?.into_iter().filter(|path| path.is_file() && is_text(path)) {
            let text = fs::read(&file).map_err(|why| format!("{}: {why}", file.display()))?;
            found.insert(String::from_utf8_lossy(&text).trim().to_owned());
        }
    }
    Ok(found.into_iter().filter(|text| !text.is_empty()).collect())
}

fn is_text(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    let is_source = path.extension().is_some_and(|extension| extension == "rs");
    TEXTS.iter().any(|text| name.starts_with(text)) && !is_source
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|why| format!("{}: {why}", folder.display()))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

fn problem(package: &Package) -> Option<String> {
    let Package { name, version, license, .. } = package;
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
        let package = Package {
            id: "a".to_owned(),
            name: "a".to_owned(),
            version: "1.0.0".to_owned(),
            license,
            manifest_path: PathBuf::new(),
            targets: Vec::new(),
        };
        assert!(
            problem(&package)
                .is_some_and(|says| says.starts_with("Cargo.lock: a 1.0.0 is under GPL-3.0-only"))
        );
    }

    #[test]
    fn the_notice_names_what_is_linked_and_nothing_else() {
        let notice = notice("dcv-splice").expect("a notice");
        let (crates, texts) = notice.split_once(&"=".repeat(80)).expect("texts");
        for linked in ["rustls 0.", "tokio 1.", "aws-lc-sys 0.", "io-uring 0."] {
            assert!(crates.contains(&format!("\n{linked}")), "{linked} is not in\n{crates}");
        }
        for other in ["criterion", "tempfile", "clap_derive", "cmake", "cc", "dcv-splice"] {
            assert!(!crates.contains(&format!("\n{other} ")), "{other} is in\n{crates}");
        }
        assert!(texts.contains("Permission is hereby granted") && texts.contains("TERMS AND CONDITIONS"));
        let named = crates.lines().filter(|line| line.contains(": "));
        let without: Vec<_> = named.filter(|line| line.ends_with("no text of it)")).collect();
        assert!(without.len() < 10, "{without:#?}");
    }
}
