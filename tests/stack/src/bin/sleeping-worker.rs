//! A worker whose batches take as long as they say, and that does not heed being told to stop.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use scenario::sleeper::{Done, GO, PIPELINE, STARTS, Task, WORKER_VARIABLE};
use worker::{BatchContext, Handler, HandlerError, Output, Worker, async_trait};

struct Sleeping {
    worker: String,
}

#[async_trait]
impl Handler for Sleeping {
    type Input = Task;

    async fn handle(&self, task: Task, ctx: &BatchContext) -> Result<Output, HandlerError> {
        let done = Done {
            n: task.n,
            batch: ctx.batch.id.to_string(),
            worker: self.worker.clone(),
        };
        note(&done).map_err(|error| HandlerError::fail("no_note", error.to_string()))?;
        match task.ms {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => {
                while !Path::new(GO).exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Output::rows([done])
    }
}

fn note(start: &Done) -> std::io::Result<()> {
    let mut starts = OpenOptions::new().create(true).append(true).open(STARTS)?;
    // One write, so that lines of several workers stay whole.
    starts.write_all(format!("{}\n", serde_json::json!(start)).as_bytes())
}

#[tokio::main]
async fn main() -> ExitCode {
    let worker = std::env::var(WORKER_VARIABLE).unwrap_or_default();
    Worker::new()
        .serve(PIPELINE, Sleeping { worker })
        .run()
        .await
}
