//! Files in a folder: NDJSON or Parquet, a file a group. A file is seen whole or not at all, and a batch's rows are in
//! one file.
//!
//! A folder has no transactions, so the commit markers are in the default sink's database, each with the name of its
//! batch's file. A group is written in three steps:
//!
//! 1. the file is written to `.staged/` in the folder, and is on the disk;
//! 2. the markers are stored, all in one transaction or, if one of them was there before, none;
//! 3. the file is moved to its place.
//!
//! A crash before 2 leaves a staged file that no marker names: it is swept away later. A crash after 2 leaves a marker
//! whose file is still staged: whoever finds the marker, when the broker delivers the batch again, moves the file
//! before anything is reported. A worker that wakes late with a file of its own finds the markers taken, and its file
//! is never seen.
//!
//! Batches with a batch key are in a folder of that name. All workers have to see the same folder.

mod folder;
mod format;
mod parquet;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use shared::id::BatchId;
use shared::outcome::Completed;
use tokio_util::sync::CancellationToken;

use self::folder::{Folder, Staged, below_key, check_key};
pub use self::format::Format;
use super::group::{GroupWriter, Groups};
use super::marker::{check_json, digest, with_counts};
use super::waiting::Write;
use super::{Committed, Grouping, Marker, Sink, SinkError};
use crate::collect::RowForm;
use crate::handler::Rows;

/// Where the commit markers of files are.
#[async_trait]
pub trait Markers: Send + Sync + 'static {
    /// What is known of a batch whose rows are in.
    async fn filed(&self, batch: BatchId) -> Result<Option<Filed>, SinkError>;

    /// Stores the markers of batches whose rows are in `file`, which is `None` when they have no rows. If one of them was there
    /// before, nothing is stored, and the answer is which batches' were.
    async fn file(&self, filings: &[Filing], file: Option<&str>)
    -> Result<Vec<BatchId>, SinkError>;
}

/// A marker to store.
#[derive(Debug)]
pub struct Filing {
    /// Whose, and who wrote it.
    pub marker: Marker,
    /// The hash of the rows.
    pub digest: Vec<u8>,
    /// The outcome, with what was counted here.
    pub completed: Completed,
}

/// A stored marker.
#[derive(Debug)]
pub struct Filed {
    /// Which attempt's rows these are.
    pub attempt: i64,
    /// Who wrote them.
    pub writer: String,
    /// The outcome that was reported.
    pub completed: Completed,
    /// The file that they are in.
    pub file: Option<String>,
}

/// A folder as sink.
pub struct FilesSink {
    writer: Writer,
    groups: Groups<Arc<Rows>>,
}

#[derive(Clone)]
struct Writer {
    folder: Arc<Folder>,
    format: Arc<Format>,
    markers: Arc<dyn Markers>,
}

impl FilesSink {
    /// Opens or makes the folder, and clears away what crashed workers left in it.
    pub async fn open(
        path: &Path,
        format: Format,
        markers: Arc<dyn Markers>,
        grouping: Grouping,
        hurry: CancellationToken,
    ) -> Result<Self, SinkError> {
        let writer = Writer {
            folder: Arc::new(Folder::open(path)?),
            format: Arc::new(format),
            markers,
        };
        writer.sweep().await;
        Ok(Self {
            groups: Groups::start(writer.clone(), grouping, hurry),
            writer,
        })
    }
}

#[async_trait]
impl Sink for FilesSink {
    async fn find(&self, batch: BatchId) -> Result<Option<Completed>, SinkError> {
        Ok(self.writer.find(batch).await?.map(|filed| filed.completed))
    }

    fn form(&self) -> Arc<dyn RowForm> {
        self.writer.format.rows()
    }

    async fn commit(&self, marker: Marker, rows: Arc<Rows>) -> Result<Committed, SinkError> {
        check_json(&rows)?;
        self.writer.format.check(&rows)?;
        check_key(marker.batch_key.as_ref())?;
        self.groups.commit(Write::new(marker, rows)).await
    }
}

#[async_trait]
impl GroupWriter for Writer {
    type Rows = Arc<Rows>;

    async fn write(&self, group: &[&Write<Arc<Rows>>]) -> Result<Vec<Committed>, SinkError> {
        if self.folder.is_sweep_due() {
            self.sweep().await;
        }
        let mut before: Vec<Option<Committed>> = vec![None; group.len()];
        loop {
            let new = group
                .iter()
                .zip(&before)
                .filter(|(_, known)| known.is_none());
            let new: Vec<&Write<Arc<Rows>>> = new.map(|(write, _)| *write).collect();
            let beaten = self.try_write(&new).await?;
            for (write, known) in group.iter().zip(&mut before) {
                if beaten.contains(&write.marker.batch) {
                    *known = self.look(&write.marker).await?;
                }
            }
            if beaten.is_empty() {
                break;
            }
        }
        let answer = |(write, known): (&&Write<Arc<Rows>>, Option<Committed>)| match known {
            Some(known) => Committed::Before(known.into_completed()),
            None => Committed::Now(completed(write)),
        };
        Ok(group.iter().zip(before).map(answer).collect())
    }

    async fn look(&self, marker: &Marker) -> Result<Option<Committed>, SinkError> {
        let filed = self.find(marker.batch).await?;
        Ok(filed.map(|filed| Committed::by(marker, filed.attempt, &filed.writer, filed.completed)))
    }
}

impl Writer {
    /// Writes a file of these batches; or, if some were in already, nothing: those are the answer.
    async fn try_write(&self, group: &[&Write<Arc<Rows>>]) -> Result<Vec<BatchId>, SinkError> {
        if group.is_empty() {
            return Ok(Vec::new());
        }
        let staged = self.stage(group).await?;
        let filing = |write: &&Write<Arc<Rows>>| Filing {
            marker: write.marker.clone(),
            digest: digest(&write.rows),
            completed: completed(write),
        };
        let filings: Vec<Filing> = group.iter().map(filing).collect();
        shared::failpoint::reach("w.sink.before_commit");
        let name = staged.as_ref().map(Staged::name);
        let beaten = match self.markers.file(&filings, name).await {
            Ok(beaten) => beaten,
            Err(error) => {
                // The markers may be in all the same.
                staged.into_iter().for_each(Staged::leave);
                return Err(error);
            }
        };
        if beaten.is_empty() {
            shared::failpoint::reach("w.sink.committed");
            if let Some(staged) = staged {
                in_background(move || staged.publish()).await?;
            }
        }
        Ok(beaten)
    }

    /// A file with all rows, on the disk and not seen yet; none where there are no rows.
    async fn stage(&self, group: &[&Write<Arc<Rows>>]) -> Result<Option<Staged>, SinkError> {
        let all_rows: Vec<Arc<Rows>> = group.iter().map(|write| Arc::clone(&write.rows)).collect();
        if all_rows.iter().all(|rows| rows.count() == 0) {
            return Ok(None);
        }
        let marker = &group[0].marker;
        let name = format!(
            "{}-{:08x}.{}",
            marker.batch,
            rand::random::<u32>(),
            self.format.extension()
        );
        let name = below_key(marker.batch_key.as_ref(), &name);
        let (folder, format) = (Arc::clone(&self.folder), Arc::clone(&self.format));
        in_background(move || {
            let mut staged = folder.stage(name)?;
            staged.fill(|file| format.write(&all_rows, file))?;
            Ok(staged)
        })
        .await
        .map(Some)
    }

    /// What is stored of a batch. Its file is in its place then.
    async fn find(&self, batch: BatchId) -> Result<Option<Filed>, SinkError> {
        let filed = self.markers.filed(batch).await?;
        if let Some(file) = filed.as_ref().and_then(|filed| filed.file.clone()) {
            let folder = Arc::clone(&self.folder);
            in_background(move || folder.finish(&file)).await?;
        }
        Ok(filed)
    }

    /// Finishes or removes files that crashed workers left staged.
    async fn sweep(&self) {
        let folder = Arc::clone(&self.folder);
        let Ok(left) = in_background(move || folder.left_behind()).await else {
            return;
        };
        for staged in left {
            let owner = staged.first_batch();
            let known = match owner {
                Some(batch) => self.markers.filed(batch).await,
                None => Ok(None),
            };
            let ended = match known {
                Err(error) => {
                    // Its marker may be there.
                    staged.leave();
                    Err(error)
                }
                Ok(Some(filed)) if filed.file.as_deref() == Some(staged.name()) => {
                    in_background(move || staged.publish()).await
                }
                Ok(_) => {
                    // The file goes with it.
                    drop(staged);
                    Ok(())
                }
            };
            match ended {
                Ok(()) => tracing::info!("cleared away a file that a worker left behind"),
                Err(error) => {
                    tracing::warn!(%error, "could not clear away a file that a worker left behind");
                }
            }
        }
    }
}

/// The outcome that is stored with a batch.
fn completed(write: &Write<Arc<Rows>>) -> Completed {
    with_counts(&write.marker.completed, write.rows.count(), 0)
}

/// Disks are waited for on a thread of their own. What goes wrong there is a full or broken disk, not the rows.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, SinkError> {
    let done = tokio::task::spawn_blocking(work).await;
    let result = done.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    result.map_err(|error| SinkError::Unavailable(Arc::new(error.into())))
}
