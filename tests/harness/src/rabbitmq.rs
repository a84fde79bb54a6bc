//! A RabbitMQ node of one's own: own ports, name, cookie, data and port mapper.
//!
//! One node serves all tests of a program ([`shared()`]), each in a virtual host of its own. Tests that
//! restart or kill a broker start their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::certificates::Files;
use crate::port;
use crate::scratch::{Process, Scratch};
use crate::wait;

/// A node starts in 4–5 s on two idle cores.
const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Two programs that start at once may choose the same port; another choice helps.
const START_TRIES: usize = 3;

/// Names a folder with the scripts of another RabbitMQ than the installed one.
const SCRIPTS: &str = "TIDEGATE_TEST_RABBITMQ_SCRIPTS";
/// Where the release's own scripts are. Debian's `/usr/sbin/rabbitmq-server` would change to the user
/// `rabbitmq` and read `/etc/rabbitmq`.
const SCRIPT_FOLDERS: [&str; 4] = [
    "/usr/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
];

/// A running node.
#[derive(Debug)]
pub struct RabbitMq {
    // Fields are dropped in this order: the node before its port mapper, the folder last.
    node: Mutex<Option<Process>>,
    _port_mapper: Process,
    scripts: PathBuf,
    name: String,
    port: u16,
    tls_port: u16,
    options: Options,
    distribution_port: u16,
    port_mapper_port: u16,
    vhosts: AtomicU32,
    scratch: Scratch,
}

/// What a node has besides its plain AMQP port.
#[derive(Debug, Clone, Default)]
struct Options {
    /// The management plugin's.
    management_port: Option<u16>,
    tls: Option<Tls>,
}

/// A listener that speaks TLS, on a port of its own. It reads the files when somebody connects, and remembers them
/// until [`RabbitMq::forget_certificates`].
#[derive(Debug, Clone)]
pub struct Tls {
    /// Whom it trusts.
    pub ca: PathBuf,
    /// As whom it answers.
    pub files: Files,
    /// Whether clients need a certificate, too.
    pub demands_certificate: bool,
}

/// The node that all tests of this program share.
///
/// # Panics
/// When it does not start: no test could go on.
pub fn shared() -> &'static RabbitMq {
    static SHARED: OnceLock<RabbitMq> = OnceLock::new();
    SHARED.get_or_init(|| RabbitMq::start().expect("RabbitMQ has to start"))
}

impl RabbitMq {
    /// Starts a node.
    pub fn start() -> Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts a node with the management plugin, on the given port.
    pub fn start_with_management(port: u16) -> Result<Self> {
        Self::start_with(&Options {
            management_port: Some(port),
            ..Options::default()
        })
    }

    /// Starts a node that speaks TLS, too.
    pub fn start_with_tls(tls: Tls) -> Result<Self> {
        Self::start_with(&Options {
            tls: Some(tls),
            ..Options::default()
        })
    }

    fn start_with(options: &Options) -> Result<Self> {
        let mut problem = None;
        for _ in 0..START_TRIES {
            let broker = Self::prepare(options.clone())?;
            match broker.start_again() {
                Ok(()) => return Ok(broker),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.expect("at least one try was made"))
    }

    /// Everything but the node itself.
    fn prepare(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let scratch = Scratch::new("rabbitmq")?;
        let port_mapper_port = port::free();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let broker = Self {
            node: Mutex::default(),
            _port_mapper: start_port_mapper(&scratch, port_mapper_port)?,
            scripts: find_scripts()?,
            name: format!("tidegate-test-{}-{number}@localhost", std::process::id()),
            port: port::free(),
            tls_port: port::free(),
            options,
            distribution_port: port::free(),
            port_mapper_port,
            vhosts: AtomicU32::new(0),
            scratch,
        };
        broker.write_files()?;
        Ok(broker)
    }

    fn write_files(&self) -> Result<()> {
        let folder = self.scratch.path();
        let home = folder.join("home");
        fs::create_dir(&home)?;
        let cookie = home.join(".erlang.cookie");
        fs::write(&cookie, format!("{:032X}", rand::random::<u128>()))?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;

        let (management, plugins) = match self.options.management_port {
            Some(port) => (
                format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"),
                "[rabbitmq_management].",
            ),
            None => (String::new(), "[]."),
        };
        let tls = self.options.tls.as_ref();
        let tls = tls.map_or_else(String::new, |tls| tls.config(self.tls_port));
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             log.console = false\n\
             log.file.level = info\n\
             vm_memory_high_watermark.absolute = 2GiB\n\
             disk_free_limit.absolute = 50MB\n\
             consumer_timeout = 1800000\n\
             {management}{tls}",
            self.port
        );
        fs::write(folder.join("rabbitmq.conf"), config)?;
        fs::write(folder.join("enabled_plugins"), plugins)?;
        Ok(())
    }

    /// `amqp://guest:guest@127.0.0.1:…/%2f`
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for("guest", "guest", "%2f")
    }

    /// The URL for a user and a virtual host, both percent-encoded where they need it.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str, vhost: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.port)
    }

    /// The same over TLS.
    #[must_use]
    pub fn tls_url_for(&self, user: &str, password: &str, vhost: &str) -> String {
        let port = self.tls_port;
        format!("amqps://{user}:{password}@127.0.0.1:{port}/{vhost}")
    }

    /// Makes it read its certificates again when the next client comes.
    pub fn forget_certificates(&self) -> Result<()> {
        self.rabbitmqctl(["eval", "ok = ssl:clear_pem_cache()."])
            .map(drop)
    }

    /// Closes all connections of this user, in whatever virtual host.
    pub fn close_connections(&self, user: &str) -> Result<()> {
        self.rabbitmqctl(["close_all_user_connections", user, "closed by a test"])
            .map(drop)
    }

    /// The connections that there are, by the broker's own names for them.
    pub fn connections(&self) -> Result<BTreeSet<String>> {
        let listed = self.rabbitmqctl(["list_connections", "--no-table-headers", "pid"])?;
        let names = listed.lines().map(str::trim);
        Ok(names.filter(|n| !n.is_empty()).map(str::to_owned).collect())
    }

    /// Its AMQP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data, configuration and logs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A virtual host that nobody else uses. It is deleted with the value.
    pub fn new_vhost(&self) -> Result<Vhost<'_>> {
        let number = self.vhosts.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{number}");
        self.create_vhost(&name)?;
        Ok(Vhost { broker: self, name })
    }

    fn create_vhost(&self, name: &str) -> Result<()> {
        // One call instead of two, since each starts an Erlang machine.
        self.rabbitmqctl([
            "eval",
            &format!(
                "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"harness\">>), \
                 ok = rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"{name}\">>, \
                 <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"harness\">>)."
            ),
        ])
        .map(drop)
    }

    /// Adds a user without any permission.
    pub fn add_user(&self, name: &str, password: &str) -> Result<()> {
        self.rabbitmqctl(["add_user", name, password]).map(drop)
    }

    /// Stops and starts the broker inside its Erlang machine, as an upgrade or a reconfiguration does.
    pub fn restart(&self) -> Result<()> {
        self.stop_app()?;
        self.start_app()
    }

    /// Closes all connections and stops serving.
    pub fn stop_app(&self) -> Result<()> {
        self.rabbitmqctl(["stop_app"]).map(drop)
    }

    /// Serves again, with what was there before.
    pub fn start_app(&self) -> Result<()> {
        self.rabbitmqctl(["start_app"]).map(drop)
    }

    /// Kills the node as a power cut would.
    pub fn kill(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut node) => node.kill(),
            None => bail!("the node is not running"),
        }
    }

    /// Takes away everything that a killed node had on its disk.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.lock().is_none(), "the node is running");
        fs::remove_dir_all(self.scratch.path().join("data")).context("wiping the node")
    }

    /// Starts the node on the data that it left behind.
    pub fn start_again(&self) -> Result<()> {
        let mut command = Command::new(self.scripts.join("rabbitmq-server"));
        self.set_environment(&mut command);
        // With these two the script becomes the Erlang machine instead of waiting for it, so that the
        // process that is killed and waited for is the broker itself.
        command
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_SERVER_START_ARGS", "-noinput");
        let log = self.scratch.path().join("node.log");
        let mut node = self.scratch.spawn(command, &log, Signal::SIGKILL)?;
        let address = (Ipv4Addr::LOCALHOST, self.port);
        wait::until_blocking("RabbitMQ to listen", START_LIMIT, || {
            if let Some(status) = node.exited()? {
                bail!("RabbitMQ ended with {status}:\n{}", node.tail(30));
            }
            Ok(TcpStream::connect(address).ok())
        })?;
        self.rabbitmqctl(["await_startup"])?;
        *self.lock() = Some(node);
        Ok(())
    }

    /// Processor time that the node has used.
    pub fn cpu_time(&self) -> Result<Duration> {
        let node = self.lock();
        node.as_ref().context("the node is down")?.cpu_time()
    }

    /// Runs `rabbitmqctl` against this node and returns what it printed.
    pub fn rabbitmqctl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = Command::new(self.scripts.join("rabbitmqctl"));
        self.set_environment(&mut command);
        command.arg("--quiet").args(arguments);
        let output = command.output().context("running rabbitmqctl")?;
        printed(&command, &output)
    }

    /// Nothing of the machine's own RabbitMQ setup gets through.
    fn set_environment(&self, command: &mut Command) {
        let folder = self.scratch.path();
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("RABBITMQ_") || name_text.starts_with("ERL_") {
                command.env_remove(&name);
            }
        }
        command
            .current_dir(folder)
            .env("HOME", folder.join("home"))
            .env("ERL_EPMD_PORT", self.port_mapper_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("no-such-file"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("no-such-file"))
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                folder.join("enabled_plugins"),
            )
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_MNESIA_DIR", folder.join("data/node"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", folder.join("feature_flags"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("node.pid"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            // Each running rabbitmqctl needs a port, of which only eleven are meant for it by default.
            .env("RABBITMQ_CTL_DIST_PORT_MAX", "36671")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}",
            );
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tls {
    fn config(&self, port: u16) -> String {
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = {}\n",
            self.ca.display(),
            self.files.certificate.display(),
            self.files.key.display(),
            self.demands_certificate
        )
    }
}

/// A virtual host of one test. Dropping it deletes it.
#[derive(Debug)]
pub struct Vhost<'a> {
    broker: &'a RabbitMq,
    name: String,
}

/// How many messages a queue holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting for a consumer.
    pub ready: u64,
    /// Delivered and not acknowledged.
    pub unacked: u64,
}

impl Depth {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.ready + self.unacked
    }
}

impl Vhost<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that it lives on.
    #[must_use]
    pub fn broker(&self) -> &RabbitMq {
        self.broker
    }

    /// Its URL, for a user who may do everything in it.
    #[must_use]
    pub fn url(&self) -> String {
        self.broker.url_for("guest", "guest", &self.name)
    }

    /// Creates it anew on a broker that was wiped, as an operator's definitions would.
    pub fn create_again(&self) -> Result<()> {
        self.broker.create_vhost(&self.name)
    }

    /// How full its queues are, by name; exact, unlike the management plugin's samples.
    pub fn queue_depths(&self) -> Result<BTreeMap<String, Depth>> {
        let columns = ["name", "messages_ready", "messages_unacknowledged"];
        let arguments = ["list_queues", "--no-table-headers", "-p", &self.name];
        let table = self
            .broker
            .rabbitmqctl(arguments.into_iter().chain(columns))?;
        table
            .lines()
            .filter(|line| !line.is_empty())
            .map(read_depth)
            .collect()
    }

    /// Throws away what waits in a queue.
    pub fn purge_queue(&self, queue: &str) -> Result<()> {
        self.broker
            .rabbitmqctl(["purge_queue", "-p", &self.name, queue])
            .map(drop)
    }

    /// Deletes a queue with all that it holds.
    pub fn delete_queue(&self, queue: &str) -> Result<()> {
        self.broker
            .rabbitmqctl(["delete_queue", "-p", &self.name, queue])
            .map(drop)
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        // A broker that a test has killed has nothing left to delete.
        self.broker.rabbitmqctl(["delete_vhost", &self.name]).ok();
    }
}

fn read_depth(line: &str) -> Result<(String, Depth)> {
    let mut columns = line.split('\t');
    let mut next = || {
        columns
            .next()
            .with_context(|| format!("too few columns: {line:?}"))
    };
    let name = next()?.to_owned();
    let depth = Depth {
        ready: next()?.trim().parse()?,
        unacked: next()?.trim().parse()?,
    };
    Ok((name, depth))
}

fn printed(command: &Command, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Erlang's port mapper would otherwise be started in the background and outlive the node.
fn start_port_mapper(scratch: &Scratch, port: u16) -> Result<Process> {
    let mut command = Command::new("epmd");
    command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
    let log = scratch.path().join("epmd.log");
    let mut mapper = scratch.spawn(command, &log, Signal::SIGKILL)?;
    wait::until_blocking("epmd to listen", STOP_LIMIT, || {
        if let Some(status) = mapper.exited()? {
            bail!("epmd ended with {status}:\n{}", mapper.tail(10));
        }
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    })?;
    Ok(mapper)
}

fn find_scripts() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(SCRIPTS) {
        return Ok(folder.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = SCRIPT_FOLDERS.iter().map(PathBuf::from);
    known
        .chain(std::env::split_paths(&path))
        .find(|folder| {
            folder.join("rabbitmq-server").is_file() && folder.join("rabbitmqctl").is_file()
        })
        .context("RabbitMQ is not installed; on Debian and Ubuntu: apt-get install rabbitmq-server")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_data_over_a_restart_and_a_power_cut() {
        let broker = RabbitMq::start().unwrap();
        let vhost = broker.new_vhost().unwrap();
        let declare = format!(
            "rabbit_amqqueue:declare(rabbit_misc:r(<<\"{}\">>, queue, <<\"q\">>), true, false, \
             [{{<<\"x-queue-type\">>, longstr, <<\"quorum\">>}}], none, <<\"harness\">>).",
            vhost.name()
        );
        broker.rabbitmqctl(["eval", &declare]).unwrap();
        let expected = BTreeMap::from([("q".to_owned(), Depth::default())]);
        assert_eq!(vhost.queue_depths().unwrap(), expected);
        broker.restart().unwrap();
        assert_eq!(vhost.queue_depths().unwrap(), expected);
        broker.kill().unwrap();
        broker.start_again().unwrap();
        assert_eq!(vhost.queue_depths().unwrap(), expected);
        vhost.delete_queue("q").unwrap();
        assert!(vhost.queue_depths().unwrap().is_empty());
    }

    #[test]
    fn at_least_once_dead_lettering_is_possible() {
        let flags = shared()
            .rabbitmqctl(["list_feature_flags", "name", "state"])
            .unwrap();
        assert!(flags.contains("stream_queue\tenabled"), "{flags}");
    }
}
