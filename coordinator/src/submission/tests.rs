//! Submission against a real SQLite ledger.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LedgerViews, NewBatch};

/// Between two looks.
const WAIT: Duration = Duration::from_millis(10);

struct Fixture {
    stage: SubmissionStage,
    ledger: Arc<SqliteLedger>,
    notices: mpsc::Receiver<Notice>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Arc::new(
            SqliteLedger::open(&folder.path().join("ledger.db"))
                .await
                .unwrap(),
        );
        let (tell, notices) = mpsc::channel(8);
        let stage = SubmissionStage {
            ledger: ledger.clone(),
            pipelines: BTreeMap::from([(
                PipelineName::new("hashes").unwrap(),
                PipelineConfig::default(),
            )]),
            room: Room::new(5_000),
            pressure: Arc::new(NoPressure),
            webhooks: Arc::new(NoWebhooks),
            notices: tell,
        };
        Self {
            stage,
            ledger,
            notices,
            _folder: folder,
        }
    }

    async fn submit(&self, key: Option<&str>, body: &str) -> Result<Accepted, SubmissionError> {
        self.submit_pieces(
            key,
            body.as_bytes()
                .chunks(if body.len() < 1_000 { 1 } else { 1_000 })
                .map(|p| Ok(Bytes::copy_from_slice(p)))
                .collect(),
        )
        .await
    }

    async fn submit_pieces(
        &self,
        key: Option<&str>,
        pieces: Vec<Result<Bytes, String>>,
    ) -> Result<Accepted, SubmissionError> {
        let submission = Submission {
            pipeline: "hashes".into(),
            priority: Priority::Normal,
            idempotency_key: key.map(str::to_owned),
            webhook: None,
        };
        self.stage
            .submit(submission, futures::stream::iter(pieces))
            .await
    }

    async fn nothing_is_kept(&self) {
        assert_eq!(self.ledger.runs(None, None, 10).await.unwrap(), []);
        assert_eq!(self.ledger.backlog().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn lines_become_a_run() {
    let mut fixture = Fixture::new().await;
    let body = "\u{feff}{\"key\":\"a\",\"payload\":1}\r\n\n  \n{\"payload\":{\"x\":[]}}";
    let Accepted::New(run) = fixture.submit(None, body).await.unwrap() else {
        panic!("a new run");
    };
    assert_eq!(run.batches.accepted, 2);
    assert!(matches!(fixture.notices.recv().await, Some(Notice::Accepted(id)) if id == run.run));
}

#[tokio::test]
async fn one_bad_line_refuses_the_whole_file_and_is_named() {
    let fixture = Fixture::new().await;
    let good = "{\"payload\":1}\n";
    let long_key = format!("{{\"key\":\"{}\",\"payload\":1}}", "k".repeat(3000));
    let deep = format!("{{\"payload\":{}1}}", "[".repeat(100_000));
    let cases: [(&str, &str); 11] = [
        ("{\"payload\":1", "no batch"),
        ("{\"payload\":1}}", "no batch"),
        ("{\"payload\":NaN}", "no batch"),
        ("[1]", "no batch"),
        ("{\"key\":\"a\"}", "payload"),
        ("{\"payload\":\"\\u0000\"}", "NUL"),
        ("{\"key\":\"a\\u0000\",\"payload\":1}", "control character"),
        (&long_key, "2048"),
        (&deep, "no batch"),
        ("{\"payload\":\"\\ud800\"}", "one JSON value"),
        ("{\"payload\":[1e999]}", "one JSON value"),
    ];
    for (bad, expected) in cases {
        let body = format!("{}{bad}\n{good}", good.repeat(3));
        let error = fixture.submit(None, &body).await.unwrap_err();
        let SubmissionError::Line { line: 4, problem } = error else {
            panic!("{bad:.50}: {error}");
        };
        assert!(
            problem.to_string().contains(expected),
            "{bad:.50}: {problem}"
        );
        fixture.nothing_is_kept().await;
    }
    let not_utf8 = vec![Ok(Bytes::from_static(b"{\"payload\":\"\xff\"}"))];
    let error = fixture.submit_pieces(None, not_utf8).await.unwrap_err();
    assert!(
        matches!(
            error,
            SubmissionError::Line {
                line: 1,
                problem: LineProblem::NotUtf8(13)
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_bad_line_behind_many_chunks_leaves_nothing() {
    let fixture = Fixture::new().await;
    let body = format!("{}oops", "{\"payload\":1}\n".repeat(4_500));
    let error = fixture.submit(None, &body).await.unwrap_err();
    assert!(
        matches!(error, SubmissionError::Line { line: 4_501, .. }),
        "{error}"
    );
    fixture.nothing_is_kept().await;
}

#[tokio::test]
async fn too_much_is_refused_whole() {
    let fixture = Fixture::new().await;
    let error = fixture
        .submit(None, &"{\"payload\":1}\n".repeat(5_001))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SubmissionError::QueueFull { limit: 5_000, .. }),
        "{error}"
    );
    fixture.nothing_is_kept().await;
    let huge = format!(
        "{{\"payload\":\"{}\"}}",
        "x".repeat(shared::payload::MAX_PAYLOAD_BYTES)
    );
    let error = fixture.submit(None, &huge).await.unwrap_err();
    let too_large = LineProblem::Payload(PayloadError::TooLarge(
        shared::payload::MAX_PAYLOAD_BYTES + 2,
    ));
    assert_eq!(
        error.to_string(),
        SubmissionError::Line {
            line: 1,
            problem: too_large
        }
        .to_string()
    );
    let endless = "x".repeat(MAX_LINE_BYTES + 100);
    let error = fixture.submit(None, &endless).await.unwrap_err();
    assert!(
        matches!(
            error,
            SubmissionError::Line {
                line: 1,
                problem: LineProblem::TooLong
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let fixture = Fixture::new().await;
    let pieces = vec![
        Ok(Bytes::from_static(b"{\"payload\":1}\n")),
        Err("reset".to_owned()),
    ];
    let error = fixture.submit_pieces(None, pieces).await.unwrap_err();
    assert!(matches!(error, SubmissionError::Body(_)));
    fixture.nothing_is_kept().await;
    assert!(matches!(
        fixture.submit(None, " \n\n").await,
        Err(SubmissionError::Empty)
    ));
    assert!(matches!(
        fixture.submit(None, "").await,
        Err(SubmissionError::Empty)
    ));
    fixture.nothing_is_kept().await;
}

/// Nothing can be removed for a while.
struct Stubborn {
    ledger: Arc<SqliteLedger>,
    refusals: AtomicU32,
}

#[async_trait]
impl SubmissionLedger for Stubborn {
    async fn take(
        &self,
        run: &NewRun,
        batches: &[NewBatch],
        digest: &[u8; 32],
    ) -> Result<Opened<Run>, LedgerError> {
        self.ledger.take(run, batches, digest).await
    }

    async fn open_run(&self, run: &NewRun) -> Result<Opened, LedgerError> {
        self.ledger.open_run(run).await
    }

    async fn append(&self, run: RunId, batches: &[NewBatch]) -> Result<(), LedgerError> {
        self.ledger.append(run, batches).await
    }

    async fn accept(&self, run: RunId, digest: &[u8; 32]) -> Result<Run, LedgerError> {
        self.ledger.accept(run, digest).await
    }

    async fn abandon(&self, run: RunId) -> Result<(), LedgerError> {
        if self.refusals.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        self.ledger.abandon(run).await
    }

    async fn backlog(&self) -> Result<u64, LedgerError> {
        self.ledger.backlog().await
    }
}

#[tokio::test]
async fn a_key_is_free_again_although_the_ledger_was_away_when_its_run_was_refused() {
    let mut fixture = Fixture::new().await;
    fixture.stage.ledger = Arc::new(Stubborn {
        ledger: fixture.ledger.clone(),
        refusals: AtomicU32::new(0),
    });
    // More than a chunk, so that something of it is in the ledger when it is refused.
    let refused = "{\"payload\":1}\n".repeat(2_000) + "oops";
    let refused = fixture.submit(Some("nightly"), &refused).await.unwrap_err();
    assert!(matches!(refused, SubmissionError::Line { .. }), "{refused}");
    let all = "{\"payload\":1}\n".repeat(3_000);
    let again = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            match fixture.submit(Some("nightly"), &all).await {
                Err(SubmissionError::UnderWay) => tokio::time::sleep(WAIT).await,
                other => return other,
            }
        }
    });
    let accepted = again.await.expect("the refused run is removed");
    assert!(matches!(accepted, Ok(Accepted::New(_))), "{accepted:?}");
}

#[tokio::test]
async fn the_same_key_gives_the_same_run() {
    let fixture = Fixture::new().await;
    let Accepted::New(first) = fixture
        .submit(Some("nightly"), "{\"payload\":1}\n")
        .await
        .unwrap()
    else {
        panic!("a new run");
    };
    let again = fixture
        .submit(Some("nightly"), "{\"payload\":1}\r\n\n")
        .await
        .unwrap();
    assert_eq!(again, Accepted::Before(first.clone()));
    let other = fixture
        .submit(Some("nightly"), "{\"payload\":2}")
        .await
        .unwrap_err();
    assert!(matches!(other, SubmissionError::Conflict(run) if run == first.run));
    let urgent = Submission {
        pipeline: "hashes".into(),
        priority: Priority::High,
        idempotency_key: Some("nightly".into()),
        webhook: None,
    };
    let lines = futures::stream::iter([Ok::<_, String>(Bytes::from_static(b"{\"payload\":1}"))]);
    let other = fixture.stage.submit(urgent, lines).await.unwrap_err();
    assert!(matches!(other, SubmissionError::Conflict(run) if run == first.run));
    for unusable in ["", "a b", "ä", &"k".repeat(256)] {
        let error = fixture
            .submit(Some(unusable), "{\"payload\":1}")
            .await
            .unwrap_err();
        assert!(
            matches!(error, SubmissionError::IdempotencyKey),
            "{unusable}"
        );
    }
    assert_eq!(fixture.ledger.runs(None, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn unknown_pipelines_are_answered_with_the_known_ones() {
    let fixture = Fixture::new().await;
    for name in ["thumbnails", "__proto__", "", &"p".repeat(10_000)] {
        let submission = Submission {
            pipeline: name.into(),
            priority: Priority::Normal,
            idempotency_key: None,
            webhook: None,
        };
        let body = futures::stream::iter([Ok::<_, String>(Bytes::from_static(b"{\"payload\":1}"))]);
        let error = fixture.stage.submit(submission, body).await.unwrap_err();
        assert!(error.to_string().contains("there are hashes"), "{error}");
    }
    fixture.nothing_is_kept().await;
}

#[tokio::test]
async fn submissions_together_do_not_pass_the_limit() {
    let fixture = Fixture::new().await;
    let (send, receive) = mpsc::channel::<Result<Bytes, String>>(1);
    let open_ended = Box::pin(futures::stream::unfold(receive, async |mut receive| {
        receive.recv().await.map(|piece| (piece, receive))
    }));
    let submission = || Submission {
        pipeline: "hashes".into(),
        priority: Priority::Normal,
        idempotency_key: None,
        webhook: None,
    };
    let lines = |count| Ok(Bytes::from("{\"payload\":1}\n".repeat(count)));
    let first = fixture.stage.submit(submission(), open_ended);
    let second = async {
        // Two chunks of the first are in the ledger, or on their way, and nobody sees them.
        send.send(lines(4_000)).await.unwrap();
        send.send(lines(1)).await.unwrap();
        send.send(lines(1)).await.unwrap();
        assert_eq!(fixture.ledger.backlog().await.unwrap(), 0);
        let too_much = fixture
            .submit(None, &"{\"payload\":1}\n".repeat(1_001))
            .await;
        let Err(SubmissionError::QueueFull {
            pending: 0,
            under_way: 5_001,
            limit: 5_000,
        }) = too_much
        else {
            panic!("{too_much:?}")
        };
        let fits = fixture.submit(None, &"{\"payload\":1}\n".repeat(900)).await;
        assert!(matches!(fits, Ok(Accepted::New(_))), "{fits:?}");
        drop(send);
    };
    let (first, ()) = tokio::join!(first, second);
    assert!(matches!(first, Ok(Accepted::New(run)) if run.batches.accepted == 4_002));
    // What was reserved is given back: the rest still fits, and not one more.
    let rest = fixture.submit(None, &"{\"payload\":1}\n".repeat(98)).await;
    assert!(matches!(rest, Ok(Accepted::New(_))), "{rest:?}");
    let one_more = fixture.submit(None, "{\"payload\":1}").await;
    assert!(
        matches!(one_more, Err(SubmissionError::QueueFull { .. })),
        "{one_more:?}"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_batch_and_no_place_taken() {
    let fixture = Fixture::new().await;
    let (send, receive) = mpsc::channel::<Result<Bytes, String>>(1);
    let open_ended = Box::pin(futures::stream::unfold(receive, async |mut receive| {
        receive.recv().await.map(|piece| (piece, receive))
    }));
    let submission = Submission {
        pipeline: "hashes".into(),
        priority: Priority::Normal,
        idempotency_key: Some("nightly".into()),
        webhook: None,
    };
    let mut submitting = Box::pin(fixture.stage.submit(submission, open_ended));
    let feeding = async {
        for _ in 0..2 {
            send.send(Ok(Bytes::from("{\"payload\":1}\n".repeat(2_000))))
                .await
                .unwrap();
        }
        send.reserve().await.unwrap();
    };
    tokio::select! {
        _ = &mut submitting => panic!("it waits for more"),
        () = feeding => {}
    }
    drop(submitting);
    // Removed in the background; then the key and all places are free again.
    let all = "{\"payload\":2}\n".repeat(5_000);
    let accepted = loop {
        match fixture.submit(Some("nightly"), &all).await {
            Err(SubmissionError::UnderWay | SubmissionError::QueueFull { .. }) => {
                tokio::task::yield_now().await;
            }
            other => break other,
        }
    };
    assert!(matches!(accepted, Ok(Accepted::New(run)) if run.batches.accepted == 5_000));
}
