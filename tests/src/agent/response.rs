//! Parts of requests and responses that all answers are made of.
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use hyper::{Response, StatusCode};
use std::convert::Infallible;

/// The body of any answer.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// The answer that says no, and why.
pub(super) fn refuse(status: StatusCode, why: &'static str) -> Response<Body> {
    respond(status, "text/plain", why)
}

pub(super) fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().status(status).header(CONTENT_TYPE, kind);
    builder.body(full(body)).expect("a status and a constant header make a response")
}

pub(super) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// The field's value; empty without one, or when it is no text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The value of this name in a raw query, not decoded.
pub(super) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}
