//! One SQLite file is used by one coordinator. A lock of the operating system says by which: it ends with
//! the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use shared::name::Instance;

use crate::ledger::LedgerError;

/// The lock on `<file>.lock`, held until it is dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(database: &Path, address: &str) -> Result<Self, LedgerError> {
        let path = database.with_added_extension("lock");
        let setup = |problem: std::io::Error| LedgerError::Setup {
            address: address.to_owned(),
            problem: format!("cannot lock {}: {problem}", path.display()),
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(setup)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Whoever has the lock may not have written its name yet.
                let _ = file.read_to_string(&mut owner);
                let owner = owner.trim();
                return Err(LedgerError::Owned {
                    address: address.to_owned(),
                    owner: if owner.is_empty() {
                        "another process"
                    } else {
                        owner
                    }
                    .to_owned(),
                });
            }
            Err(TryLockError::Error(problem)) => return Err(setup(problem)),
        }
        // Role, host and process id. Left behind when the process ends: without the lock it means nothing.
        let name = Instance::generate("coordinator");
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{name} (process {})", std::process::id()))
            .map_err(setup)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ledger.db");
        let first = FileLock::take(&database, "here").unwrap();
        let error = FileLock::take(&database, "here").unwrap_err();
        let process = format!("process {}", std::process::id());
        assert!(
            matches!(&error, LedgerError::Owned { owner, .. } if owner.contains(&process)),
            "{error}"
        );
        drop(first);
        FileLock::take(&database, "here").unwrap();
    }
}
