//! `docs`: writes the tables of docs/configuration.md anew from the flags.

use std::fs;

use harness::reference;

pub(crate) fn run() -> Result<(), String> {
    let path = crate::root().join("docs/configuration.md");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let made = reference::with_tables(&text).ok_or_else(|| {
        let (begin, end) = (reference::BEGIN.trim(), reference::END.trim());
        format!("{}: the lines {begin} and {end} are missing", path.display())
    })?;
    fs::write(&path, made).map_err(|error| format!("{}: {error}", path.display()))
}
