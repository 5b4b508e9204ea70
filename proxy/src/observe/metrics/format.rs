//! The two formats of metrics, and who is given which. Pure.

use std::collections::HashMap;

/// How the stats are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Prometheus text 0.0.4, which every reader understands.
    Classic,
    /// `OpenMetrics` 1.0, for those who ask for it.
    OpenMetrics,
}

impl Format {
    /// What a client is given that accepts these media ranges, the members of its `Accept` (RFC 9110 12.5.1):
    /// `OpenMetrics` only where it is named, in a version that is spoken here, and liked no less than plain text.
    pub fn wanted<'a>(accepted: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut open, mut plain) = (0, 0);
        for range in accepted {
            let Ok(range) = std::str::from_utf8(range) else { continue };
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.trim_matches('"'))
            };
            let weight = parameter("q").map_or(1000, thousandths);
            let is_version = |ours: &str| parameter("version").is_none_or(|version| version == ours);
            if kind.eq_ignore_ascii_case("application/openmetrics-text") && is_version("1.0.0") {
                open = open.max(weight);
            } else if kind.eq_ignore_ascii_case("text/plain") && is_version("0.0.4") {
                plain = plain.max(weight);
            }
        }
        if open > 0 && open >= plain { Self::OpenMetrics } else { Self::Classic }
    }

    /// The text's media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A weight from 0 to 1 (RFC 9110 12.4.2); nothing where it is none.
fn thousandths(weight: &str) -> u32 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "1" => 1000,
        "0" if fraction.len() <= 3 && digits(fraction) => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

/// The same in the classic format: there a family has the name of its lines, `_total` and `_info` included, an info is
/// a gauge, and there are no units and no end.
pub(super) fn classic(text: &str) -> String {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: HashMap<_, _> = kinds.collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let described = line.strip_prefix("# ").and_then(|line| line.split_once(' '));
        let Some((what, (name, rest))) =
            described.and_then(|(what, about)| Some((what, about.split_once(' ')?)))
        else {
            out.extend([line, "\n"]);
            continue;
        };
        let (suffix, kind) = match kinds.get(name) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(kind) => ("", *kind),
            None => ("", "untyped"),
        };
        let rest = if what == "TYPE" { kind } else { rest };
        out.extend(["# ", what, " ", name, suffix, " ", rest, "\n"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_ask_for_open_metrics_is_given_the_classic_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                          application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, wanted) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("text/html, application/xhtml+xml, */*;q=0.8", Format::Classic),
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text; version=0.0.1", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=0.000, */*", Format::Classic),
            ("application/openmetrics-text;q=x", Format::Classic),
            ("application/openmetrics-text;q=0.3, text/plain;q=0.5", Format::Classic),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.50", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-textual", Format::Classic),
        ] {
            let members = accept.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            assert_eq!(Format::wanted(members), wanted, "{accept}");
        }
        assert_eq!(Format::wanted([&b"\xff"[..]].into_iter()), Format::Classic);
    }
}
