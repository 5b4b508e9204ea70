//! The configuration file: TOML whose keys are the flags' names, turned into the flags that say the same, so that each
//! name, type, default and rule stands in one place. Knows where in the file everything stands; reads no file itself.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::renamed::renamed_key;
use crate::os::files::Location;

/// Flags that mean nothing in a file.
const NOT_IN_A_FILE: [&str; 3] = ["config", "help", "version"];

/// A file that was read, each setting with its place.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    text: String,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    at: usize,
    values: Vec<Value>,
}

#[derive(Debug)]
struct Value {
    text: String,
    at: usize,
}

/// A problem, and its place in the file.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct FileError {
    at: usize,
    what: String,
}

impl FileError {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

impl ConfigFile {
    /// Reads `text`, whose keys are the names of `flags`. What is wrong starts with its place: text that is no TOML is an
    /// error; settings that are no good are left out, and told of beside the others.
    pub(super) fn parse(path: &Path, text: &str, flags: &Command) -> Result<(Self, Vec<String>), String> {
        let mut file = Self { path: path.to_owned(), text: text.to_owned(), entries: Vec::new() };
        let told = |file: &Self, FileError { at, what }| format!("{}: {what}", file.place(at));
        let (entries, errors) = entries(text, flags).map_err(|error| told(&file, error))?;
        file.entries = entries;
        let problems = errors.into_iter().map(|error| told(&file, error)).collect();
        Ok((file, problems))
    }

    fn place(&self, at: usize) -> Location<'_> {
        Location::new(&self.path, &self.text, at)
    }

    /// Whether it says something of `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Where it speaks of `key`; of this value of it where there is one.
    pub(super) fn place_of(&self, key: &str, value: Option<&str>) -> Option<Location<'_>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        let value = entry.values.iter().find(|of_key| Some(&*of_key.text) == value);
        Some(self.place(value.map_or(entry.at, |value| value.at)))
    }

    /// Where it says `text` last.
    pub(super) fn place_of_value(&self, text: &OsStr) -> Option<Location<'_>> {
        let mut values = self.entries.iter().flat_map(|entry| &entry.values).rev();
        let found = values.find(|value| *value.text == *text);
        found.map(|value| self.place(value.at))
    }

    /// The flags that say the same, but for keys that were `given` already.
    pub(super) fn flags(&self, given: impl Fn(&str) -> bool) -> impl Iterator<Item = OsString> {
        let entries = self.entries.iter().filter(move |entry| !given(&entry.key));
        entries.flat_map(|Entry { key, values, .. }| {
            values.iter().map(move |value| format!("--{key}={}", value.text).into())
        })
    }
}

/// The settings, and what is wrong with others, both in the order of the file.
fn entries(text: &str, flags: &Command) -> Result<(Vec<Entry>, Vec<FileError>), FileError> {
    let table = DeTable::parse(text).map_err(|error| {
        FileError::new(error.span().map_or(0, |span| span.start), error.message().replace('\n', ", "))
    })?;
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    for (key, value) in table.get_ref() {
        let at = key.span().start;
        let key = key.get_ref();
        let argument =
            argument(flags, key).ok_or_else(|| FileError::new(at, unknown(flags, key, value.get_ref())));
        match argument.and_then(|argument| values(argument, value)) {
            Ok(values) => entries.push(Entry { key: key.to_string(), at, values }),
            Err(error) => errors.push(error),
        }
    }
    entries.sort_by_key(|entry| entry.at);
    errors.sort_by_key(|error| error.at);
    Ok((entries, errors))
}

/// The flag of that name.
pub(super) fn argument<'a>(flags: &'a Command, key: &str) -> Option<&'a Arg> {
    let mut arguments = flags.get_arguments().filter(|argument| argument.get_long() == Some(key));
    arguments.next().filter(|_| !NOT_IN_A_FILE.contains(&key))
}

/// Names the key that was probably meant.
fn unknown(flags: &Command, key: &str, value: &DeValue<'_>) -> String {
    let old_value = match value {
        DeValue::Integer(number) => number.as_str(),
        DeValue::String(text) => text,
        _ => "...",
    };
    if let Some((new, value)) = renamed_key(key, old_value) {
        return format!("{key} is now {new}: write {new} = {value}");
    }
    let error = flags.clone().no_binary_name(true).try_get_matches_from([format!("--{key}")]).err();
    let meant = error.as_ref().and_then(|error| match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(flag)) => flag.strip_prefix("--"),
        _ => None,
    });
    match meant.filter(|meant| !NOT_IN_A_FILE.contains(meant)) {
        Some(meant) => format!("there is no {key}: did you mean {meant}?"),
        None => format!("there is no {key}: `dcv-splice --help` lists what there is"),
    }
}

fn values(argument: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<Value>, FileError> {
    match value.get_ref() {
        DeValue::Array(_) if !is_repeatable(argument) => {
            Err(FileError::new(value.span().start, format!("{} takes one value", name(argument))))
        }
        DeValue::Array(values) if values.is_empty() && !argument.get_default_values().is_empty() => {
            let what = format!("{} names none: name one, or leave the line out", name(argument));
            Err(FileError::new(value.span().start, what))
        }
        DeValue::Table(_) => {
            let what = format!("{0} is no section: write {0} = ...", name(argument));
            Err(FileError::new(value.span().start, what))
        }
        DeValue::Array(values) => values.iter().map(|value| single(argument, value)).collect(),
        _ => Ok(vec![single(argument, value)?]),
    }
}

fn single(argument: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Value, FileError> {
    let Range { start: at, .. } = value.span();
    let text = match (value.get_ref(), is_number(argument)) {
        (DeValue::String(text), false) => text.to_string(),
        (DeValue::Integer(number), true) if number.radix() == 10 => number.as_str().to_owned(),
        (_, true) => return Err(FileError::new(at, format!("{} takes a whole number", name(argument)))),
        (DeValue::Integer(number), false) if unit(argument).is_some() => {
            let (name, unit, number) = (name(argument), unit(argument).unwrap_or_default(), number.as_str());
            let what = format!("the unit of {name} is missing: write {name} = \"{number}{unit}\"");
            return Err(FileError::new(at, what));
        }
        (_, false) => {
            let name = name(argument);
            return Err(FileError::new(at, format!("{name} takes a text: write it between quotes")));
        }
    };
    Ok(Value { text, at })
}

fn name(argument: &Arg) -> &str {
    argument.get_long().unwrap_or_default()
}

/// Whether it takes a list.
pub(super) fn is_repeatable(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

/// The unit that a bare number of it was probably meant in.
fn unit(argument: &Arg) -> Option<&'static str> {
    let value = argument.get_value_parser().type_id();
    let units = [(TypeId::of::<Duration>(), "s"), (TypeId::of::<ByteSize>(), "B")];
    units.iter().find(|(id, _)| value == *id).map(|(_, unit)| *unit)
}

/// Whether its values are written without quotes.
pub(super) fn is_number(argument: &Arg) -> bool {
    let numbers = [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
    let value = argument.get_value_parser().type_id();
    numbers.iter().any(|number| value == *number)
}
