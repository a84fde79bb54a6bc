//! A submission as it comes in: a stream of bytes becomes chunks of batches, and a digest of the whole.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use shared::name::PipelineName;

use super::SubmissionError;
use super::lines::{Lines, read_line};
use crate::ledger::{NewBatch, NewRun};

/// A chunk goes into the ledger at this many batches or bytes: one transaction each, small enough that
/// dispatch and settlement of others get their turn in between.
const CHUNK_BATCHES: usize = 2_000;
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// What is left of a submission.
pub(super) struct Reading<B> {
    body: B,
    lines: Lines,
    pipeline: PipelineName,
    due: Timestamp,
    /// The stream has ended; lines of it may be left.
    ended: bool,
}

impl<B, E> Reading<B>
where
    B: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    pub(super) fn new(body: B, run: &NewRun) -> Self {
        Self {
            body,
            lines: Lines::of(run),
            pipeline: run.pipeline.clone(),
            due: run.created_at,
            ended: false,
        }
    }

    /// The next batches; none when there are no more. Fewer than a chunk are the last ones.
    pub(super) async fn chunk(&mut self) -> Result<Chunk, SubmissionError> {
        let mut chunk = Chunk::default();
        loop {
            while let Some((number, line)) = self.lines.next(self.ended)? {
                let at = |problem| SubmissionError::Line {
                    line: number,
                    problem,
                };
                if let Some(batch) = read_line(&line, &self.pipeline, self.due).map_err(at)? {
                    chunk.push(batch);
                    if chunk.is_full() {
                        return Ok(chunk);
                    }
                }
            }
            if self.ended {
                return Ok(chunk);
            }
            self.read_on().await?;
        }
    }

    /// Of the run and all its lines; those that nobody has read are not looked into.
    pub(super) async fn digest(mut self) -> Result<[u8; 32], SubmissionError> {
        loop {
            while self.lines.next(self.ended)?.is_some() {}
            if self.ended {
                return Ok(self.lines.digest());
            }
            self.read_on().await?;
        }
    }

    async fn read_on(&mut self) -> Result<(), SubmissionError> {
        match self.body.next().await {
            Some(piece) => self
                .lines
                .push(&piece.map_err(|e| SubmissionError::Body(e.to_string()))?),
            None => self.ended = true,
        }
        Ok(())
    }
}

/// Batches that go into the ledger together.
#[derive(Default)]
pub(super) struct Chunk {
    batches: Vec<NewBatch>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, batch: NewBatch) {
        self.bytes += batch.payload.get().len();
        self.batches.push(batch);
    }

    pub(super) fn is_full(&self) -> bool {
        self.batches.len() >= CHUNK_BATCHES || self.bytes >= CHUNK_BYTES
    }

    pub(super) fn batches(self) -> Vec<NewBatch> {
        self.batches
    }
}
