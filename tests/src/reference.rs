//! The reference of all flags and keys as Markdown, made from the flags themselves. Writes no file.

use std::any::TypeId;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{Arg, ArgAction, Args};
use dcv_splice::config::{Flags, is_reloadable};

/// Stands before the tables in docs/configuration.md; what follows it, up to `END`, is made.
pub const BEGIN: &str = "<!-- made by `cargo xtask docs` from the flags: -->\n";
/// Stands behind the tables.
pub const END: &str = "<!-- until here -->\n";

/// The document with the tables made anew; `None` where it has no place for them.
pub fn with_tables(document: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some([before, BEGIN, &tables(), END, after].concat())
}

/// A heading and a table for each group of flags.
fn tables() -> String {
    let command = Flags::augment_args(clap::Command::new("dcv-splice"));
    let mut text = String::new();
    let mut heading = None;
    for argument in command.get_arguments().filter(|argument| argument.get_long() != Some("help")) {
        if argument.get_help_heading() != heading || text.is_empty() {
            heading = argument.get_help_heading();
            let name = heading.unwrap_or("Configuration file");
            // Writing to memory does not fail.
            let _ = writeln!(text, "\n### {name}\n| flag | meaning | value | default | range | changed by |");
            text += "|---|---|---|---|---|---|\n";
        }
        text += &row(argument);
    }
    text + "\n"
}

fn row(argument: &Arg) -> String {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, range) = take(&help, "[range: ");
    let (meaning, default) = take(&help, "[default: ");
    let given = argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy()));
    let default = default.unwrap_or_else(|| given.collect::<Vec<_>>().join(", "));
    let key = argument.get_long().unwrap_or_default();
    let changed = match key {
        "config" => "restart",
        key if is_reloadable(key) => "reload",
        _ => "upgrade",
    };
    let cells =
        [&format!("`--{key}`"), &*meaning, &value(argument), &default, &range.unwrap_or_default(), changed];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|").replace('<', "&lt;")).join(" | "))
}

/// The text without the part in brackets that begins with `name`, and what that part says.
fn take(text: &str, name: &str) -> (String, Option<String>) {
    let part = text.split_once(name).and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    match part {
        Some((before, (inside, after))) => ([before.trim_end(), after].concat(), Some(inside.to_owned())),
        None => (text.to_owned(), None),
    }
}

fn value(argument: &Arg) -> String {
    let possible = argument.get_possible_values();
    let names = argument.get_value_names().unwrap_or_default();
    let is_time = argument.get_value_parser().type_id() == TypeId::of::<Duration>();
    let kind = if !possible.is_empty() {
        possible.iter().map(|value| format!("`{}`", value.get_name())).collect::<Vec<_>>().join(", ")
    } else if is_time {
        "time".to_owned()
    } else {
        match names.first().map_or("", |name| name.as_str()) {
            "SIZE" => "size".to_owned(),
            "N" => "number".to_owned(),
            name => format!("`{name}`"),
        }
    };
    let is_list = matches!(argument.get_action(), ArgAction::Append);
    if is_list { format!("list of {kind}") } else { kind }
}
