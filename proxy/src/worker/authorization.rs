//! Which user sends a request, where the proxy asks for passwords. Waits for the password check; decides nothing else.

use crate::access::admission;
use crate::access::passwords::AuthError;
use crate::access::rejections::RejectReason;
use crate::access::route::{AgentRef, Route};
use crate::http::local_response::LocalResponse;
use crate::http::message::{self, RequestHead};
use crate::http::request_source::RequestSource;
use crate::transport::net::Runtime;
use crate::worker::context::Generation;

/// The name of the user, if the route needs one (`/health` needs none); or why the request is rejected. The client of the connection was admitted before; a client behind a trusted proxy was not.
pub(crate) async fn authorize<N: Runtime>(
    head: &RequestHead<'_>,
    route: Route<'_>,
    generation: &Generation<N>,
    source: &RequestSource,
) -> Result<Option<String>, (RejectReason, LocalResponse)> {
    if source.is_forwarded() && !generation.config().clients.allows(source.client) {
        return Err((RejectReason::ClientDenied, admission::reply_to(RejectReason::ClientDenied)));
    }
    if matches!(route, Route::Health { .. }) {
        return Ok(None);
    }
    let agent = generation.config().policy.agent_of(route).map(AgentRef::ip);
    let passwords = generation.shared.passwords.as_ref().filter(|passwords| passwords.guard(agent));
    let Some(passwords) = passwords else { return Ok(None) };
    let mut shown = message::values(&head.headers, "authorization");
    let shown = shown.next().filter(|_| shown.next().is_none());
    let checked = passwords.check(source.client, shown, || generation.net.now());
    // A queue that stands still is a busy one.
    let checked = generation.net.timeout(generation.config().limits.header_timeout, checked).await;
    let checked = checked.unwrap_or(Err(AuthError::Busy));
    checked.map(Some).map_err(|denial| (denial.why(), denial.reply()))
}
