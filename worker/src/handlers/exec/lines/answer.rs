//! What a process writes about one batch, line by line.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use shared::id::BatchId;
use shared::name::Key;
use shared::outcome::{FollowUp, Statistics};
use shared::payload::contains_nul;
use shared::presence::Progress;

use crate::collect::{BAD_OUTPUT, RowForm};
use crate::cursor::MAX_CURSOR_BYTES;
use crate::handler::{HandlerError, Output};
use crate::handlers::rows::{Accepted, Flood, Lines};
use crate::handlers::wire::{check_statistics, delay, throttle};

/// One line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word<'a> {
    /// It can work, and speaks this version of the protocol.
    Ready(u32),
    #[serde(borrow)]
    Row(&'a RawValue),
    FollowUp(FollowUp),
    /// How far it has come, for itself.
    Cursor(Box<RawValue>),
    /// The same, for people.
    Progress(Progress),
    Completed {
        batch: BatchId,
        /// How many rows came before.
        rows: Option<u64>,
        #[serde(default)]
        statistics: Statistics,
        batch_key: Option<Key>,
    },
    Retry {
        batch: BatchId,
        error: String,
        after_ms: Option<u64>,
    },
    Throttled {
        batch: BatchId,
        reason: String,
        after_ms: u64,
    },
    Failed {
        batch: BatchId,
        error: String,
    },
}

impl<'a> Word<'a> {
    /// Reads a line, or says what is wrong with it.
    pub(super) fn read(line: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
        let word = serde_json::from_str(text).map_err(|error| {
            // There is only ever one line.
            let error = error.to_string();
            let reason = error.split(" at line ").next().unwrap_or(&error);
            format!("is none of the protocol's: {reason}")
        })?;
        match &word {
            // Rows are checked as they are taken.
            Self::Row(_) => {}
            Self::Completed { statistics, .. } => check_statistics(statistics)?,
            // Follow-ups are checked as payloads are, when the batch is committed.
            _ if contains_nul(text) => return Err("contains a NUL character".to_owned()),
            _ => {}
        }
        Ok(word)
    }
}

/// What a process has said about a batch so far.
#[derive(Debug)]
pub(super) struct Answer {
    batch: BatchId,
    lines: Lines,
    said: Said,
}

#[derive(Debug)]
struct Said {
    accepted: Accepted,
    follow_ups: Vec<FollowUp>,
    /// The last one that was not saved yet.
    cursor: Option<Box<RawValue>>,
    progress: Option<Progress>,
    end: Option<End>,
    /// It speaks of something else: what it says next cannot be trusted either.
    astray: Option<&'static str>,
}

/// How it ended the batch.
#[derive(Debug)]
enum End {
    Completed {
        rows: Option<u64>,
        statistics: Statistics,
        batch_key: Option<Key>,
    },
    Not(HandlerError),
}

impl Answer {
    pub(super) fn about(batch: BatchId, rows: &dyn RowForm) -> Self {
        let said = Said {
            accepted: Accepted::new(rows),
            follow_ups: Vec::new(),
            cursor: None,
            progress: None,
            end: None,
            astray: None,
        };
        Self {
            batch,
            lines: Lines::default(),
            said,
        }
    }

    /// Takes a piece of output. Whether the answer is complete, or will never be.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<bool, Flood> {
        let said = &mut self.said;
        self.lines
            .push(piece, |number, line| said.hear(self.batch, number, line))?;
        if said.end.is_some() && self.lines.is_within_line() {
            said.astray.get_or_insert(SPOKE_ON);
        }
        Ok(said.end.is_some() || said.astray.is_some())
    }

    /// How far it has come since this was asked last.
    pub(super) fn take_cursor(&mut self) -> Option<Box<RawValue>> {
        self.said.cursor.take()
    }

    /// The same for progress.
    pub(super) fn take_progress(&mut self) -> Option<Progress> {
        self.said.progress.take()
    }

    /// Whether the process can be given another batch.
    pub(super) fn is_clean(&self) -> bool {
        self.said.end.is_some() && self.said.astray.is_none()
    }

    /// What becomes of the batch.
    pub(super) fn into_result(self) -> Result<Output, HandlerError> {
        let Said {
            accepted,
            follow_ups,
            end,
            astray,
            cursor: _,
            progress: _,
        } = self.said;
        if let Some(astray) = astray {
            return Err(HandlerError::retry(astray));
        }
        let (expected, statistics, batch_key) = match end {
            Some(End::Completed {
                rows,
                statistics,
                batch_key,
            }) => (rows, statistics, batch_key),
            Some(End::Not(error)) => return Err(error),
            None => return Err(HandlerError::retry("the command ended no batch")),
        };
        let rows = accepted.into_rows()?;
        match expected {
            Some(expected) if expected != rows.count() => Err(HandlerError::fail(
                BAD_OUTPUT,
                format!(
                    "the command counted {expected} rows and wrote {}",
                    rows.count()
                ),
            )),
            _ => Ok(Output {
                rows,
                batch_key,
                follow_ups,
                statistics,
            }),
        }
    }
}

const SPOKE_ON: &str = "the command went on after it had ended the batch";
const OTHER_BATCH: &str = "the command ended another batch than the one it had";

impl Said {
    fn hear(&mut self, ours: BatchId, number: usize, line: &[u8]) -> Result<(), Flood> {
        if self.end.is_some() {
            self.astray.get_or_insert(SPOKE_ON);
            return Ok(());
        }
        let (batch, end) = match Word::read(line) {
            Ok(Word::Row(row)) => return self.accepted.push(number, row.get()),
            Ok(Word::FollowUp(follow_up)) => {
                self.follow_ups.push(follow_up);
                return Ok(());
            }
            Ok(Word::Cursor(cursor)) if cursor.get().len() > MAX_CURSOR_BYTES => {
                self.accepted.object(number, "is a cursor over 64 KiB");
                return Ok(());
            }
            Ok(Word::Cursor(cursor)) => {
                self.cursor = Some(cursor);
                return Ok(());
            }
            Ok(Word::Progress(progress)) => {
                self.progress = Some(progress);
                return Ok(());
            }
            Ok(Word::Ready(_)) => {
                self.accepted
                    .object(number, "says ready in the middle of a batch");
                return Ok(());
            }
            Err(problem) => {
                self.accepted.object(number, &problem);
                return Ok(());
            }
            Ok(Word::Completed {
                batch,
                rows,
                statistics,
                batch_key,
            }) => {
                let end = End::Completed {
                    rows,
                    statistics,
                    batch_key,
                };
                (batch, end)
            }
            Ok(Word::Retry {
                batch,
                error,
                after_ms,
            }) => {
                let after = after_ms.map(|after| delay(Duration::from_millis(after)));
                (batch, End::Not(HandlerError::Retry { error, after }))
            }
            Ok(Word::Throttled {
                batch,
                reason,
                after_ms,
            }) => {
                let after = throttle(Duration::from_millis(after_ms));
                (batch, End::Not(HandlerError::Throttled { reason, after }))
            }
            Ok(Word::Failed { batch, error }) => {
                (batch, End::Not(HandlerError::fail("rejected", error)))
            }
        };
        if batch == ours {
            self.end = Some(end);
        } else {
            self.astray = Some(OTHER_BATCH);
        }
        Ok(())
    }
}
