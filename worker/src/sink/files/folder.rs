//! The folder: staged files, how they get to their places, and what is left of those whose worker is gone.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::id::BatchId;
use shared::name::Key;

use crate::sink::SinkError;

/// Where files are until they are whole. Readers leave names alone that start with a dot.
const STAGED: &str = ".staged";
/// How old a staged file is at least when nobody can be working on it: commits take two minutes at most.
const LEFT_BEHIND: Duration = Duration::from_hours(1);
/// Longest name of a file or folder, in bytes, on all usual filesystems.
const MAX_NAME_BYTES: usize = 255;
/// What stays as it is in a batch key's folder.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'=');

pub(super) struct Folder {
    path: PathBuf,
    swept: Mutex<Instant>,
}

/// A file that is not in its place yet. Dropping it removes it.
pub(super) struct Staged {
    folder: PathBuf,
    /// Below the folder, once it is in its place.
    name: String,
    /// Locked for as long as somebody works on it.
    file: File,
    is_over: bool,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, SinkError> {
        let cannot = |error: io::Error| {
            SinkError::Schema(format!(
                "the folder {} cannot be used: {error}",
                path.display()
            ))
        };
        fs::create_dir_all(path.join(STAGED)).map_err(cannot)?;
        sync(path).map_err(cannot)?;
        Ok(Self {
            path: path.to_owned(),
            swept: Mutex::new(Instant::now()),
        })
    }

    /// An empty file, which will be `name`.
    pub(super) fn stage(&self, name: String) -> io::Result<Staged> {
        let path = staged_path(&self.path, &name);
        let file = File::options().create_new(true).write(true).open(path)?;
        let staged = Staged {
            folder: self.path.clone(),
            name,
            file,
            is_over: false,
        };
        staged.file.lock()?;
        Ok(staged)
    }

    /// Moves a file to its place, unless somebody did.
    pub(super) fn finish(&self, name: &str) -> io::Result<()> {
        publish(&self.path, name)
    }

    /// Whether files may have been left behind since it was last asked.
    pub(super) fn is_sweep_due(&self) -> bool {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = swept.elapsed() > LEFT_BEHIND;
        if is_due {
            *swept = Instant::now();
        }
        is_due
    }

    /// Staged files that are old, and that nobody works on.
    pub(super) fn left_behind(&self) -> io::Result<Vec<Staged>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.path.join(STAGED))? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if age.unwrap_or_default() < LEFT_BEHIND {
                continue;
            }
            let file = File::open(entry.path())?;
            match file.try_lock() {
                Ok(()) => left.push(Staged {
                    folder: self.path.clone(),
                    name: from_staged_name(&name),
                    file,
                    is_over: false,
                }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(left)
    }
}

impl Staged {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The batch that the file is named after: it is one of its batches.
    pub(super) fn first_batch(&self) -> Option<BatchId> {
        const UUID: usize = 36;
        let file = self.name.rsplit('/').next()?;
        file.get(..UUID)?.parse().ok()
    }

    /// Writes the file; it is on the disk then.
    pub(super) fn fill(
        &mut self,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = BufWriter::new(&self.file);
        write(&mut out)?;
        out.flush()?;
        self.file.sync_all()?;
        sync(&self.folder.join(STAGED))
    }

    /// Moves it to its place.
    pub(super) fn publish(mut self) -> io::Result<()> {
        self.is_over = true;
        publish(&self.folder, &self.name)
    }

    /// Leaves it as it is, for whoever finds its marker, or sweeps.
    pub(super) fn leave(mut self) {
        self.is_over = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_over
            && let Err(error) = fs::remove_file(staged_path(&self.folder, &self.name))
        {
            tracing::debug!(%error, "could not remove a staged file");
        }
    }
}

/// Whether a batch key can be a folder.
pub(super) fn check_key(key: Option<&Key>) -> Result<(), SinkError> {
    let bytes = key.map_or(0, |key| folder_name(key).len());
    if bytes <= MAX_NAME_BYTES {
        return Ok(());
    }
    Err(SinkError::Unfit(format!(
        "the batch key makes the name of a folder of {bytes} bytes, at most {MAX_NAME_BYTES} are possible"
    )))
}

/// The name of a file below the sink's folder, where it belongs to a batch key.
pub(super) fn below_key(key: Option<&Key>, file: &str) -> String {
    match key {
        Some(key) => format!("{}/{file}", folder_name(key)),
        None => file.to_owned(),
    }
}

fn folder_name(key: &Key) -> String {
    let name = utf8_percent_encode(key.as_str(), KEPT).to_string();
    match name.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => name,
    }
}

/// Staged files are side by side, whatever folder they will be in. No name has an `@` of its own.
fn staged_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(STAGED).join(name.replace('/', "@"))
}

fn from_staged_name(staged: &str) -> String {
    staged.replace('@', "/")
}

/// Moves a staged file to its place. If it is not staged any more, somebody has: a marker is stored only for a file that
/// was on the disk.
fn publish(folder: &Path, name: &str) -> io::Result<()> {
    let place = folder.join(name);
    let parent = place.parent().unwrap_or(folder);
    if parent != folder && !parent.is_dir() {
        fs::create_dir_all(parent)?;
        sync(folder)?;
    }
    match fs::rename(staged_path(folder, name), &place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync(parent),
    }
}

/// A name is on the disk when its folder is.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_folders_and_never_lead_out_of_theirs() {
        let folder = |key: &str| folder_name(&Key::new(key).unwrap());
        assert_eq!(folder("day=2026-02-10"), "day=2026-02-10");
        assert_eq!(folder("a/b"), "a%2Fb");
        assert_eq!(folder(".."), "%2E.");
        assert_eq!(folder(".staged"), "%2Estaged");
        assert_eq!(folder("a@b ä"), "a%40b%20%C3%A4");
    }

    #[test]
    fn a_staged_file_is_not_seen_and_goes_with_whoever_wrote_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let seen = || fs::read_dir(place.path()).unwrap().count() - 1;
        let staged_count = || fs::read_dir(place.path().join(STAGED)).unwrap().count();
        drop(folder.stage("a".to_owned()).unwrap());
        assert_eq!((seen(), staged_count()), (0, 0));

        let mut staged = folder.stage("k/b".to_owned()).unwrap();
        staged.fill(|out| out.write_all(b"whole")).unwrap();
        assert_eq!((seen(), staged_count()), (0, 1));
        staged.leave();
        folder.finish("k/b").unwrap();
        folder.finish("k/b").unwrap();
        assert_eq!(fs::read(place.path().join("k/b")).unwrap(), b"whole");
        assert_eq!((seen(), staged_count()), (1, 0));
    }

    #[test]
    fn only_what_is_old_and_in_nobodys_hands_is_left_behind() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let batch = BatchId::generate();
        let (held, old) = (format!("k/{batch}-1.ndjson"), format!("k/{batch}-2.ndjson"));
        let held = folder.stage(held).unwrap();
        folder.stage(old.clone()).unwrap().leave();
        folder.stage("young".to_owned()).unwrap().leave();
        let long_ago = SystemTime::now() - 2 * LEFT_BEHIND;
        held.file.set_modified(long_ago).unwrap();
        let file = File::options()
            .write(true)
            .open(staged_path(place.path(), &old))
            .unwrap();
        file.set_modified(long_ago).unwrap();
        let left = folder.left_behind().unwrap();
        let [left] = &left[..] else {
            panic!("{}", left.len())
        };
        assert_eq!((left.name(), left.first_batch()), (&old[..], Some(batch)));
    }
}
