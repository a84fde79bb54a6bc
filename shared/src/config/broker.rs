//! `[broker]`: how to reach RabbitMQ.

use std::path::PathBuf;
use std::sync::Arc;

use lapin::uri::AMQPUri;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use super::tls::{self, is_this_machine};
use super::{ConfigError, Span, secret};
use crate::tls::ClientFiles;

/// How to reach RabbitMQ. `TIDEGATE_BROKER__…`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// `amqp://user:password@host:5672/vhost` (`%2f` is the vhost `/`), or `amqps://`.
    /// Default `amqp://guest:guest@127.0.0.1:5672/%2f`. `?frame_max=` says how many bytes go in one AMQP frame
    /// (default 16384); a connection's buffers are 64 of them.
    pub url: SecretString,
    /// A file with the password, such as a mounted secret, read for each connection. Not together with a password in
    /// `url`, which names the user alone: `amqps://tidegate-worker@host/vhost`.
    pub password_file: Option<PathBuf>,
    /// `amqps`: PEM file with the certificates of the CAs that are trusted, and no others. Default: those of the
    /// machine. The broker's certificate has to be valid for the host in `url`; it cannot be told to do without. Read
    /// for each connection, as are the next two: what is put in their place holds from then on.
    pub ca_file: Option<PathBuf>,
    /// `amqps`: PEM file with our certificate, and intermediate ones after it, for a broker that asks for one. With
    /// `?auth_mechanism=external` in `url` it takes the password's place, where the broker maps it to a user.
    pub cert_file: Option<PathBuf>,
    /// `amqps`: PEM file with the key of `cert_file`, not encrypted.
    pub key_file: Option<PathBuf>,
    /// The same from a file, such as a mounted secret. Not together with `url`.
    pub url_file: Option<PathBuf>,
    /// Who declares exchanges and queues: the coordinator, or somebody else before it starts.
    pub topology: TopologyMode,
    /// How long a starting process waits for a broker that does not answer. Default 60 s, then it exits
    /// with 69. Too short, and containers that start together give up; later outages are waited out for ever.
    pub start_timeout: Span,
    /// Longest wait for a connection, until it is logged in. Default 5 s. Of a cluster's node that died nothing comes
    /// back, not even a refusal; the next try goes to another one. Too short, and a busy broker is never reached.
    pub connect_timeout: Span,
    /// Longest wait for any other single answer of the broker (declare, confirm). Default 30 s.
    pub answer_timeout: Span,
    /// Between heartbeats, in whole seconds (1 s–1 min). Default 10 s: the batches of a worker that fell silent come
    /// back after two to three of them. RabbitMQ recommends 5–20 s (its guide "Detecting Dead TCP Connections with
    /// Heartbeats"); shorter takes a busy network for a dead one. Where the broker wants less, that holds.
    pub heartbeat: Span,
    /// What `consumer_timeout` in the broker's `rabbitmq.conf` says, RabbitMQ's own default: 30 min. Later it takes
    /// a delivery back that was not acked, so no pipeline's deadline may come near it. It cannot be read over AMQP;
    /// too high here, and the longest batches run twice and are stored once.
    pub consumer_timeout: Span,
}

/// Who owns the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopologyMode {
    /// The coordinator declares it.
    #[default]
    Declare,
    /// An operator or init job declares it; the coordinator only checks that it is there.
    Check,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            url: SecretString::from("amqp://guest:guest@127.0.0.1:5672/%2f"),
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            url_file: None,
            topology: TopologyMode::Declare,
            start_timeout: Span::seconds(60),
            connect_timeout: Span::seconds(5),
            answer_timeout: Span::seconds(30),
            heartbeat: Span::seconds(10),
            consumer_timeout: Span::seconds(30 * 60),
        }
    }
}

impl BrokerConfig {
    const MAX_HEARTBEAT: Span = Span::seconds(60);

    /// Most bytes of a frame: lapin keeps 64 of them as buffers for each connection, which with RabbitMQ's own
    /// 128 KiB are 8 MiB. What is larger goes in several frames.
    const FRAME_MAX: u32 = 16 * 1024;

    /// The URL for the AMQP client: with the password of `password_file`, if there is one, with our heartbeat, and with
    /// our frame size unless it names one.
    ///
    /// # Panics
    /// Never: the URL was parsed when the config was loaded.
    pub fn client_url(&self) -> Result<SecretString, ConfigError> {
        let mut url =
            Url::parse(self.url.expose_secret()).expect("checked when the config was loaded");
        if let Some(path) = &self.password_file {
            let password = secret::from_file("broker.password_file", path)?;
            // It encodes what has a meaning in a URL, and takes '%' for the beginning of what is encoded already.
            let password = password.expose_secret().replace('%', "%25");
            url.set_password(Some(&password))
                .expect("a URL with a host takes a password");
        }
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| key != "heartbeat")
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        let names_frame_size = kept.iter().any(|(key, _)| key == "frame_max");
        let mut query = url.query_pairs_mut();
        query
            .clear()
            .extend_pairs(kept)
            .append_pair("heartbeat", &self.heartbeat.get().as_secs().to_string());
        if !names_frame_size {
            query.append_pair("frame_max", &Self::FRAME_MAX.to_string());
        }
        drop(query);
        Ok(SecretString::from(String::from(url)))
    }

    /// The same in the client's own form.
    pub fn client_uri(&self) -> Result<AMQPUri, ConfigError> {
        let url = self.client_url()?;
        let parsed = url.expose_secret().parse();
        parsed.map_err(|problem: String| ConfigError::wrong("broker.url", problem))
    }

    /// How to speak TLS to it, from the files as they are now; `None` for `amqp://`, which does not.
    pub fn client_tls(&self) -> Result<Option<Arc<ClientConfig>>, ConfigError> {
        if !self.is_tls() {
            return Ok(None);
        }
        let read = self.tls_files()?.read();
        read.map(Some)
            .map_err(|problem| ConfigError::wrong("broker", problem.to_string()))
    }

    fn is_tls(&self) -> bool {
        Url::parse(self.url.expose_secret()).is_ok_and(|url| url.scheme() == "amqps")
    }

    fn tls_files(&self) -> Result<ClientFiles, ConfigError> {
        Ok(ClientFiles {
            ca: self.ca_file.clone(),
            identity: tls::identity("broker", self.cert_file.as_ref(), self.key_file.as_ref())?,
        })
    }

    /// Who can read along.
    pub(super) fn unprotected(&self) -> Option<String> {
        let url = Url::parse(self.url.expose_secret()).ok()?;
        let is_plain = !self.is_tls() && !is_this_machine(url.host_str()?);
        is_plain.then(|| format!("{} is not encrypted: use amqps://", self.address()))
    }

    /// Host, port and vhost without user and password, for logs and errors.
    #[must_use]
    pub fn address(&self) -> String {
        match Url::parse(self.url.expose_secret()) {
            Ok(url) => format!(
                "{}://{}:{}{}",
                url.scheme(),
                url.host_str().unwrap_or("localhost"),
                url.port()
                    .unwrap_or(if url.scheme() == "amqps" { 5671 } else { 5672 }),
                url.path()
            ),
            Err(_) => "an unusable URL".to_owned(),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.heartbeat.get().subsec_nanos() != 0 || self.heartbeat > Self::MAX_HEARTBEAT {
            let problem = format!(
                "must be 1s to {} in whole seconds, is {}",
                Self::MAX_HEARTBEAT,
                self.heartbeat
            );
            return Err(ConfigError::wrong("broker.heartbeat", problem));
        }
        let hint = "write amqp://user:password@host:5672/vhost, with special characters percent-encoded \
                    ('@' is %40, '/' is %2f)";
        let url = Url::parse(self.url.expose_secret())
            .map_err(|e| ConfigError::wrong("broker.url", format!("is no URL ({e}): {hint}")))?;
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return Err(ConfigError::wrong(
                "broker.url",
                format!("has the scheme {:?}: {hint}", url.scheme()),
            ));
        }
        if url.path().contains('@') {
            return Err(ConfigError::wrong(
                "broker.url",
                format!("has an '@' after the host: {hint}"),
            ));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(ConfigError::wrong(
                "broker.url",
                format!("names no host: {hint}"),
            ));
        }
        if matches!(url.host(), Some(Host::Ipv6(_))) {
            // It would go to localhost (amq-protocol-uri 10.6).
            let problem =
                "has an IPv6 address, which the AMQP client does not take: give it a name";
            return Err(ConfigError::wrong("broker.url", problem));
        }
        if self.password_file.is_some() && url.password().is_some() {
            let problem =
                "is set together with a password in broker.url: leave one of them out".to_owned();
            return Err(ConfigError::wrong("broker.password_file", problem));
        }
        if !self.is_tls() && self.tls_files()? != ClientFiles::default() {
            let problem = "is amqp://, and certificates belong to amqps://";
            return Err(ConfigError::wrong("broker.url", problem));
        }
        self.client_uri()?;
        self.client_tls()?;
        Ok(())
    }
}
