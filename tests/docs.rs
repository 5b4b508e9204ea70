//! The documents are true: each link between them leads somewhere, and each flag that they name exists.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{proxy, reference};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn documents() -> Vec<PathBuf> {
    let folders = [Path::new(ROOT).to_owned(), Path::new(ROOT).join("docs")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    let documents: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    assert!(documents.len() >= 7, "{documents:?}");
    documents
}

/// What stands in round brackets behind square ones.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let keep = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|heading| heading.to_lowercase().chars().filter(keep).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn each_link_leads_somewhere() {
    let mut dead = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).filter(|link| !link.starts_with("http")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let has_anchor = || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            if !target.exists() || (!anchor.is_empty() && !has_anchor()) {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert_eq!(dead, [""; 0]);
}

/// Flags of this program, and of others that the documents name.
#[test]
fn each_flag_that_a_document_names_exists() {
    let output = proxy::command(&["--help"]).output().unwrap();
    let known = String::from_utf8(output.stdout).unwrap();
    assert!(known.contains("--agents"), "{known}");
    let is_known =
        |flag: &str| known.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|word| word == flag);
    let mut unknown = BTreeSet::new();
    for name in ["README.md", "SECURITY.md", "docs/configuration.md", "docs/operations.md", "CONTRIBUTING.md"]
    {
        let text = fs::read_to_string(Path::new(ROOT).join(name)).unwrap();
        // Code spans that begin with a flag are this program's.
        for span in text.split('`').skip(1).step_by(2).filter(|span| span.starts_with("--")) {
            let flag = span.split(|c: char| !(c.is_alphanumeric() || c == '-')).next().unwrap();
            if !is_known(flag) && !OF_OTHERS.contains(&flag) {
                unknown.insert(format!("{name}: {flag}"));
            }
        }
    }
    assert_eq!(unknown, BTreeSet::new());
}

#[test]
fn the_tables_of_the_flags_are_those_that_the_flags_make() {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/configuration.md")).unwrap();
    let made = reference::with_tables(&text).expect("the place of the tables");
    assert!(text == made, "run `cargo xtask docs`");
}

/// Files of the source that a document names in a code span are there.
#[test]
fn each_source_file_that_a_document_names_exists() {
    let listed = Command::new("git").args(["-C", ROOT, "ls-files"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut absent = BTreeSet::new();
    for document in documents().iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(document).unwrap();
        let is_source =
            |span: &&str| Path::new(span).extension().is_some_and(|end| end == "rs") && !span.contains(' ');
        for span in text.split('`').skip(1).step_by(2).filter(is_source) {
            if !listed.lines().any(|file| format!("/{file}").ends_with(&format!("/{span}"))) {
                absent.insert(format!("{}: {span}", document.display()));
            }
        }
    }
    assert_eq!(absent, BTreeSet::new());
}

/// Flags of the repository's own commands, of cargo-fuzz, certbot and docker.
const OF_OTHERS: [&str; 11] = [
    "--deploy-hook",
    "--health",
    "--name",
    "--no-install",
    "--owner",
    "--sanitizer",
    "--ssh-user",
    "--sudo",
    "--time",
    "--type",
    "--upgrade",
];
