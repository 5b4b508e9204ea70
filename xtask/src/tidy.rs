//! `cargo xtask tidy`: the repository's rules, each a function from one file to its problems.
//! What rustfmt and clippy already check is absent here. A rule reads tokens or syntax rather than text,
//! so that a comment or a string may name what the code must not.

mod layout;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::fs;
use std::process::Command;
use std::str::FromStr;
use syn::visit::{self, Visit};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const DOC_LINES_MAX: usize = 8;

/// The modules that touch no socket, clock or disk, and what would betray them.
const PURE: [&str; 8] = [
    "proxy/src/access/htpasswd",
    "proxy/src/access/proxy_protocol",
    "proxy/src/access/route",
    "proxy/src/http/h1/body",
    "proxy/src/http/h1/head",
    "proxy/src/http/local_response",
    "proxy/src/http/rewrite",
    "proxy/src/runtime/scheduler",
];
const IMPURE: [&str; 11] = [
    "Instant",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "fs",
    "libc",
    "socket2",
    "tokio",
    "io_uring",
];

/// In two pieces each, or this file would break its own rule.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
const HOMES: [&str; 2] = [concat!("/ho", "me/"), concat!("/ro", "ot/")];
const UNFINISHED: [&str; 3] = ["dbg", "todo", "unimplemented"];

/// Files kept byte for byte as others made them.
const AS_RECEIVED: [&str; 4] = ["LICENSE", "Cargo.lock", "/corpus/", "/fixtures/"];

/// Where `unsafe` stands, and how often it was reviewed there.
const UNSAFE: [(&str, usize); 2] = [("ebpf/src/main.rs", 12), ("proxy/src/runtime/io_uring.rs", 7)];

const RULES: [fn(&Source) -> Vec<Problem>; 11] = [
    file_length,
    function_length,
    module_doc,
    unsafe_count,
    rustls_place,
    pure_files,
    no_panic_in_pure_files,
    unfinished_macros,
    marks,
    trailing_white_space,
    home_paths,
];

/// Checks every file that git tracks or would track and prints what breaks a rule.
pub(crate) fn run() -> Result<(), String> {
    let paths = paths()?;
    let mut problems: Vec<String> = lock_file(&paths).into_iter().collect();
    for path in &paths {
        // Deleted but still tracked, or not text: nothing to read.
        let Ok(text) = fs::read_to_string(crate::root().join(path)) else { continue };
        problems.extend(check(path, &text).iter().map(|it| format!("{path}:{}: {}", it.line, it.says)));
    }
    problems.extend(layout::problems(&paths, |path| fs::read_to_string(crate::root().join(path)).ok()));
    problems.extend(crate::licences::problems()?);
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() { Ok(()) } else { Err(format!("tidy: {} problems", problems.len())) }
}

/// One file as the rules see it; what is not Rust has no tokens and no functions.
struct Source<'a> {
    path: &'a str,
    text: &'a str,
    tokens: Vec<Token>,
    functions: Vec<Function>,
}

struct Token {
    line: usize,
    text: String,
    in_test: bool,
}

struct Function {
    line: usize,
    name: String,
    lines: usize,
}

struct Problem {
    line: usize,
    says: String,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Result<Self, Problem> {
        let mut source = Source { path, text, tokens: Vec::new(), functions: Vec::new() };
        if source.is_rust() {
            let (stream, file) = parse(text)
                .map_err(|why| problem(why.span().start().line, format!("does not parse: {why}")))?;
            flatten(stream, false, &mut source.tokens);
            Functions(&mut source.functions).visit_file(&file);
        }
        Ok(source)
    }

    fn is_rust(&self) -> bool {
        self.ends_in("rs")
    }

    fn ends_in(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, end)| end == extension)
    }

    /// Whether the file is this module: `a/b.rs`, or anything below `a/b/`.
    fn is_of(&self, module: &str) -> bool {
        self.path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    fn is_pure(&self) -> bool {
        PURE.iter().any(|module| self.is_of(module))
    }

    /// One problem for each token that is meant.
    fn tokens_that(&self, is_meant: impl Fn(&Token) -> bool, says: &str) -> Vec<Problem> {
        let meant = self.tokens.iter().filter(|token| is_meant(token));
        meant.map(|token| problem(token.line, format!("`{}` {says}", token.text))).collect()
    }

    /// One problem for each line that is meant.
    fn lines_that(&self, is_meant: impl Fn(&str) -> bool, says: &str) -> Vec<Problem> {
        if AS_RECEIVED.iter().any(|part| self.path.contains(part)) {
            return Vec::new();
        }
        let numbered = (1..).zip(self.text.split('\n'));
        numbered.filter(|(_, line)| is_meant(line)).map(|(line, _)| problem(line, says)).collect()
    }
}

fn problem(line: usize, says: impl Into<String>) -> Problem {
    Problem { line, says: says.into() }
}

fn check(path: &str, text: &str) -> Vec<Problem> {
    match Source::new(path, text) {
        Ok(source) => RULES.iter().flat_map(|rule| rule(&source)).collect(),
        Err(problem) => vec![problem],
    }
}

fn file_length(source: &Source) -> Vec<Problem> {
    let lines = source.text.lines().count();
    let says = || format!("{lines} lines; a file has at most {FILE_LINES_MAX}");
    let is_long = source.is_rust() && lines > FILE_LINES_MAX;
    is_long.then(|| problem(lines, says())).into_iter().collect()
}

fn function_length(source: &Source) -> Vec<Problem> {
    let long = source.functions.iter().filter(|function| function.lines > FUNCTION_LINES_MAX);
    long.map(|Function { line, name, lines }| {
        problem(*line, format!("`{name}` has {lines} lines; a function has at most {FUNCTION_LINES_MAX}"))
    })
    .collect()
}

fn module_doc(source: &Source) -> Vec<Problem> {
    let lines = source.text.lines().take_while(|line| line.starts_with("//!")).count();
    let is_wrong = source.is_rust() && !(1..=DOC_LINES_MAX).contains(&lines);
    let says = || format!("a file starts with a `//!` doc of 1 to {DOC_LINES_MAX} lines, not {lines}");
    is_wrong.then(|| problem(1, says())).into_iter().collect()
}

/// Every block counts: one more is one that nobody has reviewed.
fn unsafe_count(source: &Source) -> Vec<Problem> {
    let reviewed = UNSAFE.iter().find(|(path, _)| *path == source.path).map_or(0, |(_, count)| *count);
    let lines: Vec<_> = source.tokens.iter().filter(|it| it.text == "unsafe").map(|it| it.line).collect();
    let says =
        format!("`unsafe` {} times, reviewed {reviewed}: see UNSAFE in xtask/src/tidy.rs", lines.len());
    let last = lines.last().copied().unwrap_or(1);
    (lines.len() != reviewed).then(|| problem(last, says)).into_iter().collect()
}

fn rustls_place(source: &Source) -> Vec<Problem> {
    let is_bound = source.path.starts_with("proxy/src/") && !source.is_of("proxy/src/tls");
    let names_it = |token: &Token| token.text == "rustls" || token.text.starts_with("rustls_");
    source.tokens_that(|token| is_bound && names_it(token), "only in proxy/src/tls")
}

fn pure_files(source: &Source) -> Vec<Problem> {
    let is_pure = source.is_pure();
    let is_impure = |token: &Token| IMPURE.contains(&token.text.as_str());
    source.tokens_that(|token| is_pure && is_impure(token), "in a file that touches no socket, clock or disk")
}

fn no_panic_in_pure_files(source: &Source) -> Vec<Problem> {
    let panics = |name: &str| name == "unwrap" || name == "expect";
    let calls = source.tokens.windows(3).filter(|it| {
        !it[1].in_test && it[0].text == "." && panics(&it[1].text) && it[2].text == "(" && source.is_pure()
    });
    calls.map(|it| problem(it[1].line, format!("`{}` on what may come from a network", it[1].text))).collect()
}

fn unfinished_macros(source: &Source) -> Vec<Problem> {
    let calls = source.tokens.windows(2).filter(|it| UNFINISHED.contains(&&*it[0].text) && it[1].text == "!");
    calls.map(|it| problem(it[0].line, format!("`{}!` is left over", it[0].text))).collect()
}

fn marks(source: &Source) -> Vec<Problem> {
    let is_mark = |word: &str| MARKS.contains(&word);
    let has_mark = |line: &str| line.split(|c: char| !c.is_alphanumeric()).any(is_mark);
    source.lines_that(has_mark, "a mark for later: do it, or write down why not")
}

fn trailing_white_space(source: &Source) -> Vec<Problem> {
    source.lines_that(|line| line.ends_with(char::is_whitespace), "white space at the end of the line")
}

/// Documents may show one in an example.
fn home_paths(source: &Source) -> Vec<Problem> {
    let is_document = source.ends_in("md");
    source.lines_that(|line| !is_document && has_home(line), "a path below somebody's home directory")
}

/// A path that starts there, not one that passes through a directory of that name.
fn has_home(line: &str) -> bool {
    let starts_path = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*".contains(c));
    HOMES.iter().any(|home| line.match_indices(home).any(|(at, _)| starts_path(at)))
}

fn lock_file(paths: &[String]) -> Option<String> {
    let is_there = paths.iter().any(|path| path == "Cargo.lock");
    (!is_there).then(|| "Cargo.lock:1: is missing, or ignored by git".to_owned())
}

fn paths() -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(crate::root())
        .output()
        .map_err(|why| format!("git: {why}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(listed.split_terminator('\0').map(str::to_owned).collect())
}

fn parse(text: &str) -> syn::Result<(TokenStream, syn::File)> {
    let stream = TokenStream::from_str(text)?;
    Ok((stream.clone(), syn::parse2(stream)?))
}

/// Puts the tokens in a row, delimiters included, and notes which belong to a `#[cfg(test)]` item.
fn flatten(stream: TokenStream, in_test: bool, tokens: &mut Vec<Token>) {
    let mut in_test_item = in_test;
    for tree in stream {
        tokens.push(Token { line: tree.span().start().line, text: text(&tree), in_test: in_test_item });
        match tree {
            TokenTree::Group(group) => {
                in_test_item |= is_cfg_test(&group);
                flatten(group.stream(), in_test_item, tokens);
                // The body ends the item; its attributes and parameters do not.
                in_test_item &= in_test || group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Punct(mark) if mark.as_char() == ';' => in_test_item = in_test,
            _ => {}
        }
    }
}

/// The token itself, or what opens the group.
fn text(tree: &TokenTree) -> String {
    match tree {
        TokenTree::Group(group) => opening(group).to_owned(),
        tree => tree.to_string(),
    }
}

fn is_cfg_test(group: &Group) -> bool {
    group.delimiter() == Delimiter::Bracket && group.stream().to_string().replace(' ', "") == "cfg(test)"
}

fn opening(group: &Group) -> &'static str {
    match group.delimiter() {
        Delimiter::Parenthesis => "(",
        Delimiter::Brace => "{",
        Delimiter::Bracket => "[",
        Delimiter::None => "",
    }
}

/// Collects each function that has a body, from `fn` to its closing brace.
struct Functions<'a>(&'a mut Vec<Function>);

impl Functions<'_> {
    fn add(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        let last = body.brace_token.span.close().end().line;
        self.0.push(Function { line, name: signature.ident.to_string(), lines: last + 1 - line });
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.add(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines in which the rule finds something.
    fn found(rule: fn(&Source) -> Vec<Problem>, path: &str, text: &str) -> Vec<usize> {
        let Ok(source) = Source::new(path, text) else { panic!("{path} does not parse") };
        rule(&source).iter().map(|problem| problem.line).collect()
    }

    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn a_file_has_at_most_800_lines() {
        assert_eq!(found(file_length, "a.rs", &"\n".repeat(800)), [0; 0]);
        assert_eq!(found(file_length, "a.rs", &"\n".repeat(801)), [801]);
        assert_eq!(found(file_length, "a.json", &"\n".repeat(801)), [0; 0]);
    }

    #[test]
    fn a_function_has_at_most_70_lines() {
        assert_eq!(found(function_length, "a.rs", &function("short", 70)), [0; 0]);
        assert_eq!(found(function_length, "a.rs", &format!("\n{}", function("long", 71))), [2]);
    }

    #[test]
    fn functions_are_measured_wherever_they_stand() {
        let long = function("long", 71);
        for text in ["impl A {", "trait A {", "mod a {", "fn f() { if a {"].map(|it| format!("{it}\n{long}"))
        {
            let text = format!("{text}{}", "}".repeat(text.matches('{').count() - text.matches('}').count()));
            assert!(found(function_length, "a.rs", &text).contains(&2), "{text}");
        }
    }

    #[test]
    fn a_file_starts_with_a_short_doc() {
        assert_eq!(found(module_doc, "a.rs", "//! What it is.\n"), [0; 0]);
        assert_eq!(found(module_doc, "a.rs", "\n//! What it is.\n"), [1]);
        assert_eq!(found(module_doc, "a.rs", &"//! More.\n".repeat(8)), [0; 0]);
        assert_eq!(found(module_doc, "a.rs", &"//! More.\n".repeat(9)), [1]);
        assert_eq!(found(module_doc, "a.toml", ""), [0; 0]);
    }

    #[test]
    fn unsafe_stands_where_it_was_reviewed_and_as_often() {
        for text in
            ["fn f() { unsafe { g() } }", "unsafe fn f() {}", "unsafe impl A for B {}", "m!(unsafe {});"]
        {
            assert_eq!(found(unsafe_count, "proxy/src/session/relay.rs", text), [1], "{text}");
            let times = |count: usize| vec![text; count].join("\n");
            assert_eq!(found(unsafe_count, "proxy/src/runtime/io_uring.rs", &times(7)), [0; 0]);
            assert_eq!(found(unsafe_count, "proxy/src/runtime/io_uring.rs", &times(8)), [8]);
        }
        assert_eq!(
            found(unsafe_count, "proxy/src/runtime/io_uring.rs", "fn f() {}"),
            [1],
            "one that has gone is none"
        );
        assert_eq!(found(unsafe_count, "a.rs", "// unsafe\nconst A: &str = \"unsafe\";"), [0; 0]);
    }

    #[test]
    fn rustls_stays_in_its_place() {
        assert_eq!(
            found(rustls_place, "proxy/src/worker/connection.rs", "//! No rustls.\nuse rustls::Error;"),
            [2]
        );
        assert_eq!(
            found(rustls_place, "proxy/src/worker/connection.rs", "fn f() { ::rustls_pki_types::f() }"),
            [1]
        );
        assert_eq!(found(rustls_place, "proxy/src/tls/mod.rs", "use rustls::Error;"), [0; 0]);
        assert_eq!(found(rustls_place, "proxy/src/tls/end.rs", "use rustls::Error;"), [0; 0]);
        assert_eq!(found(rustls_place, "tests/src/lib.rs", "use rustls::Error;"), [0; 0]);
    }

    #[test]
    fn pure_files_touch_nothing() {
        for path in PURE.map(|module| format!("{module}.rs")) {
            assert_eq!(found(pure_files, &path, "use std::net::{IpAddr, TcpStream};"), [1]);
            assert_eq!(found(pure_files, &path, "\nfn f() { std::fs::read(a) }"), [2]);
            assert_eq!(found(pure_files, &path, "use std::{net::IpAddr, time::Duration};"), [0; 0]);
        }
        for name in IMPURE {
            assert_eq!(
                found(pure_files, "proxy/src/http/h1/head.rs", &format!("use a::{name};")),
                [1],
                "{name}"
            );
            assert_eq!(found(pure_files, "proxy/src/transport/net.rs", &format!("use a::{name};")), [0; 0]);
        }
    }

    #[test]
    fn pure_files_do_not_panic_on_input() {
        let found = |text| found(no_panic_in_pure_files, "proxy/src/http/h1/head.rs", text);
        assert_eq!(found("fn f() { a.unwrap() }"), [1]);
        assert_eq!(found("fn f() {\n m!(a.expect(\"b\")) }"), [2]);
        assert_eq!(found("fn f() { a.unwrap_or(b); p.expect; }"), [0; 0]);
        assert_eq!(found("#[cfg(test)]\nmod tests { fn f() { a.unwrap() } }"), [0; 0]);
        assert_eq!(found("#[cfg(test)]\nmod tests;\nfn f() { a.unwrap() }"), [3]);
        assert_eq!(found("#[cfg(test)]\n#[allow(a)]\nfn f() { a.unwrap() }\nfn g() { a.unwrap() }"), [4]);
    }

    #[test]
    fn elsewhere_a_panic_is_for_clippy_to_judge() {
        assert_eq!(
            found(no_panic_in_pure_files, "proxy/src/worker/thread.rs", "fn f() { a.unwrap() }"),
            [0; 0]
        );
    }

    #[test]
    fn no_unfinished_macro_is_left() {
        for name in UNFINISHED {
            assert_eq!(found(unfinished_macros, "a.rs", &format!("fn f() {{\n {name}!() }}")), [2], "{name}");
        }
        assert_eq!(found(unfinished_macros, "a.rs", "// todo!()\nfn todo() { a != dbg }"), [0; 0]);
    }

    #[test]
    fn no_mark_for_later_is_left() {
        for mark in MARKS {
            assert_eq!(found(marks, "a.rs", &format!("\n// {mark}: later")), [2], "{mark}");
            assert_eq!(found(marks, ".ci/run", &format!("# ({mark})")), [1]);
            assert_eq!(found(marks, "a.sh", &format!("mktemp a.{mark}{mark}")), [0; 0]);
        }
    }

    #[test]
    fn no_line_ends_in_white_space() {
        assert_eq!(found(trailing_white_space, "a.md", "a\nb \nc\t\nd\r\n\n"), [2, 3, 4]);
        assert_eq!(found(trailing_white_space, "tests/fixtures/head", "a \r\n"), [0; 0]);
    }

    #[test]
    fn no_path_leads_home() {
        for home in HOMES {
            assert_eq!(found(home_paths, "a.toml", &format!("a = 1\nb = \"{home}me\"")), [2]);
            assert_eq!(found(home_paths, "a.toml", &format!("{home}me")), [1]);
            assert_eq!(found(home_paths, "a.toml", &format!("https://a.example{home}")), [0; 0]);
            assert_eq!(found(home_paths, "README.md", &format!("cd {home}me")), [0; 0]);
        }
    }

    #[test]
    fn the_lock_file_is_tracked() {
        assert!(lock_file(&["Cargo.lock".into()]).is_none());
        assert!(lock_file(&["ebpf/Cargo.lock".into()]).is_some());
    }

    #[test]
    fn every_rule_is_asked_and_a_file_must_parse() {
        assert_eq!(check("proxy/src/http/h1/head.rs", "use rustls::a; \nuse tokio::b;").len(), 4);
        assert_eq!(check("a.rs", "//! Doc.\nfn f( {").len(), 1);
        assert_eq!(check("a.rs", "//! Doc.\nfn f() }").len(), 1);
        assert_eq!(check("a.rs", "//! Doc.\nfn fn() {}").iter().map(|it| it.line).collect::<Vec<_>>(), [2]);
    }
}
