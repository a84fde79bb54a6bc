//! A PostgreSQL server of one's own, with a database for each test.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::certificates::Files;
use crate::port;
use crate::scratch::{Process, Scratch};
use crate::wait;

const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running server. Everybody on this machine may connect as `postgres`.
#[derive(Debug)]
pub struct Postgres {
    // Fields are dropped in this order: the server before its folder.
    server: Mutex<Option<Process>>,
    programs: PathBuf,
    port: u16,
    databases: AtomicU32,
    scratch: Scratch,
}

/// The server that all tests of this program share.
///
/// # Panics
/// When it does not start: no test could go on.
pub fn shared() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(|| Postgres::start().expect("PostgreSQL has to start"))
}

impl Postgres {
    /// Creates a cluster and starts a server on it.
    pub fn start() -> Result<Self> {
        let postgres = Self {
            server: Mutex::default(),
            programs: find_programs()?,
            port: port::free(),
            databases: AtomicU32::new(0),
            scratch: Scratch::new("postgres")?,
        };
        postgres.create_cluster()?;
        postgres.start_again()?;
        Ok(postgres)
    }

    fn create_cluster(&self) -> Result<()> {
        let data = self.data();
        fs::create_dir(&data)?;
        if let Some(user) = unprivileged_user()? {
            let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            chown(&data, owner.0, owner.1)?;
            chown(self.scratch.path(), owner.0, owner.1)?;
        }
        let mut initdb = self.program("initdb")?;
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run(initdb.arg("--pgdata").arg(&data)).map(drop)
    }

    /// Starts the server on the data that it left behind.
    pub fn start_again(&self) -> Result<()> {
        let mut command = self.program("postgres")?;
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        let sockets = format!("unix_socket_directories={}", self.scratch.path().display());
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=on",
            "max_connections=200",
            &sockets,
        ] {
            command.args(["-c", setting]);
        }
        let log = self.scratch.path().join("postgres.log");
        // SIGQUIT: stop at once, and free the shared memory, which SIGKILL would leave behind.
        let mut server = self.scratch.spawn(command, &log, Signal::SIGQUIT)?;
        wait::until_blocking("PostgreSQL to answer", START_LIMIT, || {
            if let Some(status) = server.exited()? {
                bail!("PostgreSQL ended with {status}:\n{}", server.tail(30));
            }
            Ok(self.psql("postgres", "select 1").ok())
        })?;
        *self.lock() = Some(server);
        Ok(())
    }

    /// Stops the server as an administrator would: connections are cut, nothing is lost.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGINT)
    }

    /// Ends the server as a crash would: the next start has to recover.
    pub fn crash(&self) -> Result<()> {
        self.end(Signal::SIGQUIT)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let mut server = self.lock().take().context("the server is not running")?;
        server.signal(signal)?;
        server.wait(STOP_LIMIT).map(drop)
    }

    /// The URL of a new, empty database.
    pub fn new_database(&self) -> Result<String> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("create database {name}"))?;
        Ok(self.url(&name))
    }

    /// From now on it speaks TLS, too, as these files say, and knows a user `secured`, whom it lets in over TLS alone
    /// and with a certificate that the CA of `trusted` has signed. Again, with other files: new connections use them.
    pub fn use_certificates(&self, files: &Files, trusted: &Path) -> Result<()> {
        let copies = [
            ("ssl_cert_file", &*files.certificate),
            ("ssl_key_file", &*files.key),
            ("ssl_ca_file", trusted),
        ];
        let mut settings = vec![("ssl", "on".to_owned())];
        for (setting, file) in copies {
            let copy = self.scratch.path().join(setting);
            fs::copy(file, &copy)?;
            if let Some(user) = unprivileged_user()? {
                chown(&copy, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
            settings.push((setting, copy.display().to_string()));
        }
        let rules = self.data().join("pg_hba.conf");
        let before = fs::read_to_string(&rules)?;
        if !before.contains("secured") {
            let own =
                "hostssl all secured all trust clientcert=verify-ca\nhost all secured all reject\n";
            fs::write(&rules, format!("{own}{before}"))?;
            self.psql("postgres", "create role secured login superuser")?;
        }
        for (setting, value) in settings {
            self.psql(
                "postgres",
                &format!("alter system set {setting} = '{value}'"),
            )?;
        }
        let reloads = "select pg_conf_load_time()";
        let last = self.psql("postgres", reloads)?;
        self.psql("postgres", "select pg_reload_conf()")?;
        wait::until_blocking("PostgreSQL to reload", START_LIMIT, || {
            Ok((self.psql("postgres", reloads)? != last).then_some(()))
        })
    }

    /// The URL of a new, empty database for the user `secured`, without what it has to say about TLS.
    pub fn new_secured_database(&self) -> Result<String> {
        Ok(self.new_database()?.replace("//postgres@", "//secured@"))
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL through `psql` and returns rows as lines with tabs between the columns.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new(self.programs.join("psql"));
        let separator = "--field-separator=\t";
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            separator,
        ]);
        run(psql.args([
            "--set=ON_ERROR_STOP=1",
            "--command",
            sql,
            &self.url(database),
        ]))
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// A server program, run by somebody whom PostgreSQL accepts.
    fn program(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(self.scratch.path());
        if let Some(user) = unprivileged_user()? {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.lock().is_some()
            && let Err(error) = self.end(Signal::SIGQUIT)
        {
            eprintln!("PostgreSQL could not be stopped: {error:#}");
        }
    }
}

/// PostgreSQL refuses to run as root; then its own user does, or `nobody`.
fn unprivileged_user() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("there is neither a user postgres nor a user nobody to run PostgreSQL as")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Debian keeps the servers of each version apart and out of `PATH`; the newest is taken.
fn find_programs() -> Result<PathBuf> {
    let version =
        |folder: &Path| -> Option<u32> { folder.parent()?.file_name()?.to_str()?.parse().ok() };
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    found.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    found
        .into_iter()
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .context("PostgreSQL is not installed; on Debian and Ubuntu: apt-get install postgresql")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_rows_survive_a_crash() {
        let postgres = Postgres::start().unwrap();
        let url = postgres.new_database().unwrap();
        let database = url.rsplit('/').next().unwrap();
        postgres
            .psql(
                database,
                "create table t (a int, b text); insert into t values (1, 'x')",
            )
            .unwrap();
        postgres.crash().unwrap();
        postgres.start_again().unwrap();
        assert_eq!(
            postgres.psql(database, "select * from t").unwrap(),
            "1\tx\n"
        );
        postgres.stop().unwrap();
        assert!(postgres.psql(database, "select 1").is_err());
    }
}
