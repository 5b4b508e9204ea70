//! The proxy's own answers as pages, for people who look at them in a browser: the same text, and the id by which an operator finds
//! the request. Says nothing that the plain text does not say. Pure.

use maud::{DOCTYPE, PreEscaped, html};

use crate::http::local_response::{self, LocalResponse};
use crate::http::message::{self, Header};
use crate::observe::request_id::RequestId;

/// Seconds between two tries of a page: many may be open, and in the background too.
const RELOAD_S_MIN: u32 = 10;
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 36rem; margin: 15vh auto; padding: 0 1.25rem; overflow-wrap: anywhere; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } p { margin: 0 0 1rem; } .soft { opacity: .65; font-size: .875rem; }
";
/// Nothing is loaded, nobody may put it into a frame, and no form of it is sent anywhere.
const CONTENT_POLICY: &str = "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; \
     form-action 'none'; base-uri 'none'";

/// The form of an answer that no agent gave.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AnswerForm {
    /// Plain text, for programs.
    #[default]
    Text,
    /// A page, for people.
    Page,
}

/// The form that a client wants: browsers name `text/html` where somebody follows a link, and hardly anything else does.
pub(crate) fn wanted(headers: &[Header<'_>]) -> AnswerForm {
    let names_html = message::members(headers, "accept").any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let is_html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html"));
        is_html && !parts.any(is_refusal)
    });
    if names_html { AnswerForm::Page } else { AnswerForm::Text }
}

/// Whether it is a weight of 0 (RFC 9110 12.4.2).
fn is_refusal(parameter: &[u8]) -> bool {
    let Some((b'q' | b'Q', weight)) = parameter.split_first() else { return false };
    let weight = weight.strip_prefix(b"=").unwrap_or_default();
    !weight.is_empty() && weight.iter().all(|byte| b"0.".contains(byte))
}

/// The answer as a page. One that is told to come back later tries again by itself.
pub(crate) fn of(response: LocalResponse, id: &RequestId) -> LocalResponse {
    let phrase = local_response::reason(response.status);
    let again = response.headers.iter().find_map(|header| header.strip_prefix("Retry-After: ")?.parse().ok());
    // A password that was refused is not to be shown again by itself.
    let again = again.filter(|_| response.status != 429).map(|seconds: u32| seconds.max(RELOAD_S_MIN));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                @if let Some(seconds) = again { meta http-equiv="refresh" content=(seconds); }
                title { (phrase) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (phrase) }
                p { (response.text) }
                @if let Some(seconds) = again { p.soft { "This page tries again every " (seconds) " seconds." } }
                p.soft { "Status " (response.status) ". If you ask for help, give this request id: " code { (id) } }
            }
        }
    };
    let text = page.into_string();
    LocalResponse { text, ..response }.of_type("text/html; charset=utf-8").with_header(CONTENT_POLICY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_for_those_who_name_html_and_do_not_refuse_it() {
        let wanted = |value: &str| wanted(&[Header { name: "accept", value: value.as_bytes() }]);
        for page in [
            "text/html",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "a/b, TEXT/HTML ; q=0.1",
            "text/html;level=1",
        ] {
            assert_eq!(wanted(page), AnswerForm::Page, "{page}");
        }
        for text in [
            "",
            "*/*",
            "text/*",
            "text/plain",
            "image/avif,*/*",
            "text/html;q=0",
            "text/html; Q=0.000",
            "text/htmlx",
        ] {
            assert_eq!(wanted(text), AnswerForm::Text, "{text}");
        }
    }

    #[test]
    fn what_a_client_has_written_stays_text() {
        let id = RequestId::given(b"abc").expect("an id");
        let page = of(LocalResponse::new(404, "There is no <b>\"session\"</b>."), &id);
        assert!(page.text.contains("There is no &lt;b&gt;") && !page.text.contains("<b>"), "{}", page.text);
        assert!(page.text.contains("<code>abc</code>") && !page.text.contains("refresh"));
        let later = of(LocalResponse::new(503, "Later.").with_header("Retry-After: 17"), &id);
        let again = |status| of(LocalResponse::new(status, "Later.").with_header("Retry-After: 1"), &id);
        assert!(again(503).text.contains("content=\"10\">") && !again(429).text.contains("refresh"));
        assert!(later.text.contains("<meta http-equiv=\"refresh\" content=\"17\">"), "{}", later.text);
    }
}
