//! The page, its assets and the resources of a session. Which path goes where is decided here.
use super::noise::Checksum;
use super::response::{Body, header, refuse, respond};
use super::session::Session;
use super::{Shared, channels, probes};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HOST};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

pub(super) async fn answer(agent: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    agent.seen.record(&request);
    if !agent.config.host.allows(header(request.headers(), &HOST)) {
        return refuse(StatusCode::FORBIDDEN, "this Host is not allowed");
    }
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (_, "/auth" | "/ws" | "/echo") => channels::upgrade(agent, request),
        (&Method::GET | &Method::HEAD, _) if let Some(page) = page(&path) => page,
        (_, path) if path.starts_with("/resource/") => resource(agent, request).await,
        _ => probes::answer(request).await,
    }
}

fn page(path: &str) -> Option<Response<Body>> {
    let (kind, text) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("../page/index.html")),
        "/dcvjs/main.js" => ("text/javascript; charset=utf-8", include_str!("../page/main.js")),
        "/dcvjs/style.css" => ("text/css; charset=utf-8", include_str!("../page/style.css")),
        "/dcvjs/icon.svg" => ("image/svg+xml", include_str!("../page/icon.svg")),
        _ => return None,
    };
    let mut response = respond(StatusCode::OK, kind, text);
    response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache"));
    Some(response)
}

/// Uploads (cursor images, print jobs) and refusals of a session.
async fn resource(agent: &Shared, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    // The body is read in any case: an answer ahead of it would cost the connection.
    let body = Checksum::of_body(body).await;
    let Some(session) = named(agent, head.uri.path()) else {
        return refuse(StatusCode::NOT_FOUND, "not the path of a resource");
    };
    if !session.holds(head.uri.query().unwrap_or_default()) {
        return refuse(StatusCode::FORBIDDEN, "the token is wrong or missing");
    }
    match head.method {
        Method::POST if let Some(sum) = body => {
            let taken = json!({ "taken": sum.length }).to_string();
            respond(StatusCode::OK, "application/json", taken)
        }
        Method::DELETE => respond(StatusCode::OK, "application/json", "{}"),
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "POST or DELETE"),
    }
}

/// The session that a path of exactly the form `/resource/<domain>/<session>/<connection>/<id>` names.
fn named(agent: &Shared, path: &str) -> Option<Arc<Session>> {
    let (connection, id) = path.strip_prefix("/resource/")?.strip_prefix(Session::PLACE)?.split_once('/')?;
    let plain = !id.is_empty() && !id.contains('/');
    plain.then(|| agent.sessions.find(connection.parse().ok()?)).flatten()
}
