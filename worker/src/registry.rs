//! Which handler serves which pipeline. The one place where a handler's input type is erased.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metrics::Histogram;
use shared::config::SinkChoice;
use shared::name::PipelineName;

use crate::handler::{BatchContext, Handler, HandlerError, Output};

/// A handler whose payload has been put out of sight.
#[async_trait]
pub trait AnyHandler: Send + Sync + 'static {
    /// Parses the payload and does the work.
    async fn handle(&self, ctx: &BatchContext) -> Result<Output, HandlerError>;

    /// Ends what it keeps from batch to batch.
    async fn close(&self);
}

#[async_trait]
impl<H: Handler> AnyHandler for H {
    async fn handle(&self, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let input = serde_json::from_str(ctx.batch.payload.get()).map_err(|error| {
            HandlerError::fail(
                "bad_payload",
                format!("the payload does not fit this pipeline: {error}"),
            )
        })?;
        Handler::handle(self, input, ctx).await
    }

    async fn close(&self) {
        Handler::close(self).await;
    }
}

/// A pipeline as this worker serves it.
#[derive(Clone)]
pub struct Served {
    /// What does the work.
    pub handler: Arc<dyn AnyHandler>,
    /// Longest run time of one attempt.
    pub deadline: Duration,
    /// Where results are stored, with a commit marker.
    pub sink: SinkChoice,
    /// How long the handler ran. Looked up once, because a batch may take less time than looking it up.
    pub seconds: Histogram,
}

impl Served {
    /// With a metric of this name.
    #[must_use]
    pub fn new(
        name: &PipelineName,
        handler: Arc<dyn AnyHandler>,
        deadline: Duration,
        sink: SinkChoice,
    ) -> Self {
        let name = name.to_string();
        Self {
            handler,
            deadline,
            sink,
            seconds: metrics::histogram!("tidegate_handler_seconds", "pipeline" => name),
        }
    }

    /// Results are counted alone, nothing is measured.
    #[must_use]
    pub fn unstored(handler: Arc<dyn AnyHandler>, deadline: Duration) -> Self {
        Self {
            handler,
            deadline,
            sink: false.into(),
            seconds: Histogram::noop(),
        }
    }
}

/// The pipelines of this worker.
#[derive(Clone, Default)]
pub struct Registry {
    pipelines: BTreeMap<PipelineName, Served>,
}

impl Registry {
    /// Adds a pipeline, or replaces the one of that name.
    pub fn serve(&mut self, name: PipelineName, served: Served) {
        self.pipelines.insert(name, served);
    }

    /// The pipeline of that name.
    #[must_use]
    pub fn get(&self, name: &PipelineName) -> Option<&Served> {
        self.pipelines.get(name)
    }

    /// Ends what the handlers keep, all at once.
    pub async fn close(&self) {
        let handlers = self.pipelines.values().map(|served| served.handler.close());
        futures::future::join_all(handlers).await;
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &PipelineName> {
        self.pipelines.keys()
    }
}
