//! One HTTP request: which part of the emulator answers it, and how the answer goes on the wire.

use std::convert::Infallible;
use std::future;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};

use super::body::{AnswerBody, UnderWay};
use super::wire::Cut;
use crate::api::{self, ApiError, Call, Format, Reply};
use crate::app::App;
use crate::fault::Kind;
use crate::{admin, token};

/// The largest request body: a batch of a thousand queries is about a tenth of it.
const MAX_BODY_BYTES: usize = 10 << 20;
/// Where the admin endpoints live.
const ADMIN: &str = "/__emu/";

/// Answers one request. Does not return when a fault breaks the connection instead.
pub(super) async fn serve(
    app: Arc<App>,
    cut: Cut,
    own_url: Arc<str>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (head, body) = request.into_parts();
    let is_admin = head.uri.path().starts_with(ADMIN);
    let under_way = (!is_admin).then(|| UnderWay::begin(&app, head.version == Version::HTTP_2));
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .map_err(|_| ApiError::too_large());
    let call = call(&head, body.as_deref().unwrap_or_default());
    let format = Format {
        pretty: call.format().pretty && !is_admin,
        ..call.format()
    };
    let mut reply = match &body {
        Ok(_) => dispatch(&app, &own_url, &head, call).await,
        Err(error) => error.clone().into(),
    };
    if !is_admin {
        wait(&app, reply.rows).await;
    }
    if reply.status == 0 {
        cut.reset();
        return future::pending().await;
    }
    let cuts_json = reply
        .wire
        .is_some_and(|fault| fault.kind == Kind::TruncatedJson);
    let gzip = format.gzip && !cuts_json;
    let (bytes, is_gzip) = reply.bytes(Format { gzip, ..format });
    if !is_admin {
        app.stats().bytes_out += bytes.len() as u64;
    }
    let site_call = reply.under_way.take();
    let (body, length) = AnswerBody::new(bytes, reply.wire, cut, (under_way, site_call));
    Ok(response(&reply, is_gzip, length, body))
}

fn call<'a>(head: &'a Parts, body: &'a [u8]) -> Call<'a> {
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let accepts = header(ACCEPT_ENCODING).unwrap_or_default();
    Call {
        method: &head.method,
        path: head.uri.path(),
        parameters: head.uri.query().unwrap_or_default(),
        authorization: header(AUTHORIZATION),
        body,
        gzip: accepts.split(',').any(|coding| {
            let mut words = coding.split(';').map(str::trim);
            words.next() == Some("gzip") && !words.any(|word| word == "q=0")
        }),
    }
}

async fn dispatch(app: &Arc<App>, own_url: &str, head: &Parts, call: Call<'_>) -> Reply {
    match call.path {
        path if path.starts_with(ADMIN) => admin::answer(app, call).await,
        "/token" => token::answer(app, call, own_url),
        "/$discovery/rest" => {
            app.stats().call("discovery");
            app.stats().status(200);
            Reply::text(
                200,
                "application/json; charset=UTF-8",
                api::discovery_document(own_url),
            )
        }
        "/batch" | "/batch/webmasters/v3" => {
            app.stats().call("batch");
            let content_type = head
                .headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            api::answer_batch(app, call, content_type.unwrap_or_default()).await
        }
        _ => api::answer(app, call).await,
    }
}

async fn wait(app: &App, rows: usize) {
    let config = app.config();
    let index = app.stats().requests;
    let delay = config.latency.delay(config.fault_seed, index, rows);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

fn response(reply: &Reply, is_gzip: bool, length: usize, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Ok(content_type) = reply.content_type.parse() {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers.insert(CONTENT_LENGTH, length.into());
    if is_gzip {
        headers.insert(
            CONTENT_ENCODING,
            hyper::header::HeaderValue::from_static("gzip"),
        );
    }
    if let Some(seconds) = reply.retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}
