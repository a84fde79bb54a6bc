//! TLS between all parts: a run over it, certificates and passwords replaced under it, and nobody believed who cannot
//! be verified.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::api::{Api, line};
use harness::certificates::{Authority, Files, Validity};
use harness::postgres::{self, Postgres};
use harness::processes;
use harness::rabbitmq::{self, RabbitMq, Tls};
use harness::stack::Stack;
use shared::exit;

use crate::bad_setup::{refused, refused_by};

const LIMIT: Duration = Duration::from_mins(2);
const HERE: &[&str] = &["127.0.0.1"];
/// The first batches are done at once, the others when there is a file `go`.
const PIPELINES: &str = r#"
[pipelines.gated]
handler = "exec"
command = ["sh", "-c", "read n; while [ $n -gt 8 ] && [ ! -e go ]; do sleep 0.1; done; echo $n"]
"#;
const BATCHES: u32 = 60;

/// The files of one installation, each with a certificate of its own.
struct Folder {
    folder: tempfile::TempDir,
    ca: Authority,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new("first").unwrap();
        let made = Self { folder, ca };
        made.issue_all();
        made
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn issue(&self, name: &str, validity: Validity) -> Files {
        let issued = self.ca.issue(self.folder.path(), name, HERE, validity);
        issued.unwrap()
    }

    fn issue_all(&self) {
        self.ca.write(&self.at("ca.pem")).unwrap();
        for name in ["broker", "database", "api", "client"] {
            self.issue(name, Validity::Now);
        }
    }

    fn files(&self, name: &str) -> Files {
        Files {
            certificate: self.at(&format!("{name}.pem")),
            key: self.at(&format!("{name}.key")),
        }
    }

    fn broker(&self, demands_certificate: bool) -> RabbitMq {
        let started = RabbitMq::start_with_tls(Tls {
            ca: self.at("ca.pem"),
            files: self.files("broker"),
            demands_certificate,
        });
        started.unwrap()
    }

    /// What a database's URL says about it.
    fn parameters(&self) -> String {
        let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(|n| self.text(n));
        format!("sslmode=verify-full&sslrootcert={ca}&sslcert={certificate}&sslkey={key}")
    }
}

/// Points both programs at a broker's TLS port, with a password in a file.
fn use_broker(stack: &mut Stack<'_>, folder: &Folder) {
    fs::write(folder.at("password"), "guest").unwrap();
    let vhost = stack.vhost();
    let url = vhost.broker().tls_url_for("guest", "", vhost.name());
    stack.set("TIDEGATE_BROKER__URL", url.replace(":@", "@"));
    for (key, file) in [
        ("PASSWORD_FILE", "password"),
        ("CA_FILE", "ca.pem"),
        ("CERT_FILE", "client.pem"),
        ("KEY_FILE", "client.key"),
    ] {
        stack.set(&format!("TIDEGATE_BROKER__{key}"), folder.text(file));
    }
}

/// Makes both programs answer over HTTPS.
fn use_https(stack: &mut Stack<'_>, folder: &Folder) {
    for section in ["API", "WORKER"] {
        let key = |key: &str| format!("TIDEGATE_{section}__{key}_FILE");
        stack.set(&key("CERT"), folder.text("api.pem"));
        stack.set(&key("KEY"), folder.text("api.key"));
    }
    stack.api = over_tls(stack, &folder.ca);
}

fn over_tls(stack: &Stack<'_>, ca: &Authority) -> Api {
    let (_, address) = stack.api.url().split_once("://").unwrap();
    Api::over_tls(&format!("https://{address}"), ca).unwrap()
}

fn check_broker(broker: &RabbitMq) {
    let listed = broker.rabbitmqctl(["list_connections", "--no-table-headers", "ssl"]);
    let listed = listed.unwrap();
    let over_tls: BTreeSet<&str> = listed.lines().map(str::trim).collect();
    assert_eq!(over_tls, BTreeSet::from(["true"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_over_tls_goes_on_with_new_certificates_and_passwords() {
    let mut folder = Folder::new();
    let broker = folder.broker(true);
    let database = Postgres::start().unwrap();
    let trusted = folder.at("ca.pem");
    let certificate = folder.files("database");
    database.use_certificates(&certificate, &trusted).unwrap();
    let mut stack = Stack::new(&broker, PIPELINES).unwrap();
    use_broker(&mut stack, &folder);
    use_https(&mut stack, &folder);
    for section in ["LEDGER", "SINK"] {
        let url = database.new_secured_database().unwrap();
        let url = format!("{url}?{}", folder.parameters());
        stack.set(&format!("TIDEGATE_{section}__URL"), url);
    }
    stack.set("TIDEGATE_REQUIRE_TLS", "true");
    stack.set("TIDEGATE_WORKER__PIPELINES", "gated");
    stack.set("TIDEGATE_WORKER__SLOTS", "4");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let figures = Api::over_tls(&stack.worker_url("a").unwrap(), &folder.ca).unwrap();
    assert!(figures.url().starts_with("https://") && figures.is_ready().await);
    check_broker(&broker);
    check_command_line(&stack, &folder).await;
    let file = format!("file=\"{}\"", folder.text("client.pem"));
    let expires = "tidegate_certificate_expires_seconds";
    let expires = stack.api.metric_with(expires, &[&file]).await.unwrap();
    assert_eq!(expires, Some(2_493_072_000.0), "the start of 2049");

    let lines = (0..BATCHES).map(|n| line("key", &n.into())).collect();
    let run = stack.api.submit("gated", lines).await.unwrap().run;
    let some = stack
        .api
        .wait_for_run(run, "some to be done", LIMIT, |run| {
            run.batches.completed > 3
        });
    some.await.unwrap();

    // Everything is replaced, the CA too; then all who are connected have to come again.
    let first = std::mem::replace(&mut folder.ca, Authority::new("second").unwrap());
    folder.issue_all();
    broker.forget_certificates().unwrap();
    let change = ["change_password", "guest", "another"];
    broker.rabbitmqctl(change).unwrap();
    fs::write(folder.at("password"), "another").unwrap();
    database.use_certificates(&certificate, &trusted).unwrap();
    let old = broker.connections().unwrap();
    assert!(!old.is_empty());
    broker.close_connections("guest").unwrap();
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'secured'";
    database.psql("postgres", cut).unwrap();

    let deceived = over_tls(&stack, &first);
    assert!(
        !deceived.is_ready().await,
        "it is not the first CA's any more"
    );
    stack.api = over_tls(&stack, &folder.ca);
    fs::write(stack.scratch().path().join("go"), "").unwrap();
    let ended = stack.api.wait_until_ended(run, LIMIT).await.unwrap();
    assert_eq!(ended.batches.completed, u64::from(BATCHES), "{ended:?}");
    let new = broker.connections().unwrap();
    assert!(!new.is_empty() && new.is_disjoint(&old), "{old:?} {new:?}");
    let sink = &stack.environment["TIDEGATE_SINK__URL"];
    let (sink, _) = sink.split_once('?').unwrap();
    let (_, sink) = sink.rsplit_once('/').unwrap();
    let stored = "select count(*), count(distinct batch) from results";
    let stored = database.psql(sink, stored).unwrap();
    assert_eq!(stored.trim(), format!("{BATCHES}\t{BATCHES}"));
    check_broker(&broker);
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                 where usename = 'secured' and not ssl";
    assert_eq!(database.psql("postgres", plain).unwrap().trim(), "0");
    for service in ["coordinator", "a"] {
        let service = match service {
            "a" => stack.worker("a"),
            _ => stack.coordinator(),
        };
        service.ensure_running().unwrap();
    }

    // Who brings no certificate is told what to do.
    for key in ["CERT", "KEY"] {
        stack
            .environment
            .remove(&format!("TIDEGATE_BROKER__{key}_FILE"));
    }
    stack.set("TIDEGATE_API__LISTEN", "127.0.0.1:0");
    stack.environment.remove("TIDEGATE_LEDGER__URL");
    stack.environment.remove("TIDEGATE_SINK__URL");
    let words = ["not trusted", "broker.cert_file and broker.key_file"];
    refused(&mut stack, exit::CONFIG, &words);
}

/// `coordinator health` knows its own certificate; `tidegate` trusts a CA when it is told to.
async fn check_command_line(stack: &Stack<'_>, folder: &Folder) {
    let scratch = stack.scratch().path();
    let health = |own: &str| {
        let mut environment = stack.environment.clone();
        for (key, file) in [
            ("CERT", format!("{own}.pem")),
            ("KEY", format!("{own}.key")),
        ] {
            environment.insert(format!("TIDEGATE_API__{key}_FILE"), folder.text(&file));
        }
        let mut health = processes::command("coordinator", scratch, &environment).unwrap();
        health.arg("health").output().unwrap()
    };
    let (own, other) = (health("api"), health("client"));
    assert!(own.status.success(), "{own:?}");
    assert_eq!(
        other.status.code(),
        Some(1),
        "it believed another: {other:?}"
    );

    let ca = folder.text("ca.pem");
    let list = async |ca: &str| {
        let arguments = ["--ca-file", ca, "run", "list"];
        stack.tidegate(&arguments).await.unwrap()
    };
    let trusting = list(&ca).await;
    assert_eq!(trusting.code, i32::from(exit::OK), "{trusting:?}");
    let stranger = folder.text("stranger.pem");
    Authority::new("stranger")
        .unwrap()
        .write(Path::new(&stranger))
        .unwrap();
    let other = list(&stranger).await;
    assert_eq!(other.code, i32::from(exit::CONFIG), "{other:?}");
    let says = |word| other.stderr.contains(word);
    assert!(says("not trusted") && says("--ca-file"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_verified_is_refused() {
    let folder = Folder::new();
    let broker = folder.broker(false);
    let mut stack = Stack::new(&broker, "").unwrap();
    use_broker(&mut stack, &folder);
    for key in ["CERT", "KEY"] {
        stack
            .environment
            .remove(&format!("TIDEGATE_BROKER__{key}_FILE"));
    }
    let url = stack.environment["TIDEGATE_BROKER__URL"].clone();

    // Signed by somebody else.
    let other = Authority::new("other").unwrap();
    other.write(&folder.at("other.pem")).unwrap();
    stack.set("TIDEGATE_BROKER__CA_FILE", folder.text("other.pem"));
    refused(
        &mut stack,
        exit::CONFIG,
        &["is not trusted", "broker.ca_file"],
    );
    stack.set("TIDEGATE_BROKER__CA_FILE", folder.text("ca.pem"));

    // Good for another name.
    let by_name = url.replace("127.0.0.1", "localhost");
    stack.set("TIDEGATE_BROKER__URL", by_name);
    refused(
        &mut stack,
        exit::CONFIG,
        &["not for this host name", "127.0.0.1"],
    );

    // Plain where TLS was asked for.
    let plain = url.replace(&port_of(&url), &broker.port().to_string());
    stack.set("TIDEGATE_BROKER__URL", plain);
    refused(&mut stack, exit::CONFIG, &["does not speak TLS"]);

    // Good once.
    stack.set("TIDEGATE_BROKER__URL", url);
    folder.issue("broker", Validity::Expired);
    broker.forget_certificates().unwrap();
    refused(&mut stack, exit::CONFIG, &["not valid now", "renew it"]);

    // And good again.
    folder.issue("broker", Validity::Now);
    broker.forget_certificates().unwrap();
    stack.start_coordinator().await.unwrap();
    let doctor = stack.tidegate(&["doctor"]).await.unwrap();
    assert!(doctor.stdout.contains("RabbitMQ "), "{doctor:?}");
}

fn port_of(url: &str) -> String {
    let (_, rest) = url.rsplit_once(':').unwrap();
    rest.split('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_verified_is_refused() {
    let folder = Folder::new();
    let database = Postgres::start().unwrap();
    let trusted = folder.at("ca.pem");
    let use_certificate = |files: &Files| database.use_certificates(files, &trusted).unwrap();
    use_certificate(&folder.files("database"));
    let url = database.new_secured_database().unwrap();
    let good = format!("{url}?{}", folder.parameters());
    let mut stack = Stack::new(rabbitmq::shared(), "").unwrap();
    let mut refuse = |url: &str, words: &[&str]| {
        for (program, section) in [("coordinator", "LEDGER"), ("worker", "SINK")] {
            stack.set(&format!("TIDEGATE_{section}__URL"), url);
            refused_by(program, &mut stack, exit::CONFIG, words);
        }
    };

    let other = Authority::new("other").unwrap();
    other.write(&folder.at("other.pem")).unwrap();
    let words = ["not trusted", "sslrootcert"];
    refuse(&good.replace("/ca.pem", "/other.pem"), &words);
    let words = ["not trusted", "not for this host name"];
    refuse(&good.replace("127.0.0.1", "localhost"), &words);
    let plain = postgres::shared().new_database().unwrap();
    let plain = format!("{plain}?{}", folder.parameters());
    refuse(&plain, &["not trusted", "does not speak TLS"]);
    use_certificate(&folder.issue("database", Validity::Expired));
    refuse(&good, &["not trusted", "not valid now"]);
}
