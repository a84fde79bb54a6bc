//! Messages are signed: all works, and what is not signed right is put aside, whatever it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::api::line;
use harness::emulator::{NO_LIMITS, NO_QUOTAS};
use harness::rabbitmq::{Vhost, shared as broker};
use harness::stack::Stack;
use harness::wait;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use scenario::script::{PIPELINE, Scripted};
use scenario::search_console::Sync;
use serde_json::json;
use shared::config::{SigningConfig, SigningMode};
use shared::id::RunId;
use shared::signing::{HEADER_SIGNATURE, Purpose, Signing};
use tokio::time::Instant;

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\n";
const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER_KEY: &str = "fedcba9876543210fedcba9876543210";
const BAD: &str = "tidegate_bad_signatures_total";
const SOON: Duration = Duration::from_secs(30);
/// A batch that was handed back, or lost, is out again and done within this.
const HEALED: Duration = Duration::from_mins(1);

/// A folder of keys, of which the first signs.
fn keys(stack: &Stack<'_>, name: &str, keys: &[(&str, &str)]) -> PathBuf {
    let folder = stack.scratch().path().join(name);
    fs::create_dir(&folder).unwrap();
    for (id, key) in keys {
        fs::write(folder.join(id), format!("{key}\n")).unwrap();
    }
    fs::write(folder.join("current"), keys[0].0).unwrap();
    folder
}

fn require(stack: &mut Stack<'_>, folder: &Path) {
    stack.set("TIDEGATE_SIGNING__MODE", "require");
    stack.set("TIDEGATE_SIGNING__KEYS_FOLDER", folder.to_str().unwrap());
}

/// Signs as a program does that has these keys.
fn signing(folder: &Path) -> Signing {
    let config = SigningConfig {
        mode: SigningMode::Require,
        keys_folder: Some(folder.to_owned()),
    };
    Signing::open(&config).unwrap()
}

/// Somebody who has got hold of the broker.
struct Intruder {
    channel: Channel,
    _connection: Connection,
}

impl Intruder {
    async fn new(vhost: &Vhost<'_>) -> Self {
        let url = vhost.url();
        let connecting = Connection::connect(&url, ConnectionProperties::default());
        let connection = connecting.await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        confirms.await.unwrap();
        Self {
            channel,
            _connection: connection,
        }
    }

    /// The next batch; it stays where it is only for others.
    async fn steal(&self) -> (BasicProperties, Vec<u8>) {
        let queue = "tidegate.work.noop.0";
        let give_up = Instant::now() + SOON;
        loop {
            let get = self
                .channel
                .basic_get(queue.into(), BasicGetOptions::default());
            if let Some(message) = get.await.unwrap() {
                let ack = message.delivery.acker.ack(BasicAckOptions::default());
                ack.await.unwrap();
                return (message.delivery.properties, message.delivery.data);
            }
            assert!(Instant::now() < give_up, "no batch was published");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn publish(&self, to: (&str, &str), properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        let (exchange, key) = (to.0.into(), to.1.into());
        let sent = self
            .channel
            .basic_publish(exchange, key, options, body, properties);
        assert!(sent.await.unwrap().await.unwrap().is_ack());
    }
}

const WORK: (&str, &str) = ("tidegate.work", "noop.0");
const OUTCOMES: (&str, &str) = ("tidegate.outcomes", "0");
const DEAD: (&str, &str) = ("tidegate.dead", "");

fn without_signature(properties: &BasicProperties) -> BasicProperties {
    let headers = properties.headers().clone().unwrap_or_default();
    let mut kept = FieldTable::default();
    for (name, value) in headers.inner() {
        if name.as_str() != HEADER_SIGNATURE {
            kept.insert(name.clone(), value.clone());
        }
    }
    properties.clone().with_headers(kept)
}

fn with_header(properties: &BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    properties.clone().with_headers(headers)
}

async fn one_batch(stack: &mut Stack<'_>) -> RunId {
    stack.set("TIDEGATE_LANES", "1");
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.start_coordinator().await.unwrap();
    let submitted = stack.api.submit("noop", line("k", &1.into())).await;
    submitted.unwrap().run
}

async fn wait_for_quarantine(stack: &Stack<'_>, count: u64) {
    wait::until("the messages to be in quarantine", SOON, async || {
        let depths = stack.vhost().queue_depths()?;
        Ok((depths["tidegate.quarantine"].ready == count).then_some(()))
    })
    .await
    .unwrap();
}

async fn completes(stack: &Stack<'_>, run: RunId) {
    let run = stack.api.wait_until_ended(run, HEALED).await.unwrap();
    assert_eq!(run.batches.completed, run.batches.accepted, "{run:?}");
}

/// Neither the coordinator nor this worker has seen a signature that was not right.
async fn assert_nothing_bad(stack: &mut Stack<'_>, worker: &str) {
    assert_eq!(stack.api.metric(BAD).await.unwrap(), None);
    assert_eq!(stack.worker_metric(worker, BAD).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_runs_when_everything_is_signed() {
    let mut stack = Stack::new(broker(), NO_LIMITS).unwrap();
    let emulator = stack.start_emulator(NO_QUOTAS).await.unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    require(&mut stack, &folder);
    stack.start_coordinator().await.unwrap();
    for worker in ["a", "b"] {
        stack.start_worker(worker).await.unwrap();
    }
    let mut sync = Sync {
        stack,
        emulator,
        days: 4,
    };
    // What a dead worker leaves behind is asked about, and the answer is signed too.
    sync.complete_without("a", 10).await.unwrap();
    let coordinator = sync.stack.coordinator();
    let signs = "messages are signed mode=Require";
    coordinator.wait_for_line(signs, SOON).unwrap();
    assert_nothing_bad(&mut sync.stack, "b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_signed_right_is_put_aside_and_harms_no_batch() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    require(&mut stack, &folder);
    // Nothing here is lost, however long it takes.
    stack.set("TIDEGATE_RECONCILE__AFTER", "10m");
    let ours = signing(&folder);
    let strangers = signing(&keys(&stack, "wrong", &[("2026-11", OTHER_KEY)]));
    let unknown = signing(&keys(&stack, "unknown", &[("2026-12", KEY)]));
    let run = one_batch(&mut stack).await;
    let intruder = Intruder::new(stack.vhost()).await;
    let (genuine, body) = intruder.steal().await;
    let bare = without_signature(&genuine);

    let attempt = AMQPValue::LongUInt(2);
    let forged_work = [
        bare.clone(),
        strangers.sign(Purpose::Work, bare.clone(), &body),
        unknown.sign(Purpose::Work, bare.clone(), &body),
        // An outcome's signature makes no work.
        ours.sign(Purpose::Outcomes, bare.clone(), &body),
        with_header(&genuine, "x-tidegate-attempt", attempt),
        with_header(
            &genuine,
            "x-tidegate-key",
            AMQPValue::LongString("x".into()),
        ),
        genuine.clone().with_type("tidegate.batch.v9".into()),
    ];
    for properties in &forged_work {
        intruder.publish(WORK, properties.clone(), &body).await;
    }
    intruder.publish(WORK, genuine.clone(), b"2").await;
    let mut forged = forged_work.len() as u64 + 1;

    // A death, by ids that the ledger knows.
    let reason = AMQPValue::LongString("failed".into());
    let death = with_header(&bare, "x-tidegate-reason", reason);
    intruder.publish(DEAD, death, &body).await;
    // A verdict, unsigned, by another key, and with the signature of work.
    let verdict = json!({"worker": "w", "reports": [{
        "batch": genuine.message_id().as_ref().unwrap().as_str(),
        "run": run, "pipeline": "noop", "attempt": 1,
        "outcome": {"failed": {"reason": "failed", "error": "forged"}},
    }]})
    .to_string();
    let verdict = verdict.as_bytes();
    let outcome = BasicProperties::default()
        .with_type("tidegate.outcomes.v1".into())
        .with_message_id("m".into());
    for properties in [
        outcome.clone(),
        strangers.sign(Purpose::Outcomes, outcome.clone(), verdict),
        ours.sign(Purpose::Work, outcome.clone(), verdict),
    ] {
        intruder.publish(OUTCOMES, properties, verdict).await;
    }
    forged += 4;

    stack.start_worker("a").await.unwrap();
    wait_for_quarantine(&stack, forged).await;
    let still = stack.api.run(run).await.unwrap();
    assert_eq!(still.batches.out, 1, "nothing was believed: {still:?}");

    // Back in its queue, as it was.
    intruder.publish(WORK, genuine, &body).await;
    completes(&stack, run).await;
    // A genuine verdict that comes late changes nothing either.
    let late = ours.sign(Purpose::Outcomes, outcome, verdict);
    intruder.publish(OUTCOMES, late, verdict).await;
    wait::until("the late verdict to be settled", SOON, async || {
        let settled = ["tidegate_settled_total", "effect=\"duplicate\""];
        let count = stack.api.metric_with(settled[0], &settled[1..]).await?;
        Ok(count.filter(|count| *count >= 1.0).map(|_| ()))
    })
    .await
    .unwrap();
    completes(&stack, run).await;
    let refused = stack.worker_metric("a", BAD).await.unwrap().unwrap();
    assert!(refused >= 8.0, "{refused}");
    let depths = stack.vhost().queue_depths().unwrap();
    assert_eq!(depths["tidegate.quarantine"].ready, forged, "{depths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_tampered_with_goes_out_again() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    require(&mut stack, &folder);
    stack.set("TIDEGATE_BROKER__HEARTBEAT", "1s");
    stack.set("TIDEGATE_RECONCILE__AFTER", "3s");
    let run = one_batch(&mut stack).await;
    let intruder = Intruder::new(stack.vhost()).await;
    let (genuine, _) = intruder.steal().await;
    intruder.publish(WORK, genuine, b"\"evil\"").await;
    stack.start_worker("a").await.unwrap();
    completes(&stack, run).await;
    wait_for_quarantine(&stack, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_others() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    require(&mut stack, &folder);
    stack.start_coordinator().await.unwrap();
    stack.start_worker("a").await.unwrap();
    let intruder = Intruder::new(stack.vhost()).await;
    let ghost = json!({
        "worker": "ghost", "version": "1", "pipelines": ["noop"], "slots": 4000, "holding": [], "draining": false,
    });
    let presence = BasicProperties::default().with_type("tidegate.presence.v1".into());
    let body = ghost.to_string();
    intruder
        .publish(("tidegate.presence", ""), presence, body.as_bytes())
        .await;
    let question = BasicProperties::default().with_type("tidegate.ask.v1".into());
    intruder
        .publish(("tidegate.ask", "0"), question, b"{\"questions\":[]}")
        .await;
    for message in ["message=\"presence\"", "message=\"questions\""] {
        wait::until("it to be refused", SOON, async || {
            let refused = stack.api.metric_with(BAD, &[message]).await?;
            Ok(refused.filter(|count| *count >= 1.0).map(|_| ()))
        })
        .await
        .unwrap();
    }
    let workers = stack.api.workers().await.unwrap();
    let names: Vec<String> = workers.iter().map(|w| w.worker.to_string()).collect();
    assert!(names.len() == 1 && names[0] != "ghost", "{names:?}");

    let control = BasicProperties::default().with_type("tidegate.control.v1".into());
    intruder
        .publish(
            ("tidegate.control", ""),
            control,
            b"{\"coordinator\":\"c\",\"cancelled\":[]}",
        )
        .await;
    let url = stack.worker_url("a").unwrap();
    wait::until("the worker to refuse it", SOON, async || {
        let client = reqwest::Client::new();
        let labels = ["message=\"control\""];
        let refused = harness::api::metric(&client, &url, BAD, &labels).await?;
        Ok(refused.filter(|count| *count >= 1.0).map(|_| ()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_keys_kills_no_batch() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    let wrong = keys(&stack, "wrong", &[("2026-11", OTHER_KEY)]);
    require(&mut stack, &folder);
    let run = one_batch(&mut stack).await;
    require(&mut stack, &wrong);
    // Its presence is not believed, so the coordinator never knows it.
    let blind = stack.spawn_worker("blind").unwrap();
    blind.wait_for_line("cannot be run", SOON).unwrap();
    let coordinator = stack.coordinator();
    coordinator
        .wait_for_line("give both the same keys", SOON)
        .unwrap();
    stack.worker("blind").kill().unwrap();
    require(&mut stack, &folder);
    stack.start_worker("a").await.unwrap();
    completes(&stack, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_during_a_run() {
    let mut scripted = Scripted::prepare(broker(), "").unwrap();
    let folder = keys(&scripted.stack, "keys", &[("old", KEY)]);
    require(&mut scripted.stack, &folder);
    scripted.stack.start_coordinator().await.unwrap();
    scripted.hold("a").unwrap();
    scripted.stack.set("TIDEGATE_WORKER__SLOTS", "2");
    scripted.start_worker("a").await.unwrap();
    let lines = (0..40).map(|n| line(&format!("key-{n}"), &n.into()));
    let run = scripted.stack.api.submit(PIPELINE, lines.collect()).await;
    let run = run.unwrap().run;
    scripted.wait_for_starts("a", 2, SOON).await.unwrap();

    let both_say = |scripted: &mut Scripted<'_>, keys: &str| {
        let said = format!("keys={keys}");
        let coordinator = scripted.stack.coordinator();
        coordinator.wait_for_line(&said, SOON).unwrap();
        let worker = scripted.stack.worker("a");
        worker.wait_for_line(&said, SOON).unwrap();
    };
    fs::write(folder.join("new"), OTHER_KEY).unwrap();
    both_say(&mut scripted, "accepts new, old, signs with old");
    fs::write(folder.join("current"), "new").unwrap();
    both_say(&mut scripted, "accepts new, old, signs with new");
    // What was signed with the old key still waits in the queue.
    scripted.let_go("a").unwrap();
    completes(&scripted.stack, run).await;
    fs::remove_file(folder.join("old")).unwrap();
    both_say(&mut scripted, "accepts new, signs with new");
    let again = scripted.stack.api.submit(PIPELINE, line("k", &1.into()));
    let again = again.await.unwrap().run;
    completes(&scripted.stack, again).await;
    assert_nothing_bad(&mut scripted.stack, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_changed_over_while_it_works() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let folder = keys(&stack, "keys", &[("2026-11", KEY)]);
    stack.set("TIDEGATE_WORKER__PIPELINES", "noop");
    stack.start_coordinator().await.unwrap();
    stack.start_worker("old").await.unwrap();
    require(&mut stack, &folder);
    stack.set("TIDEGATE_SIGNING__MODE", "observe");
    stack.start_worker("new").await.unwrap();
    let lines = |count: usize| (0..count).map(|n| line(&format!("k{n}"), &n.into()));
    let run = stack.api.submit("noop", lines(200).collect()).await;
    completes(&stack, run.unwrap().run).await;
    wait::until("the worker to notice", SOON, async || {
        let observed = stack.worker_metric("new", BAD).await?;
        Ok((observed > Some(0.0)).then_some(()))
    })
    .await
    .unwrap();

    // The other way round: the coordinator signs, and not every worker does.
    stack.coordinator().kill().unwrap();
    stack.start_coordinator().await.unwrap();
    let run = stack.api.submit("noop", lines(200).collect()).await;
    completes(&stack, run.unwrap().run).await;
    wait::until("the coordinator to notice", SOON, async || {
        Ok((stack.api.metric(BAD).await? > Some(0.0)).then_some(()))
    })
    .await
    .unwrap();
    let depths = stack.vhost().queue_depths().unwrap();
    assert_eq!(depths["tidegate.quarantine"].ready, 0, "{depths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_used_end_the_start() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    let empty = stack.scratch().path().join("empty");
    fs::create_dir(&empty).unwrap();
    require(&mut stack, &empty);
    let config = i32::from(shared::exit::CONFIG);
    let coordinator = stack.spawn_coordinator().unwrap();
    assert_eq!(coordinator.exit_code(SOON).unwrap(), config);
    let said = coordinator.output().unwrap();
    assert!(said.contains("signing.keys_folder"), "{said}");
    let worker = stack.spawn_worker("a").unwrap();
    assert_eq!(worker.exit_code(SOON).unwrap(), config);
}
