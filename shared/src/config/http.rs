//! What `handler = "http"` is told.

use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, HandlerKind, PipelineConfig};
use crate::name::PipelineName;
use crate::net::Addresses;

impl PipelineConfig {
    /// A shorter key is guessed rather than leaked.
    const MIN_SECRET_BYTES: usize = 16;

    pub(super) fn check_http(&self, name: &PipelineName) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::wrong(
                format!("pipelines.{name}.{key}"),
                problem,
            ))
        };
        let Some(url) = &self.url else {
            return if self.handler() == HandlerKind::Http {
                wrong("url", "is missing: say where batches are posted".into())
            } else {
                Ok(())
            };
        };
        if self.handler() != HandlerKind::Http {
            return wrong("url", "belongs to handler = \"http\" alone".into());
        }
        // The URL is not repeated: it may hold a secret.
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return wrong("url", "must start with https:// or http://".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return wrong(
                "url",
                "holds a user or password: use the key token instead".into(),
            );
        }
        if let Err(private) = Addresses::allowing_private(self.allow_private).check_literal(url) {
            return wrong(
                "url",
                format!("{private}: set allow_private = true if it is meant to be called"),
            );
        }
        if !is_visible(&self.secret_id) {
            return wrong(
                "secret_id",
                "must be visible ASCII characters without spaces".into(),
            );
        }
        let visible = |token: &SecretString| is_visible(token.expose_secret());
        if !self.token.as_ref().is_none_or(visible) {
            return wrong(
                "token",
                "must be visible ASCII characters without spaces".into(),
            );
        }
        let long_enough =
            |secret: &SecretString| secret.expose_secret().len() >= Self::MIN_SECRET_BYTES;
        if !self.secret.as_ref().is_none_or(long_enough) {
            return wrong(
                "secret",
                format!(
                    "must have {} bytes or more, such as from `openssl rand -hex 32`",
                    Self::MIN_SECRET_BYTES
                ),
            );
        }
        Ok(())
    }
}

/// Whether a header can carry it, as it is.
fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
