//! What is refused before anybody looks at it: too many headers, a `Host` that is not ours, a web page of
//! another origin. A page that a user's browser opens can reach a loopback port, through a name of its own
//! that resolves there (DNS rebinding); it cannot choose the `Host` and `Origin` that the browser sends.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::Response;
use shared::config::ApiConfig;

use super::problem::{Code, Problem};

/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Most bytes of their names and values together.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Under which names the API may be called.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// `None`: any. Lower case, without ports.
    known: Option<Arc<[String]>>,
}

impl Hosts {
    /// As the config says.
    #[must_use]
    pub fn new(config: &ApiConfig) -> Self {
        let listen = config.listen.ip();
        let restricted = listen.is_loopback() || !config.hosts.is_empty();
        let known = || {
            let named = config.hosts.iter().map(|host| host.to_ascii_lowercase());
            let own = (!listen.is_unspecified()).then(|| listen.to_string());
            named.chain(own).collect()
        };
        Self {
            known: restricted.then(known),
        }
    }

    fn allows(&self, host: &Authority) -> bool {
        let Some(known) = &self.known else {
            return true;
        };
        let name = bare(host);
        let is_loopback = name == "localhost"
            || name
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        is_loopback || known.iter().any(|known| bare_text(known) == name)
    }
}

/// Refuses what no route should see.
pub(super) async fn guard(
    State(hosts): State<Hosts>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    check_size(request.headers())?;
    // Probes come by address, and tell nothing.
    if !matches!(request.uri().path(), "/healthz" | "/readyz") {
        let host = host(request.uri(), request.headers())?;
        if !hosts.allows(&host) {
            return Err(Problem::new(
                Code::UnknownHost,
                format!(
                    "the request is for {:?}: name it in api.hosts if that is this coordinator",
                    host.host()
                ),
            ));
        }
        if let Some(origin) = request.headers().get(header::ORIGIN)
            && !is_same(origin, &host)
        {
            return Err(Problem::new(
                Code::ForeignOrigin,
                "a web page of another origin may not use this API",
            ));
        }
    }
    Ok(next.run(request).await)
}

fn check_size(headers: &HeaderMap) -> Result<(), Problem> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(Problem::new(
            Code::HeadersTooLarge,
            format!("at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together are read"),
        ));
    }
    Ok(())
}

fn host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
    // A request line with a whole URL wins over the header (RFC 9112, 3.2.2).
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let sent = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        _ => None,
    };
    sent.ok_or_else(|| Problem::new(Code::BadHost, "send one Host header with the API's address"))
}

fn is_same(origin: &HeaderValue, host: &Authority) -> bool {
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    // Behind a proxy that ends TLS the scheme says nothing; host and port do.
    origin
        .as_ref()
        .and_then(Uri::authority)
        .is_some_and(|origin| origin.as_str().eq_ignore_ascii_case(host.as_str()))
}

/// The host without port and brackets, in lower case.
fn bare(host: &Authority) -> String {
    bare_text(&host.host().to_ascii_lowercase()).to_owned()
}

fn bare_text(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listen: &str, named: &[&str]) -> Hosts {
        Hosts::new(&ApiConfig {
            listen: listen.parse().unwrap(),
            hosts: named.iter().map(|&name| name.to_owned()).collect(),
            ..ApiConfig::default()
        })
    }

    #[test]
    fn loopback_is_reached_by_its_own_names_alone() {
        let cases = [
            ("127.0.0.1:8420", &[][..], "localhost:8420", true),
            ("127.0.0.1:8420", &[], "127.0.0.1", true),
            ("127.0.0.1:8420", &[], "[::1]:8420", true),
            ("127.0.0.1:8420", &[], "LOCALHOST", true),
            ("127.0.0.1:8420", &[], "evil.example", false),
            ("127.0.0.1:8420", &[], "localhost.evil.example", false),
            (
                "127.0.0.1:8420",
                &["tide.example"],
                "Tide.example:443",
                true,
            ),
            ("10.0.0.7:8420", &[], "anything.example", true),
            ("10.0.0.7:8420", &["tide.example"], "10.0.0.7:8420", true),
            ("10.0.0.7:8420", &["tide.example"], "evil.example", false),
            ("0.0.0.0:8420", &["tide.example"], "tide.example", true),
            ("[::1]:8420", &[], "[::1]:8420", true),
        ];
        for (listen, named, host, expected) in cases {
            let allowed = hosts(listen, named).allows(&host.parse().unwrap());
            assert_eq!(allowed, expected, "{listen} {named:?}: {host}");
        }
    }

    #[test]
    fn an_origin_is_the_host_itself() {
        let host: Authority = "localhost:8420".parse().unwrap();
        let same = |origin: &str| is_same(&HeaderValue::from_str(origin).unwrap(), &host);
        assert!(same("http://localhost:8420") && same("https://LOCALHOST:8420"));
        for foreign in [
            "null",
            "http://localhost",
            "http://evil.example:8420",
            "",
            "x y",
        ] {
            assert!(!same(foreign), "{foreign}");
        }
    }
}
