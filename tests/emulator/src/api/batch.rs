//! `POST /batch`: many calls in one `multipart/mixed` body, answered in one.

use std::sync::Arc;

use hyper::Method;

use super::error::ApiError;
use super::reply::{Body, Reply};
use super::{Call, Format, answer as answer_call};
use crate::app::App;
use crate::generator::mix;

/// The most parts a batch may have.
const MAX_PARTS: usize = 1_000;
/// The beginning of a response's id.
const RESPONSE: &str = "response-";

/// One part: an HTTP request in text.
#[derive(Debug, PartialEq, Eq)]
struct Part<'a> {
    id: Option<&'a str>,
    method: Method,
    path: &'a str,
    parameters: &'a str,
    authorization: Option<&'a str>,
    body: &'a str,
}

/// Answers a batch; `outer` is the request that carried it.
pub(crate) async fn answer(app: &Arc<App>, outer: Call<'_>, content_type: &str) -> Reply {
    let parts = match read(content_type, outer.body) {
        Ok(parts) => parts,
        Err(error) => {
            app.stats().status(error.status);
            return error.into();
        }
    };
    let boundary = format!("batch_{:016x}", mix(rand::random()));
    let mut text: Vec<u8> = Vec::new();
    let mut whole = Reply::new(200, Body::Text(String::new()));
    for part in &parts {
        app.stats().batch_parts += 1;
        let call = Call {
            method: &part.method,
            path: part.path,
            parameters: part.parameters,
            authorization: part.authorization.or(outer.authorization),
            body: part.body.as_bytes(),
            gzip: false,
        };
        let reply = answer_call(app, call).await;
        // One connection carries all parts: what breaks it for one breaks it for all.
        whole.wire = whole.wire.or(reply.wire);
        whole.rows += reply.rows;
        write(&mut text, &boundary, part.id, &reply, call.format());
    }
    text.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    whole.content_type = format!("multipart/mixed; boundary={boundary}");
    whole.body = Body::Text(String::from_utf8_lossy(&text).into_owned());
    whole
}

fn write(out: &mut Vec<u8>, boundary: &str, id: Option<&str>, reply: &Reply, format: Format) {
    let (body, _) = reply.bytes(Format {
        gzip: false,
        ..format
    });
    let status =
        hyper::StatusCode::from_u16(reply.status).unwrap_or(hyper::StatusCode::BAD_GATEWAY);
    let id = id.map_or(String::new(), |id| {
        format!(
            "Content-ID: <{RESPONSE}{}>\r\n",
            id.trim_start_matches('<').trim_end_matches('>')
        )
    });
    let reason = status.canonical_reason().unwrap_or_default();
    let head = format!(
        "--{boundary}\r\nContent-Type: application/http\r\n{id}\r\nHTTP/1.1 {} {reason}\r\n\
         Content-Type: {}\r\nContent-Length: {}\r\n\r\n",
        status.as_u16(),
        reply.content_type,
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&body);
    out.extend_from_slice(b"\r\n");
}

fn read<'a>(content_type: &str, body: &'a [u8]) -> Result<Vec<Part<'a>>, ApiError> {
    let malformed =
        || ApiError::bad_request("Failed to parse batch request, error: malformed multipart body.");
    let boundary = boundary(content_type).ok_or_else(malformed)?;
    let text = std::str::from_utf8(body).map_err(|_| malformed())?;
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    // What comes before the first delimiter and after the closing one is no part.
    for piece in text
        .split(&delimiter)
        .skip(1)
        .take_while(|piece| !piece.starts_with("--"))
    {
        parts.push(part(piece).ok_or_else(malformed)?);
        if parts.len() > MAX_PARTS {
            return Err(ApiError::bad_request(
                "The number of calls in a batch must not exceed 1000.",
            ));
        }
    }
    if parts.is_empty() {
        Err(malformed())
    } else {
        Ok(parts)
    }
}

fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("boundary")
            .then(|| value.trim().trim_matches('"'))
    })
}

/// Headers, an empty line, then a request: its line, its headers, an empty line, its body. Lines end with
/// LF or CRLF.
fn part(piece: &str) -> Option<Part<'_>> {
    let (outer, inner) = split_head(piece.trim_start_matches(['\r', '\n']))?;
    let (head, body) = split_head(inner).unwrap_or((inner, ""));
    let (request_line, headers) = head.trim_start().split_once('\n').unwrap_or((head, ""));
    let mut words = request_line.split_whitespace();
    let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
    let target = words.next()?;
    let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
    Some(Part {
        id: header(outer, "content-id"),
        method,
        path,
        parameters,
        authorization: header(headers, "authorization"),
        body: body.trim(),
    })
}

/// What is before and after the first empty line.
fn split_head(text: &str) -> Option<(&str, &str)> {
    let unix = text.find("\n\n").map(|at| (at, at + 2));
    let dos = text.find("\r\n\r\n").map(|at| (at, at + 4));
    let (end, start) = unix.into_iter().chain(dos).min()?;
    Some((&text[..end], &text[start..]))
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case(wanted)
            .then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "--b\nContent-Type: application/http\nContent-ID: <x + 1>\n\n\
        POST /v3/q?alt=json HTTP/1.1\nAuthorization: Bearer t\n\n{\"a\":1}\n--b\n\
        Content-Type: application/http\n\nGET /v3/sites HTTP/1.1\n\n--b--\n";

    #[test]
    fn parts_are_read_with_either_line_ending() {
        for body in [BODY.to_owned(), BODY.replace('\n', "\r\n")] {
            let parts = read("multipart/mixed; boundary=\"b\"", body.as_bytes()).unwrap();
            assert_eq!(parts.len(), 2);
            assert_eq!(
                (parts[0].id, parts[0].path, parts[0].body),
                (Some("<x + 1>"), "/v3/q", "{\"a\":1}")
            );
            assert_eq!(
                (parts[0].authorization, parts[0].parameters),
                (Some("Bearer t"), "alt=json")
            );
            assert_eq!((&parts[1].method, parts[1].id), (&Method::GET, None));
        }
    }

    #[test]
    fn a_batch_has_at_most_a_thousand_parts() {
        let part = "--b\nContent-Type: application/http\n\nGET / HTTP/1.1\n\n";
        let read = |count| {
            let body = part.repeat(count) + "--b--";
            read("multipart/mixed; boundary=b", body.as_bytes()).map(|parts| parts.len())
        };
        assert_eq!(read(1000), Ok(1000));
        assert_eq!(read(1001).map_err(|error| error.status), Err(400));
        assert_eq!(read(0).map_err(|error| error.status), Err(400));
    }
}
