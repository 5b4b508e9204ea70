//! The text of a directory, TOML or JSON, as values that know where they stand. Pure; knows nothing of agents.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// How deep tables and lists lie in each other: the directory, its list, an agent, its tags, and one that is wrong there.
const DEPTH_MAX: usize = 6;

/// What is wrong in a directory, and where, in bytes from its start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The place.
    pub at: usize,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl Problem {
    /// A problem at a place.
    pub(super) fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

/// How a directory is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// TOML.
    Toml,
    /// JSON (RFC 8259).
    Json,
}

impl Format {
    /// The format that a file's name ends with.
    pub fn of(file: &Path) -> Option<Self> {
        let ending = file.extension()?;
        [("toml", Self::Toml), ("json", Self::Json)]
            .into_iter()
            .find_map(|(name, format)| ending.eq_ignore_ascii_case(name).then_some(format))
    }
}

/// A value, and where it stands, in bytes from the start.
pub(super) struct Node<'a> {
    pub at: usize,
    pub value: Value<'a>,
}

/// What is said.
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// As it is written.
    Number(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Table(Vec<Entry<'a>>),
    /// Anything else, which nothing takes.
    Other,
}

/// A line of a table.
pub(super) struct Entry<'a> {
    pub key: Cow<'a, str>,
    /// Where its key stands.
    pub at: usize,
    pub node: Node<'a>,
}

/// Reads all of it.
pub(super) fn read(text: &str, format: Format) -> Result<Node<'_>, Problem> {
    match format {
        Format::Toml => {
            let table = DeTable::parse(text).map_err(|error| {
                let at = error.span().map_or(0, |span| span.start);
                Problem::new(at, error.message().replace('\n', ", "))
            })?;
            Ok(Node { at: 0, value: toml_table(table.into_inner()) })
        }
        Format::Json => {
            let raw: &RawValue = serde_json::from_str(text)
                .map_err(|error| Problem::new(json_place(text, &error), json_error(&error)))?;
            json(raw, text, DEPTH_MAX)
        }
    }
}

fn toml_table(table: DeTable<'_>) -> Value<'_> {
    let entries = table.into_iter().map(|(key, value)| {
        let at = key.span().start;
        Entry { key: key.into_inner(), at, node: toml_node(value) }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| entry.at);
    Value::Table(entries)
}

fn toml_node(value: Spanned<DeValue<'_>>) -> Node<'_> {
    let at = value.span().start;
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text),
        DeValue::Integer(number) if number.radix() == 10 => Value::Number(number.as_str().to_owned().into()),
        DeValue::Array(list) => Value::List(list.into_iter().map(toml_node).collect()),
        DeValue::Table(table) => toml_table(table),
        _ => Value::Other,
    };
    Node { at, value }
}

/// The crate counts lines and columns from 1, and columns in bytes.
fn json_place(text: &str, error: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    before + error.column().saturating_sub(1)
}

/// Without the place, which is told otherwise.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or_else(|| text.clone(), |(what, _)| what.to_owned())
}

/// Where `part` of `text` stands in it.
fn place(part: &str, text: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize).min(text.len())
}

fn json<'a>(raw: &'a RawValue, text: &'a str, depth: usize) -> Result<Node<'a>, Problem> {
    let part = raw.get();
    let at = place(part, text);
    // What is read here was found to be JSON before.
    let wrong = |error: serde_json::Error| Problem::new(at, json_error(&error));
    let first = part.as_bytes().first();
    if matches!(first, Some(b'[' | b'{')) && depth == 0 {
        return Err(Problem::new(at, "lists and tables lie too deep in each other"));
    }
    let value = match first {
        Some(b'"') => Value::Text(serde_json::from_str::<JsonText<'a>>(part).map_err(wrong)?.0),
        Some(b'-' | b'0'..=b'9') => Value::Number(part.into()),
        Some(b'[') => {
            let list: Vec<&'a RawValue> = serde_json::from_str(part).map_err(wrong)?;
            Value::List(list.into_iter().map(|raw| json(raw, text, depth - 1)).collect::<Result<_, _>>()?)
        }
        Some(b'{') => {
            let JsonTable(entries) = serde_json::from_str(part).map_err(wrong)?;
            let entry = |(JsonText(key), raw): (JsonText<'a>, &'a RawValue)| {
                let node = json(raw, text, depth - 1)?;
                // A key with escapes is none that there is; its value stands near.
                let at =
                    if let Cow::Borrowed(key) = key { place(key, text).saturating_sub(1) } else { node.at };
                Ok(Entry { key, at, node })
            };
            Value::Table(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        _ => Value::Other,
    };
    Ok(Node { at, value })
}

/// A text, borrowed where it is written as it is.
#[derive(Deserialize)]
struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);

/// All entries of a table, also those that have the same key.
struct JsonTable<'a>(Vec<(JsonText<'a>, &'a RawValue)>);

impl<'a> Deserialize<'a> for JsonTable<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'a> Visitor<'a> for Entries {
            type Value = JsonTable<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<JsonTable<'a>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(JsonTable(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
