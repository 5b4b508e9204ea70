//! The order of the folders: imports lead downwards, never in a circle, and each folder says in its `mod.rs` what it is.
//! Test code may import what it likes.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

/// Folders of the proxy, each of which may import from those before it.
const ORDER: [&str; 12] = [
    "os",
    "runtime",
    "tls",
    "observe",
    "transport",
    "http",
    "agents",
    "access",
    "session",
    "config",
    "worker",
    "control",
];
const ORDERED: &str = "proxy/src/";
/// The roots of crates whose files are a tree of folders.
const CRATES: [&str; 3] = [ORDERED, "xtask/src/", "tests/src/"];

/// A file as a path of modules below its crate; an index (`mod.rs`, `lib.rs`, `main.rs`) is its folder.
type Module = Vec<String>;

/// Which file imports from which.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

pub(super) fn problems(paths: &[String], read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for root in CRATES {
        let files: BTreeMap<Module, String> =
            paths.iter().filter_map(|path| Some((module(path.strip_prefix(root)?)?, read(path)?))).collect();
        let modules = files.keys().cloned().collect();
        let mut imports: Imports =
            files.iter().map(|(own, text)| (own.clone(), imported(own, text, &modules))).collect();
        if root != ORDERED {
            // Where folders have no index, a file and those of its folder are one.
            for (own, all) in &mut imports {
                all.retain(|to| !own.starts_with(to));
            }
        }
        problems.extend(
            circles(&imports).into_iter().map(|circle| format!("{root}: a circle of imports: {circle}")),
        );
        if root == ORDERED {
            problems.extend(upward(&imports));
            problems.extend(without_note(&files));
        }
    }
    problems
}

fn module(path: &str) -> Option<Module> {
    let path = path.strip_suffix(".rs")?;
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if matches!(module.last()?.as_str(), "mod" | "lib" | "main") {
        module.pop();
    }
    Some(module)
}

fn imported(own: &Module, text: &str, modules: &BTreeSet<Module>) -> BTreeSet<Module> {
    let mut seen = Paths { modules, own, found: BTreeSet::new() };
    // What does not parse is another rule's problem.
    if let Ok(file) = syn::parse_file(text) {
        seen.visit_file(&file);
    }
    seen.found.remove(own);
    // The root declares all modules, and is imported from only by what is no part of the order.
    seen.found.remove(&Module::new());
    seen.found
}

struct Paths<'a> {
    modules: &'a BTreeSet<Module>,
    own: &'a Module,
    found: BTreeSet<Module>,
}

impl Paths<'_> {
    fn note(&mut self, path: &[String]) {
        let mut full = match path.first().map(String::as_str) {
            Some("crate") => Module::new(),
            Some("super") => self.own[..self.own.len().saturating_sub(1)].to_vec(),
            Some("self") => self.own.clone(),
            // The index of a folder names its own files.
            Some(name) if self.modules.contains(&[&self.own[..], &[name.to_owned()]].concat()) => {
                let mut full = self.own.clone();
                full.push(name.to_owned());
                full
            }
            _ => return,
        };
        for name in &path[1..] {
            if name == "super" {
                full.pop();
            } else {
                full.push(name.clone());
            }
        }
        while !self.modules.contains(&full) && !full.is_empty() {
            full.pop();
        }
        self.found.insert(full);
    }

    fn note_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                self.note_tree(&[before, &[path.ident.to_string()]].concat(), &path.tree);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree)),
            syn::UseTree::Name(name) => self.note(&[before, &[name.ident.to_string()]].concat()),
            syn::UseTree::Rename(name) => self.note(&[before, &[name.ident.to_string()]].concat()),
            syn::UseTree::Glob(_) => self.note(before),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| attribute.path().is_ident("cfg");
        if !item.attrs.iter().any(is_test) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(super)` imports nothing.
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if matches!(names[0].as_str(), "crate" | "super") {
            self.note(&names);
        }
        visit::visit_path(self, path);
    }
}

/// The circles between files, each once.
fn circles(imports: &Imports) -> Vec<String> {
    let mut circles = BTreeSet::new();
    for start in imports.keys() {
        // The shortest way back, by breadth.
        let mut ways = vec![vec![start]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut next = Vec::new();
            for way in ways {
                for to in way.last().and_then(|last| imports.get(*last)).into_iter().flatten() {
                    if to == start {
                        let mut names: Vec<_> = way.iter().map(|module| module.join("::")).collect();
                        names.sort();
                        circles.insert(names.join(", "));
                    } else if seen.insert(to) {
                        next.push([&way[..], &[to]].concat());
                    }
                }
            }
            ways = next;
        }
    }
    circles.into_iter().collect()
}

fn upward(imports: &Imports) -> Vec<String> {
    let place =
        |module: &Module| ORDER.iter().position(|folder| module.first().is_some_and(|it| it == folder));
    let mut problems = Vec::new();
    for (from, all) in imports.iter().filter(|(from, _)| !from.is_empty()) {
        let Some(own) = place(from) else {
            problems.push(format!(
                "{ORDERED}{}: is in no folder of ORDER in xtask/src/tidy/layout.rs",
                from.join("/")
            ));
            continue;
        };
        let is_above = |to: &&Module| place(to).is_some_and(|place| place > own);
        problems.extend(all.iter().filter(is_above).map(|to| {
            format!("{ORDERED}{}.rs: imports {}, which stands above it", from.join("/"), to.join("::"))
        }));
    }
    problems
}

/// Folders whose index does not say what they are, never do and may use.
fn without_note(files: &BTreeMap<Module, String>) -> Vec<String> {
    let folders: BTreeSet<_> =
        files.keys().filter(|module| module.len() > 1).map(|it| &it[..it.len() - 1]).collect();
    let has_note = |folder: &[String]| {
        files.get(folder).is_some_and(|text| {
            let note = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>();
            (2..=6).contains(&note.len()) && note.iter().any(|line| line.contains("Use"))
        })
    };
    let bare = folders.into_iter().filter(|folder| !has_note(folder));
    bare.map(|folder| {
        format!(
            "{ORDERED}{}: its mod.rs says in 2 to 6 lines what it is, what it never does and which folders it uses",
            folder.join("/")
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: &str = "//! A folder. Does nothing.\n//! Uses none.\n";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let paths: Vec<_> = files.iter().map(|(path, _)| (*path).to_owned()).collect();
        problems(&paths, |path| {
            let (_, text) = files.iter().find(|(name, _)| *name == path)?;
            Some(if path.ends_with("mod.rs") { format!("{NOTE}{text}") } else { (*text).to_owned() })
        })
    }

    #[test]
    fn imports_lead_downwards() {
        let up =
            ["use crate::worker::a::B;", "fn f() { crate::worker::a::f(); }", "use crate::{worker, os};"];
        for text in up {
            let files = [
                ("proxy/src/tls/mod.rs", text),
                ("proxy/src/worker/mod.rs", ""),
                ("proxy/src/worker/a.rs", ""),
            ];
            assert_eq!(found(&files).len(), 1, "{text}");
        }
        let files = [
            ("proxy/src/worker/mod.rs", "pub mod a;"),
            (
                "proxy/src/worker/a.rs",
                "use crate::tls::A;\n#[cfg(test)] mod tests { use crate::control::B; }",
            ),
            ("proxy/src/tls/mod.rs", ""),
            ("proxy/src/control/mod.rs", ""),
        ];
        assert_eq!(found(&files), [""; 0]);
    }

    #[test]
    fn a_circle_is_found_however_long_and_in_every_crate() {
        let files = [
            ("xtask/src/main.rs", "mod a; mod b; mod c;"),
            ("xtask/src/a.rs", "use crate::b::B;"),
            ("xtask/src/b.rs", "use super::c::{self, C};"),
            ("xtask/src/c.rs", "fn f() -> crate::a::A {}"),
        ];
        assert_eq!(found(&files), ["xtask/src/: a circle of imports: a, b, c"]);
        let index =
            [("proxy/src/tls/mod.rs", "mod a; pub use a::A;"), ("proxy/src/tls/a.rs", "use super::B;")];
        assert_eq!(found(&index), ["proxy/src/: a circle of imports: tls, tls::a"]);
    }

    #[test]
    fn a_folder_says_what_it_is() {
        let files = [("proxy/src/http/mod.rs", ""), ("proxy/src/http/h1/head.rs", "")];
        assert!(found(&files)[0].contains("proxy/src/http/h1: its mod.rs"));
        assert!(found(&[("proxy/src/stray.rs", "")])[0].contains("in no folder"));
    }
}
