//! Answers: every answer of the page is made here, with the headers that keep data from becoming anything else.

use std::convert::Infallible;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use maud::Markup;
use serde::Serialize;

use super::access::Refusal;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub type Answer = Response<Body>;

/// What no answer goes without. The policy allows our own files and nothing inline.
const SECURITY: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    // With `no-referrer` browsers would send our own forms with the origin `null`.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// An answer with this body.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with_body(status, content_type, Full::new(body.into()).boxed_unsync())
}

/// An answer whose body comes in parts.
pub fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in SECURITY {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    answer
}

/// A page.
pub fn html(status: StatusCode, page: Markup) -> Answer {
    answer(status, "text/html; charset=utf-8", page.into_string())
}

/// A line of text.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.into() + "\n")
}

/// The JSON of a value.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write this as JSON: {error}")),
    }
}

/// There is nothing at this path.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "there is nothing here: / is the page, /metrics the numbers for Prometheus")
}

/// The path is there, for other methods.
pub fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("this path takes {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The answer to what is not answered.
pub fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Token => {
            let mut answer = text(StatusCode::UNAUTHORIZED, "give the token: as the password, with any user name, or as `Bearer`");
            let asks = HeaderValue::from_static("Basic realm=\"dataloader\", charset=\"UTF-8\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, asks);
            answer
        }
        Refusal::Host => text(
            StatusCode::MISDIRECTED_REQUEST,
            "without a token only requests to localhost are answered: set DATALOADER_HTTP_TOKEN to use another name",
        ),
        Refusal::Foreign => text(StatusCode::FORBIDDEN, "this form was not sent by this page: reload the page and try again"),
    }
}
