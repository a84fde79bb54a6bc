//! `mode = "lines"`: a process serves batch after batch, so that what is slow to load is loaded once.
//!
//! Lines of JSON in both directions, UTF-8, each ended by `\n`. When it can work, the process says
//!
//! ```json
//! {"ready": 1}
//! ```
//!
//! where 1 is the version of this protocol. Then it gets a line on stdin for each batch
//!
//! ```json
//! {"batch": "0197…", "run": "0197…", "pipeline": "thumbs", "key": "tenant", "attempt": 1, "deadline_ms": 300000, "payload": …}
//! ```
//!
//! and answers on stdout with any number of
//!
//! ```json
//! {"row": …}
//! {"follow_up": {"pipeline": "index", "key": "tenant", "payload": …}}
//! {"cursor": …}
//! {"progress": {"done": 120, "total": 500}}
//! ```
//!
//! and then with one of these, which ends the batch:
//!
//! ```json
//! {"completed": {"batch": "0197…", "rows": 2, "statistics": {"seen": 7}, "batch_key": "2026-02-10"}}
//! {"retry": {"batch": "0197…", "error": "for a person", "after_ms": 5000}}
//! {"throttled": {"batch": "0197…", "reason": "for a person", "after_ms": 30000}}
//! {"failed": {"batch": "0197…", "error": "for a person"}}
//! ```
//!
//! A cursor says how far it has come, in at most 64 KiB of JSON of its own. If this attempt cannot finish, the line
//! that begins the next one has it as `cursor`; rows that were written before it are not kept.
//! Progress is what the operator sees of a running batch, in units of its own; `total` may be left out.
//!
//! `rows`, `statistics`, `batch_key` and `after_ms` of a retry may be left out; `rows` is checked where it is given, and
//! rows are written together with those of batches that name the same `batch_key`. The next
//! line comes only after that. At end of file the process should end: it gets SIGTERM after 5 s, SIGKILL 2 s later.
//!
//! | what goes wrong | what becomes of the batch | and of the process |
//! |---|---|---|
//! | a line that is none of these, too few or too many rows | failed, `bad_output`, if the answer is `completed` | goes on |
//! | a line over 1 MiB, more than 64 MiB or 100,000 rows | failed, `output_too_large` | killed |
//! | an end of another batch, or more after the end | retry | stopped |
//! | it exits, by itself or by a signal | as with one process a batch, but exit code 0 is retry too | |
//! | it closes stdout | retry | stopped |
//! | no answer until the deadline | retry | stopped |
//! | it does not become ready within `start_timeout` | retry, of the batch that waits for it or else of the next one | stopped |
//!
//! A process should not end by itself: the next batch may have been given to it already. `batches_per_process`
//! has it ended and replaced in time. One that was lost is replaced when it is needed, after a pause that grows up to
//! 30 s as long as no batch is answered in between. A batch that finds no process within half of its deadline is
//! throttled for a second, which burns no attempt.

mod answer;
mod long_lived;
mod pool;

pub(super) use self::pool::Pool;
