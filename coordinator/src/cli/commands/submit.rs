//! `tidegate submit`: a file of items becomes a run, whole or not at all.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use coordinator::run::Priority;
use shared::name::PipelineName;
use uuid::Uuid;

use super::Session;
use crate::args::{NewRun, Submit};
use crate::client::ApiError;
use crate::failure::Failure;
use crate::items::{Batches, Grouping, ItemsError};
use crate::output;
use crate::requests::Submission;
use crate::upload::Upload;

/// FILE for stdin.
const STDIN: &str = "-";
/// How much is read from a file at a time.
const READ_BYTES: usize = 256 * 1024;

pub(super) async fn submit(session: &Session, args: Submit) -> Result<u8, Failure> {
    let grouping = Grouping {
        key_field: args.key_field,
        batch_size: usize::try_from(args.batch_size).expect("at most 100,000"),
    };
    let source = if args.file.as_os_str() == STDIN {
        "stdin".to_owned()
    } else {
        args.file.display().to_string()
    };
    let input = open(&args.file, &grouping).map_err(|error| Failure::input(&source, &error))?;
    let watch = args.run.watch;
    let submission = submission(args.pipeline, args.priority, args.run);

    let upload = Upload::start(Batches::new(input, grouping));
    let answer = session.client.submit(&submission, upload.body).await;
    if let Ok(problem) = upload.problem.try_recv() {
        return Err(Failure::input(&source, &problem));
    }
    let run = answer.map_err(|error| repeatable(error, &submission.idempotency_key))?;
    session.accepted(run, watch).await
}

pub(super) fn submission(pipeline: PipelineName, priority: Priority, run: NewRun) -> Submission {
    Submission {
        pipeline,
        priority,
        idempotency_key: run
            .idempotency_key
            .unwrap_or_else(|| Uuid::now_v7().to_string()),
        webhook: run.webhook,
    }
}

/// The connection may have broken after the run was recorded, so say how to ask again.
pub(super) fn repeatable(error: ApiError, idempotency_key: &str) -> Failure {
    let may_pass = error.may_pass();
    let failure = Failure::from(error);
    if !may_pass {
        return failure;
    }
    let message = format!(
        "{failure}; to repeat it without making a second run, add --idempotency-key {idempotency_key}"
    );
    Failure { message, ..failure }
}

/// Opens the input. A file that can be read twice is checked first, so that a bad one is refused before
/// the coordinator hears of it; of a pipe, the coordinator forgets what it got when it breaks off.
fn open(file: &Path, grouping: &Grouping) -> Result<Box<dyn BufRead + Send>, ItemsError> {
    if file.as_os_str() == STDIN {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let input = File::open(file)?;
    if !input.metadata()?.is_file() {
        return Ok(Box::new(BufReader::with_capacity(READ_BYTES, input)));
    }
    let (mut items, mut batches) = (0, 0);
    for batch in Batches::new(
        BufReader::with_capacity(READ_BYTES, input),
        grouping.clone(),
    ) {
        items += batch?.items;
        batches += 1;
    }
    output::say(&format!(
        "{}: {items} items in {batches} batches",
        file.display()
    ));
    Ok(Box::new(BufReader::with_capacity(
        READ_BYTES,
        File::open(file)?,
    )))
}
