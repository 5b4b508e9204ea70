//! Endpoints for tests, with no counterpart in DCV.
//! - `/x...` (any method): the request line's method and target as they arrived, then `Host: ...` on the next line.
//! - `GET /bytes/<n>`, `GET /chunked/<n>`: [`Noise`], with a length or in chunks.
//! - `POST /sink`: the length and checksum of the body, see [`Checksum`].
//! - `GET /redirect?to=...`, `GET /cookie?path=...`: the rest of the query, as it stands, becomes the `Location` of a 302
//!   or the `Path` of a cookie.
//! - `GET /slow/<ms>`: answers after that time.
use super::noise::{Checksum, Noise, Sized, Unsized};
use super::response::{Body, full, header, refuse, respond};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HOST, LOCATION, SET_COOKIE};
use hyper::{Method, Request, Response, StatusCode};
use std::time::Duration;

pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let uri = request.uri();
    let path = uri.path();
    if path.starts_with("/x") {
        return mirror(&request);
    }
    if (request.method(), path) == (&Method::POST, "/sink") {
        return sink(request).await;
    }
    if request.method() != Method::GET {
        return unknown();
    }
    if let Some(ms) = number(path, "/slow/") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        return respond(StatusCode::OK, "text/plain", format!("after {ms} ms\n"));
    }
    if let Some(length) = number(path, "/bytes/") {
        return octets(Sized(Noise::new(length)).boxed());
    }
    if let Some(length) = number(path, "/chunked/") {
        return octets(Unsized(Noise::new(length)).boxed());
    }
    let query = uri.query().unwrap_or_default();
    match path {
        "/redirect" if let Some(to) = query.strip_prefix("to=") => redirect(to),
        "/cookie" if let Some(path) = query.strip_prefix("path=") => cookie(path),
        _ => unknown(),
    }
}

fn unknown() -> Response<Body> {
    refuse(StatusCode::NOT_FOUND, "no such path on this agent")
}

fn number(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

fn mirror(request: &Request<Incoming>) -> Response<Body> {
    let host = header(request.headers(), &HOST);
    let text = format!("{} {}\nHost: {host}\n", request.method(), request.uri());
    respond(StatusCode::OK, "text/plain", text)
}

async fn sink(request: Request<Incoming>) -> Response<Body> {
    match Checksum::of_body(request.into_body()).await {
        Some(sum) => respond(StatusCode::OK, "text/plain", sum.to_string()),
        None => refuse(StatusCode::BAD_REQUEST, "the body broke off"),
    }
}

fn octets(body: Body) -> Response<Body> {
    let mut response = respond(StatusCode::OK, "application/octet-stream", "");
    *response.body_mut() = body;
    response
}

fn redirect(to: &str) -> Response<Body> {
    let response = Response::builder().status(StatusCode::FOUND).header(LOCATION, to);
    response.body(full("")).unwrap_or_else(|_| unknown())
}

fn cookie(path: &str) -> Response<Body> {
    let cookie = format!("probe=1; Path={path}; Secure; HttpOnly");
    let response = Response::builder().header(SET_COOKIE, cookie);
    response.body(full("")).unwrap_or_else(|_| unknown())
}
