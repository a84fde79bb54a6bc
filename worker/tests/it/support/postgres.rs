//! A PostgreSQL server that lives as long as somebody holds it: its own data folder, its own socket, no
//! port. PostgreSQL does not run as root, so root starts it as the user `postgres`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

/// The server of this process, while a test uses it.
static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A running server; stopped when the last holder drops it.
pub(crate) struct Server {
    folder: TempDir,
    databases: AtomicU32,
}

/// An empty database of its own.
pub(crate) struct Database {
    server: Arc<Server>,
    name: String,
}

impl Database {
    /// Makes one, and starts the server if no other test has it running.
    pub(crate) fn create() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let server = running
            .upgrade()
            .unwrap_or_else(|| Arc::new(Server::start()));
        *running = Arc::downgrade(&server);
        drop(running);
        let name = format!("test_{}", server.databases.fetch_add(1, Ordering::Relaxed));
        server.run(
            "createdb",
            &["-h", &server.socket(), "-U", "postgres", &name],
        );
        Self { server, name }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://postgres@localhost/{}?host={}",
            self.name,
            self.server.socket()
        )
    }
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = Self {
            folder,
            databases: AtomicU32::new(0),
        };
        if is_root() {
            let owner = Command::new("chown")
                .arg("postgres")
                .arg(server.folder.path())
                .status();
            assert!(
                owner.expect("chown runs").success(),
                "the user postgres exists"
            );
        }
        let data = server.data();
        server.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
        );
        let socket = server.socket();
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={socket} -c max_connections=200"
        );
        let log = server.folder.path().join("log").display().to_string();
        server.run(
            "pg_ctl",
            &["-D", &data, "-w", "-l", &log, "-o", &options, "start"],
        );
        server
    }

    fn socket(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = binaries().join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        // The server inherits these; a pipe would keep a waiting parent waiting.
        let log = std::fs::File::create(self.folder.path().join("commands")).expect("a log file");
        let command = command.args(arguments).current_dir(self.folder.path());
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .status();
        let succeeded = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        let words =
            std::fs::read_to_string(self.folder.path().join("commands")).unwrap_or_default();
        assert!(
            succeeded,
            "{} {arguments:?}: {status:?} {words}",
            program.display()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without letting anybody finish; there may be nothing to stop when starting failed.
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            self.run(
                "pg_ctl",
                &["-D", &self.data(), "-w", "-m", "immediate", "stop"],
            );
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

/// The newest installed version's programs, or those in the search path.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(number);
    newest.map(|path| path.join("bin")).unwrap_or_default()
}
