//! How the coordinator is spoken to: the token, the errors. What it is asked is in [`crate::requests`].

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::tls::Untrusted;
use url::Url;

use crate::args::Common;
use crate::failure::Failure;
use crate::output;

/// Variable with the API token.
const TOKEN_VARIABLE: &str = "TIDEGATE_TOKEN";
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of a submission that was broken off and repeated before the coordinator noticed the break.
const UNDER_WAY: &str = "submission_under_way";

/// Speaks to one coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No connection, or it broke before the answer.
    #[error(
        "cannot reach the coordinator at {url} ({problem}): check that `coordinator` runs and listens there; \
         --url or TIDEGATE_URL says where to look"
    )]
    Unreachable {
        /// Where it was looked for.
        url: Url,
        /// What the network said.
        problem: String,
    },
    /// Whoever answers, it cannot be known that it is the coordinator.
    #[error("the coordinator at {url} is not trusted: {problem}")]
    Untrusted {
        /// Who answered.
        url: Url,
        /// Why, and what to do.
        problem: Untrusted,
    },
    /// It answers, and cannot do it now.
    #[error("the coordinator at {url} takes nothing now: {problem}; try again later")]
    Busy {
        /// Who answered.
        url: Url,
        /// What it said.
        problem: Problem,
    },
    /// The token is missing or wrong.
    #[error(
        "the coordinator at {url} does not accept the token: {problem}; set TIDEGATE_TOKEN or --token-file"
    )]
    Unauthorized {
        /// Who answered.
        url: Url,
        /// What it said.
        problem: Problem,
    },
    /// It will not do it.
    #[error("{0}")]
    Refused(Problem),
    /// Somebody else answered.
    #[error(
        "what answers at {url} is no Tidegate coordinator of this version ({problem}): check --url or TIDEGATE_URL"
    )]
    NotTidegate {
        /// Who answered.
        url: Url,
        /// What was unexpected.
        problem: String,
    },
}

impl ApiError {
    /// Whether the same question may be answered later: the coordinator is being restarted or is busy.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}

/// The coordinator's own words (`application/problem+json`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    title: String,
    code: String,
    detail: String,
    line: Option<u64>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        })?;
        if let Some(line) = self.line {
            write!(f, " (batch {line} of the submission)")?;
        }
        if !self.code.is_empty() {
            write!(f, " [{}]", self.code)?;
        }
        Ok(())
    }
}

impl Client {
    /// Prepares to speak to the coordinator that the command line names. Opens no connection.
    pub(crate) fn new(common: &Common) -> Result<Self, Failure> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none());
        let is_plain = common.url.scheme() == "http";
        if is_plain {
            // Without this, a machine without CA certificates could not even speak plain HTTP.
            http = http.tls_certs_only([]);
        } else if let Some(file) = &common.ca_file {
            http = http.tls_certs_only(certificates(file)?);
        }
        if is_loopback(&common.url) {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|e| Failure::config(format!("cannot set up HTTP: {}", root_cause(&e))))?;
        let token = token(common.token_file.as_deref())?;
        if is_plain && token.is_some() && !is_loopback(&common.url) {
            let warning = format!(
                "warning: the token goes to {} unencrypted: use https://",
                common.url
            );
            output::say(&warning);
        }
        Ok(Self {
            http,
            base: common.url.clone(),
            token,
        })
    }

    /// A request to `/api/v1/…`.
    pub(crate) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.url(path))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an http URL has a path")
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        url
    }

    /// Sends it and reads the answer.
    pub(crate) async fn answer<T: DeserializeOwned>(
        &self,
        mut request: RequestBuilder,
    ) -> Result<T, ApiError> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        let unreachable = |error: &reqwest::Error| {
            let url = self.base.clone();
            match Untrusted::find(error, "--ca-file or TIDEGATE_CA_FILE", "the proxy's rules") {
                Some(problem) => ApiError::Untrusted { url, problem },
                None => ApiError::Unreachable {
                    url,
                    problem: root_cause(error),
                },
            }
        };
        let response = request.send().await.map_err(|e| unreachable(&e))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(response).await);
        }
        let body = response.bytes().await.map_err(|e| unreachable(&e))?;
        serde_json::from_slice(&body).map_err(|e| ApiError::NotTidegate {
            url: self.base.clone(),
            problem: e.to_string(),
        })
    }

    async fn refusal(&self, response: Response) -> ApiError {
        let url = self.base.clone();
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let problem: Option<Problem> = serde_json::from_slice(&body).ok();
        // A proxy in between has its own error pages, so 5xx counts without a problem document too.
        let busy = status == StatusCode::TOO_MANY_REQUESTS
            || status.is_server_error()
            || problem.as_ref().is_some_and(|p| p.code == UNDER_WAY);
        let said = |problem: Option<Problem>| {
            problem.unwrap_or_else(|| Problem {
                title: status.to_string(),
                ..Problem::default()
            })
        };
        match problem {
            problem if busy => ApiError::Busy {
                url,
                problem: said(problem),
            },
            problem if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN => {
                ApiError::Unauthorized {
                    url,
                    problem: said(problem),
                }
            }
            Some(problem) => ApiError::Refused(problem),
            None => ApiError::NotTidegate {
                url,
                problem: status.to_string(),
            },
        }
    }
}

/// What `--ca-file` names.
fn certificates(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let wrong = |problem: String| {
        let message = format!("cannot use the CA file {}: {problem}", file.display());
        Failure::config(message)
    };
    let pem = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(root_cause(&e)))?;
    if found.is_empty() {
        return Err(wrong("it holds no certificate in PEM".to_owned()));
    }
    Ok(found)
}

/// The token from the file if one is named, else from the environment.
fn token(file: Option<&Path>) -> Result<Option<SecretString>, Failure> {
    let (source, text) = match file {
        Some(path) => {
            let source = format!("the token file {}", path.display());
            let text = std::fs::read_to_string(path)
                .map_err(|e| Failure::config(format!("cannot read {source}: {e}")))?;
            (source, text)
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => (TOKEN_VARIABLE.to_owned(), text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::config(format!("{TOKEN_VARIABLE} is no UTF-8")));
            }
        },
    };
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message =
            format!("{source} holds no token: one word of visible ASCII characters is expected");
        return Err(Failure::config(message));
    }
    Ok(Some(SecretString::from(text)))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The innermost reason: the outer ones only repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_connect() {
        cause.to_string()
    } else {
        format!("the connection broke: {cause}")
    }
}
