//! Real processes. Whoever must be gone writes its number into a file first, so that one can look.

mod batch;
mod bounds;
mod lines;

use std::path::Path;
use std::time::Instant;

use shared::batch::Batch;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Key};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::collect::AnyJson;
use crate::cursor::Cursor;
use crate::handler::Rows;
use crate::holding::Reporter;
use crate::permits::Unlimited;

/// A deadline that a passing test never reaches.
const NEVER: Duration = Duration::from_mins(1);

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn exec(command: &[&str], environment: &[&str]) -> Exec {
    configured(&PipelineConfig {
        command: texts(command),
        environment: texts(environment),
        ..PipelineConfig::default()
    })
}

fn configured(config: &PipelineConfig) -> Exec {
    const SLOTS: u32 = 4;
    Exec::new(
        &PipelineName::new("hashes").unwrap(),
        config,
        SLOTS,
        Arc::new(AnyJson),
    )
    .unwrap()
}

fn context(payload: &str, deadline: Duration) -> BatchContext {
    let batch = Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new("hashes").unwrap(),
        key: Key::new("tenant ä").unwrap(),
        attempt: Attempt::new(3),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
    };
    BatchContext {
        batch: batch.into(),
        deadline: Instant::now() + deadline,
        cancelled: CancellationToken::new(),
        permits: Unlimited::shared(),
        saved: Cursor::default(),
        reporter: Reporter::default(),
    }
}

async fn handle(exec: &Exec, ctx: &BatchContext) -> Result<Vec<String>, HandlerError> {
    let output = exec.handle(ctx.batch.payload.clone(), ctx).await?;
    match output.rows {
        Rows::Json(rows) => Ok(rows.iter().map(str::to_owned).collect()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(result: Result<Vec<String>, HandlerError>, expected: &str) -> String {
    match result {
        Err(HandlerError::Fail { reason, error }) => {
            assert_eq!(reason, expected, "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn retried(result: Result<Vec<String>, HandlerError>) -> String {
    match result {
        Err(HandlerError::Retry { error, after: None }) => error,
        other => panic!("{other:?}"),
    }
}

/// Waits until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} never happened"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

fn number_in(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// Whether a process runs. A zombie that nobody fetched does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}
