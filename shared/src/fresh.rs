//! What is made from files, and made again when they have changed: certificates and tokens, which somebody else
//! renews while we run.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A value that follows its files.
pub struct FromFiles<T, E> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    /// Locked for a look at the files, and while the value is made; never across an await.
    state: Mutex<State<T>>,
}

struct State<T> {
    /// What the files looked like before they were last read with success.
    seen: Vec<Option<Look>>,
    /// What they looked like when they could not be used, and somebody was told.
    useless: Option<Vec<Option<Look>>>,
    value: Arc<T>,
}

/// What changes when a file is written or another is put in its place, also behind a symbolic link.
#[derive(PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl<T, E: fmt::Display> FromFiles<T, E> {
    /// Makes the value for the first time. `make` reads `files`.
    pub fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: a change in between is noticed later.
        let seen = look(&files);
        let value = Arc::new(make()?);
        Ok(Self {
            files,
            make: Box::new(make),
            state: Mutex::new(State {
                seen,
                useless: None,
                value,
            }),
        })
    }

    /// The value of the files as they are now. When they have become useless the last good one stays, and a warning
    /// says so, once for each change; they are read each time then, since the fault may be this machine's and pass.
    /// Otherwise it costs one `stat` a file.
    pub fn get(&self) -> Arc<T> {
        if self.files.is_empty() {
            return self.lock().value.clone();
        }
        let now = look(&self.files);
        let mut state = self.lock();
        if state.seen != now {
            let files: Vec<_> = self.files.iter().map(|f| f.display().to_string()).collect();
            let files = files.join(", ");
            match (self.make)() {
                Ok(value) => {
                    state.value = Arc::new(value);
                    state.seen = now;
                    state.useless = None;
                    tracing::info!(files, "files have changed and were read again");
                }
                Err(error) if state.useless.as_ref() != Some(&now) => {
                    tracing::warn!(%error, files, "files have changed and cannot be used, what they held before stays");
                    state.useless = Some(now);
                }
                Err(_) => {}
            }
        }
        state.value.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, E> fmt::Debug for FromFiles<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a secret.
        f.debug_struct("FromFiles")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn look(files: &[PathBuf]) -> Vec<Option<Look>> {
    let look = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        Some(Look {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    files.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn number(file: &Path) -> Result<FromFiles<u32, String>, String> {
        let path = file.to_owned();
        FromFiles::new(vec![path.clone()], move || {
            let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            text.trim().parse().map_err(|_| "no number".to_owned())
        })
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_useless_one_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        assert!(number(&file).is_err(), "there is no file yet");
        fs::write(&file, "1").unwrap();
        let value = number(&file).unwrap();
        assert_eq!(*value.get(), 1);
        for (text, expected) in [("22", 22), ("half a num", 22), ("", 22), ("333", 333)] {
            fs::write(&file, text).unwrap();
            assert_eq!(*value.get(), expected, "{text:?}");
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(*value.get(), 333);
        fs::write(&file, "4444").unwrap();
        assert_eq!(*value.get(), 4444);
    }

    /// As Kubernetes renews what it mounts: the folder behind a link is another one.
    #[test]
    fn another_file_behind_a_link_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("old", "1"), ("new", "2")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("number"), text).unwrap();
        }
        symlink("old", at("now")).unwrap();
        let value = number(&at("now").join("number")).unwrap();
        symlink("new", at("next")).unwrap();
        fs::rename(at("next"), at("now")).unwrap();
        assert_eq!(*value.get(), 2);
    }

    #[test]
    fn what_did_not_change_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        fs::write(&file, "x").unwrap();
        let reads = Arc::new(AtomicU32::new(0));
        let counted = reads.clone();
        let value = FromFiles::new(vec![file.clone()], move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, String>(())
        });
        let value = value.unwrap();
        (0..9).for_each(|_| drop(value.get()));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        fs::write(&file, "xy").unwrap();
        (0..9).for_each(|_| drop(value.get()));
        assert_eq!(reads.load(Ordering::Relaxed), 2);
    }
}
