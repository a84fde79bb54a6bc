//! Does nothing, for measuring and for trying an installation.

use async_trait::async_trait;
use serde::de::IgnoredAny;

use crate::handler::{BatchContext, Handler, HandlerError, Output};

/// Does nothing, successfully.
#[derive(Debug, Clone, Copy, Default)]
pub struct Noop;

#[async_trait]
impl Handler for Noop {
    type Input = IgnoredAny;

    async fn handle(&self, _: IgnoredAny, _: &BatchContext) -> Result<Output, HandlerError> {
        Ok(Output::default())
    }
}
