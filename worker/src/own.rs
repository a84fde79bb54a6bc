//! The handlers that a worker's program brings along, and whether they fit what is configured.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::config::{HandlerKind, PipelineConfig};
use shared::name::{NameError, PipelineName};

use crate::registry::AnyHandler;

/// Handlers in Rust by the pipeline that they serve.
#[derive(Clone, Default)]
pub struct OwnHandlers {
    handlers: BTreeMap<PipelineName, Arc<dyn AnyHandler>>,
}

/// Program and configuration contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnHandlersError {
    /// The program serves something that cannot be a pipeline.
    #[error("the program serves a pipeline that cannot be: {0}")]
    Name(#[from] NameError),
    /// The program has two handlers for one pipeline.
    #[error("the program serves pipeline {0} twice: leave one out")]
    Twice(PipelineName),
    /// The program serves something that nobody can submit to.
    #[error(
        "the program serves pipeline {name}, which is not configured: add a section [pipelines.{name}] for \
         coordinator and workers (configured are {configured})"
    )]
    NotConfigured {
        /// The pipeline.
        name: PipelineName,
        /// What there is.
        configured: String,
    },
    /// The configuration has its own idea of what does the work.
    #[error(
        "pipelines.{0}: has a handler of its own, and the program has another one: leave out handler, command and url"
    )]
    Configured(PipelineName),
    /// Nobody does the work.
    #[error(
        "pipelines.{0}: nothing here does its work. Give it a command, or handler = \"http\" and a url; or start the \
         program that serves it, Worker::new().serve(\"{0}\", …); or let this worker serve others alone \
         (worker.pipelines)"
    )]
    Nobody(PipelineName),
}

impl OwnHandlers {
    /// The same and one more.
    pub fn with(
        mut self,
        pipeline: &str,
        handler: Arc<dyn AnyHandler>,
    ) -> Result<Self, OwnHandlersError> {
        let name = PipelineName::new(pipeline)?;
        match self.handlers.insert(name.clone(), handler) {
            None => Ok(self),
            Some(_) => Err(OwnHandlersError::Twice(name)),
        }
    }

    /// Checks that each serves a pipeline that is there for it.
    pub fn check(
        &self,
        pipelines: &BTreeMap<PipelineName, PipelineConfig>,
    ) -> Result<(), OwnHandlersError> {
        for name in self.handlers.keys() {
            match pipelines.get(name).map(PipelineConfig::handler) {
                Some(HandlerKind::Library) => {}
                Some(_) => return Err(OwnHandlersError::Configured(name.clone())),
                None => {
                    let known: Vec<&str> = pipelines.keys().map(PipelineName::as_str).collect();
                    return Err(OwnHandlersError::NotConfigured {
                        name: name.clone(),
                        configured: known.join(", "),
                    });
                }
            }
        }
        Ok(())
    }

    /// The one for this pipeline.
    pub fn get(&self, name: &PipelineName) -> Result<Arc<dyn AnyHandler>, OwnHandlersError> {
        let handler = self.handlers.get(name).cloned();
        handler.ok_or_else(|| OwnHandlersError::Nobody(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::noop::Noop;

    fn own(names: &[&str]) -> Result<OwnHandlers, OwnHandlersError> {
        let mut own = OwnHandlers::default();
        for name in names {
            own = own.with(name, Arc::new(Noop))?;
        }
        Ok(own)
    }

    fn checked(own: &OwnHandlers, handler: Option<HandlerKind>) -> Result<(), OwnHandlersError> {
        let pipeline = PipelineConfig {
            handler,
            ..PipelineConfig::default()
        };
        let name = PipelineName::new("thumbnails").unwrap();
        own.check(&BTreeMap::from([(name, pipeline)]))
    }

    #[test]
    fn a_handler_serves_a_pipeline_that_is_there_for_it() {
        let thumbnails = own(&["thumbnails"]).unwrap();
        checked(&thumbnails, None).unwrap();
        checked(&thumbnails, Some(HandlerKind::Library)).unwrap();
        thumbnails
            .get(&PipelineName::new("thumbnails").unwrap())
            .unwrap();
    }

    #[test]
    fn contradictions_are_named() {
        let error = |result: Result<(), OwnHandlersError>| result.unwrap_err().to_string();
        let thumbnails = own(&["thumbnails"]).unwrap();
        let other = error(checked(&thumbnails, Some(HandlerKind::Noop)));
        assert!(
            other.contains("pipelines.thumbnails: has a handler"),
            "{other}"
        );
        let unknown = error(checked(&own(&["thumbnial"]).unwrap(), None));
        assert!(unknown.contains("[pipelines.thumbnial]"), "{unknown}");
        assert!(unknown.contains("configured are thumbnails"), "{unknown}");
        let twice = error(own(&["a", "a"]).map(drop));
        assert!(twice.contains("pipeline a twice"), "{twice}");
        let unusable = error(own(&["Thumb nails"]).map(drop));
        assert!(
            unusable.contains("\"Thumb nails\" is not usable"),
            "{unusable}"
        );
        let nobody = thumbnails.get(&PipelineName::new("other").unwrap());
        let nobody = error(nobody.map(drop));
        assert!(nobody.contains("Worker::new().serve(\"other\""), "{nobody}");
    }
}
