//! The Search Console job from plan to sink, against the emulator: what is stored must be what Google has.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use emulator::fault::{Endpoint, Kind as Fault, Rule};
use emulator::generator::{self, Profile, Selection};
use emulator::{Emulator, Running, TestAccount};
use jiff::SignedDuration;
use jiff::civil::Date;
use serde_json::value::RawValue;
use shared::ask::{About, Said, Want};
use shared::batch::Batch;
use shared::config::SearchConsoleConfig;
use shared::id::{BatchId, RunId};
use shared::name::{Attempt, Instance, Key, PipelineName};
use shared::outcome::{Completed, FollowUp, Statistics};
use shared::search_console::{
    Days, DimensionSet, LOAD_LIMIT, PLAN_PIPELINE, PlanPayload, SearchType,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::cursor::Cursor;
use worker::handler::{BatchContext, Handler, HandlerError, Output};
use worker::holding::Reporter;
use worker::jobs::search_console::Job;
use worker::permits::{NoPermit, Permit, Permits, Unlimited};
use worker::sink::Marker;

use crate::support::database::{Ground, Kind};

const ALPHA: &str = "sc-domain:alpha.example";
/// Slices that run at a time.
const SLOTS: usize = 8;

/// An emulator, a sink, and a job between them.
struct Stage {
    emulator: Running,
    ground: Ground,
    config: SearchConsoleConfig,
    _credentials: TempDir,
}

impl Stage {
    async fn new(kind: Kind, change: impl FnOnce(&mut emulator::Config)) -> Self {
        let account = TestAccount::generate("robot@project.iam.gserviceaccount.com").unwrap();
        let mut config = emulator::Config::default().unlimited();
        config.service_accounts.push(account.registration());
        change(&mut config);
        let emulator = Emulator::start(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        account.write_key_file(&path, &emulator.url()).unwrap();
        let config = SearchConsoleConfig {
            endpoint: emulator.url().parse().unwrap(),
            credentials: Some(path),
            now: Some(emulator.now().timestamp()),
            ..SearchConsoleConfig::default()
        };
        Self {
            emulator,
            ground: Ground::new(kind).await,
            config,
            _credentials: folder,
        }
    }

    fn job(&self) -> Job {
        let config = SearchConsoleConfig {
            now: Some(self.emulator.now().timestamp()),
            ..self.config.clone()
        };
        Job::new(&config, Arc::clone(&self.ground.store)).unwrap()
    }

    /// Runs a plan and all that follows from it, as a worker would; gives the summed statistics.
    async fn sync(&self, payload: &PlanPayload) -> Result<Statistics, HandlerError> {
        let job = Arc::new(self.job());
        let planned = job
            .plan()
            .handle(payload.clone(), &context(payload))
            .await?;
        let mut total = planned.statistics.clone();
        let mut waiting: VecDeque<FollowUp> = planned.follow_ups.clone().into();
        self.commit(planned).await;
        let mut running = JoinSet::new();
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < SLOTS
                && let Some(follow_up) = waiting.pop_front()
            {
                let job = Arc::clone(&job);
                running.spawn(async move {
                    let input = serde_json::from_str(follow_up.payload.get()).unwrap();
                    let result = job
                        .slice()
                        .handle(input, &context(&follow_up.payload))
                        .await;
                    (follow_up, result)
                });
            }
            match running.join_next().await.unwrap().unwrap() {
                (_, Ok(output)) => add(&mut total, &self.commit(output).await.statistics),
                (follow_up, Err(HandlerError::Retry { .. } | HandlerError::Throttled { .. })) => {
                    add(&mut total, &Statistics::from([("given_back".into(), 1)]));
                    waiting.push_back(follow_up);
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(total)
    }

    async fn commit(&self, output: Output) -> Completed {
        let marker = Marker {
            batch: BatchId::generate(),
            attempt: Attempt::new(1),
            writer: Instance::from("w".to_owned()),
            completed: Completed {
                rows: 0,
                statistics: output.statistics,
                follow_ups: output.follow_ups,
            },
            batch_key: None,
        };
        self.ground
            .sink
            .commit(marker, Arc::new(output.rows))
            .await
            .unwrap()
            .into_completed()
    }

    /// Every slice of the range, stored against true.
    async fn assert_equals_truth(&self, site: &str, from: Date, to: Date) {
        let mut compared = 0;
        for search_type in SearchType::ALL {
            for set in self
                .config
                .dimensions
                .iter()
                .filter(|set| set.is_legal_for(search_type))
            {
                let mut date = from;
                while date <= to {
                    compared += self
                        .assert_slice_is_true(site, search_type, set, date)
                        .await;
                    date = date.tomorrow().unwrap();
                }
            }
        }
        assert!(compared > 0, "nothing was compared");
    }

    async fn assert_slice_is_true(
        &self,
        site: &str,
        search_type: SearchType,
        set: &DimensionSet,
        date: Date,
    ) -> usize {
        let kind = generator::SearchType::parse(search_type.as_str()).unwrap();
        let dimensions: Vec<_> = set
            .dimensions()
            .iter()
            .map(|d| generator::Dimension::parse(d.as_str()).unwrap())
            .collect();
        let selection = Selection::day(site, kind, date, &dimensions);
        let mut expected: Vec<_> = self
            .emulator
            .truth(&selection)
            .iter()
            .map(|row| {
                (
                    row.keys,
                    row.clicks,
                    row.impressions,
                    row.ctr.to_bits(),
                    row.position.map(f64::to_bits),
                )
            })
            .collect();
        expected.sort();
        let stored = self.ground.facts(set, site, search_type, date).await;
        assert_eq!(stored.len(), expected.len(), "{search_type} {set} {date}");
        assert!(stored == expected, "{search_type} {set} {date} differs");
        expected.len()
    }

    async fn property_state(&self, site: &str) -> Option<&'static str> {
        self.ground
            .store
            .property(site)
            .await
            .unwrap()
            .map(|state| state.as_str())
    }
}

fn context(payload: &impl serde::Serialize) -> BatchContext {
    context_with(payload, Unlimited::shared())
}

fn context_with(payload: &impl serde::Serialize, permits: Arc<dyn Permits>) -> BatchContext {
    let batch = Batch {
        id: BatchId::generate(),
        run: RunId::generate(),
        pipeline: PipelineName::new(PLAN_PIPELINE).unwrap(),
        key: Key::default(),
        attempt: Attempt::new(1),
        payload: RawValue::from_string(serde_json::to_string(payload).unwrap()).unwrap(),
    };
    let deadline = Instant::now() + Duration::from_mins(5);
    BatchContext {
        batch: batch.into(),
        deadline,
        cancelled: CancellationToken::new(),
        permits,
        saved: Cursor::default(),
        reporter: Reporter::default(),
    }
}

/// Knows nothing but quotas that are used up.
#[derive(Debug, Default)]
struct Quotas {
    used_up: Mutex<HashMap<Want, Duration>>,
}

#[async_trait]
impl Permits for Quotas {
    async fn permit(
        &self,
        _: &PipelineName,
        wants: Vec<Want>,
        _: tokio::time::Instant,
    ) -> Result<Permit, NoPermit> {
        let used_up = self.used_up.lock().unwrap();
        match wants.iter().find_map(|want| used_up.get(want)) {
            Some(after) => Err(NoPermit::Parked {
                reason: "quota".to_owned(),
                after: *after,
                until: None,
            }),
            None => Ok(Unlimited::permit()),
        }
    }

    fn report(&self, _: Permit, about: Vec<About>, said: Said) {
        if let Said::UsedUp(pauses) = said {
            let want = |About { limit, key }| Want { limit, key, n: 1 };
            let used_up = about.into_iter().map(|about| (want(about), pauses.first));
            self.used_up.lock().unwrap().extend(used_up);
        }
    }
}

fn last(days: u32, property: &str) -> PlanPayload {
    PlanPayload {
        property: property.to_owned(),
        days: Days::Last(days),
        types: Vec::new(),
        dimensions: Vec::new(),
        refetch: false,
    }
}

fn add(total: &mut Statistics, more: &Statistics) {
    for (name, count) in more {
        *total.entry(name.clone()).or_default() += count;
    }
}

fn count(statistics: &Statistics, name: &str) -> u64 {
    statistics.get(name).copied().unwrap_or_default()
}

async fn a_sync_stores_the_truth_and_a_repeat_writes_nothing(kind: Kind) {
    let stage = Stage::new(kind, |_| {}).await;
    let first = stage.sync(&last(10, ALPHA)).await.unwrap();
    let (from, to) = (
        jiff::civil::date(2026, 2, 17),
        jiff::civil::date(2026, 2, 26),
    );
    stage.assert_equals_truth(ALPHA, from, to).await;
    assert_eq!(count(&first, "follow_ups"), 31 * 10);
    assert!(count(&first, "rows_written") > 10_000);
    assert_eq!(stage.property_state(ALPHA).await, Some("active"));
    assert_eq!(
        stage
            .ground
            .rows(
                "count(*), min(version), max(version)",
                "FROM search_analytics_slices WHERE state = 'final'"
            )
            .await,
        ["310\t1\t1"]
    );

    let again = stage.sync(&last(10, ALPHA)).await.unwrap();
    assert_eq!(
        (
            count(&again, "rows_written"),
            count(&again, "slices_unchanged")
        ),
        (0, 310)
    );

    // A resync window of three days leaves older final days alone.
    let stage = Stage {
        config: SearchConsoleConfig {
            resync_days: 3,
            ..stage.config.clone()
        },
        ..stage
    };
    let narrow = stage.sync(&last(10, ALPHA)).await.unwrap();
    assert_eq!(
        (
            count(&narrow, "follow_ups"),
            count(&narrow, "slices_already_final")
        ),
        (31 * 3, 31 * 7)
    );

    // Five days later the late revisions of those days are in; rows vanished and rows changed.
    stage.emulator.advance(SignedDuration::from_hours(5 * 24));
    let stage = Stage {
        config: SearchConsoleConfig {
            resync_days: 10,
            ..stage.config.clone()
        },
        ..stage
    };
    let later = stage.sync(&last(15, ALPHA)).await.unwrap();
    assert!(count(&later, "rows_written") > 0);
    stage
        .assert_equals_truth(
            ALPHA,
            jiff::civil::date(2026, 2, 17),
            jiff::civil::date(2026, 3, 3),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_into_sqlite_stores_the_truth() {
    a_sync_stores_the_truth_and_a_repeat_writes_nothing(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_into_postgres_stores_the_truth() {
    a_sync_stores_the_truth_and_a_repeat_writes_nothing(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_change_no_row() {
    let stage = Stage::new(Kind::Sqlite, |config| {
        config.token_life_s = 3;
        config.nasty_text = true;
        config.faults = vec![
            Rule {
                times: Some(3),
                p: Some(0.05),
                ..Rule::of(Fault::RateQuota)
            },
            Rule {
                times: Some(1),
                nth: Some(40),
                ..Rule::of(Fault::TooManyRequests)
            },
            Rule {
                times: Some(1),
                nth: Some(25),
                ..Rule::of(Fault::TokenExpiredEarly)
            },
            Rule {
                times: Some(1),
                nth: Some(60),
                ..Rule::of(Fault::Unauthorized)
            },
            Rule {
                times: Some(1),
                endpoint: Endpoint::Token,
                ..Rule::of(Fault::Unavailable)
            },
            Rule {
                times: Some(1),
                endpoint: Endpoint::Sites,
                ..Rule::of(Fault::Html502)
            },
            Rule {
                kinds: vec![
                    Fault::Internal,
                    Fault::InternalNull,
                    Fault::Unavailable,
                    Fault::Html502,
                    Fault::ConnResetBefore,
                    Fault::ConnResetMidBody,
                    Fault::TruncatedGzip,
                    Fault::TruncatedJson,
                    Fault::WrongContentLength,
                ],
                p: Some(0.15),
                ..Rule::default()
            },
            Rule {
                p: Some(0.5),
                ..Rule::of(Fault::MetadataCamel)
            },
        ];
    })
    .await;
    let statistics = stage.sync(&last(3, ALPHA)).await.unwrap();
    stage
        .assert_equals_truth(
            ALPHA,
            jiff::civil::date(2026, 2, 24),
            jiff::civil::date(2026, 2, 26),
        )
        .await;
    assert!(count(&statistics, "api_retries") > 20, "{statistics:?}");
    let stats = stage.emulator.stats();
    assert!(stats.faults.len() >= 8, "{:?}", stats.faults);
    assert!(stats.tokens >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_contradict_each_other_are_fetched_again() {
    let stage = Stage::new(Kind::Sqlite, |config| {
        config.profile = Profile::Large;
        let at_page_two = |kind| Rule {
            times: Some(1),
            start_row: Some(25_000),
            ..Rule::of(kind)
        };
        config.faults = vec![
            Rule {
                times: Some(2),
                start_row: Some(0),
                dims: Some(vec!["page".into()]),
                ..Rule::of(Fault::ShortPageNotLast)
            },
            at_page_two(Fault::DuplicateRowBetweenPages),
            at_page_two(Fault::ShiftedPage),
        ];
    })
    .await;
    let stage = Stage {
        config: SearchConsoleConfig {
            types: vec![SearchType::Web],
            dimensions: ["page", "page,query,country,device"]
                .map(|set| set.parse().unwrap())
                .to_vec(),
            ..stage.config.clone()
        },
        ..stage
    };
    let statistics = stage.sync(&last(2, ALPHA)).await.unwrap();
    let days = (
        jiff::civil::date(2026, 2, 25),
        jiff::civil::date(2026, 2, 26),
    );
    for set in &stage.config.dimensions {
        for date in [days.0, days.1] {
            assert!(
                stage
                    .assert_slice_is_true(ALPHA, SearchType::Web, set, date)
                    .await
                    > 10_000
            );
        }
    }
    assert!(
        count(&statistics, "slices_refetched") >= 1,
        "{statistics:?}"
    );
    assert_eq!(count(&statistics, "slices_truncated"), 2);
    let states = stage
        .ground
        .rows(
            "state, is_final, rows",
            "FROM search_analytics_slices WHERE dimension_set <> 'page'",
        )
        .await;
    assert_eq!(states, ["truncated\t1\t50000", "truncated\t1\t50000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_that_cannot_be_read_say_why() {
    let stage = Stage::new(Kind::Sqlite, |_| {}).await;
    let fail = async |property: &str| match stage.sync(&last(1, property)).await {
        Err(HandlerError::Fail { reason, error }) => (reason, error),
        other => panic!("{other:?}"),
    };
    let (reason, error) = fail("https://alpha.example/").await;
    assert_eq!(reason, "unknown_property");
    assert!(
        error.contains("did you mean sc-domain:alpha.example"),
        "{error}"
    );
    let (reason, error) = fail("beta.example").await;
    assert_eq!(reason, "unknown_property");
    assert!(error.contains("https://beta.example/"), "{error}");
    assert_eq!(
        fail("https://unverified.example/").await.0,
        "permission_lost"
    );
    assert_eq!(
        stage.property_state("https://unverified.example/").await,
        Some("permission_lost")
    );

    // Another spelling of a property is the same property.
    stage.sync(&last(1, "HTTPS://Beta.example")).await.unwrap();
    assert_eq!(
        stage.property_state("https://beta.example/").await,
        Some("active")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_property_fails_alone_and_is_noted() {
    let stage = Stage::new(Kind::Sqlite, |_| {}).await;
    stage.sync(&last(1, ALPHA)).await.unwrap();
    let revoke = Rule {
        site: Some(ALPHA.into()),
        ..Rule::of(Fault::RevokePermission)
    };
    stage
        .emulator
        .configure(serde_json::json!({ "faults": [revoke] }))
        .unwrap();
    let error = stage.sync(&last(1, ALPHA)).await.unwrap_err();
    assert!(
        matches!(
            error,
            HandlerError::Fail {
                reason: "permission_lost",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(stage.property_state(ALPHA).await, Some("permission_lost"));
    stage.sync(&last(1, "https://beta.example/")).await.unwrap();
    // What was stored stays.
    assert!(
        !stage
            .ground
            .rows("clicks", "FROM search_analytics_date")
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_quota_pauses_heavy_sets_alone() {
    let stage = Stage::new(Kind::Sqlite, |config| {
        let heavy = vec!["page".to_owned()];
        config.faults = vec![Rule {
            dims: Some(heavy),
            ..Rule::of(Fault::LoadQuota)
        }];
    })
    .await;
    let job = stage.job();
    let plan = job
        .plan()
        .handle(last(1, ALPHA), &context(&()))
        .await
        .unwrap();
    let permits = Arc::new(Quotas::default());
    let mut throttled = Vec::new();
    for follow_up in plan.follow_ups {
        let input: shared::search_console::SlicePayload =
            serde_json::from_str(follow_up.payload.get()).unwrap();
        let set = input.dimensions.to_string();
        let ctx = context_with(&(), permits.clone());
        match job.slice().handle(input, &ctx).await {
            Ok(_) => {}
            Err(HandlerError::Throttled { after, .. }) => {
                throttled.push((set, after.as_secs().div_ceil(60)));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(throttled.iter().all(|(set, minutes)| *minutes == 15 && (set.contains("page") || set.contains("query"))), "{throttled:?}");
    assert!(throttled.iter().any(|(set, _)| set == "page"));
    let used_up = permits.used_up.lock().unwrap();
    let used_up: Vec<&Want> = used_up.keys().collect();
    let [want] = used_up[..] else {
        panic!("{used_up:?}");
    };
    assert_eq!(
        (want.limit.as_str(), want.key.as_str()),
        (LOAD_LIMIT, ALPHA)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_fails_with_the_request_and_is_noted() {
    let stage = Stage::new(Kind::Sqlite, |config| {
        let dims = Some(vec!["country".to_owned()]);
        config.faults = vec![Rule {
            dims,
            ..Rule::of(Fault::BadRequest)
        }];
    })
    .await;
    let payload = PlanPayload {
        dimensions: vec!["country".parse().unwrap()],
        types: vec![SearchType::Web],
        ..last(1, ALPHA)
    };
    let Err(HandlerError::Fail { reason, error }) = stage.sync(&payload).await else {
        panic!()
    };
    assert_eq!(reason, "bad_request");
    assert!(error.contains(r#""dimensions":["country"]"#), "{error}");
    assert_eq!(
        stage
            .ground
            .rows("state", "FROM search_analytics_slices")
            .await,
        ["failed"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_told_apart() {
    let stage = Stage::new(Kind::Sqlite, |_| {}).await;
    let run = async |config: SearchConsoleConfig| {
        let job = Job::new(&config, Arc::clone(&stage.ground.store)).unwrap();
        job.plan().handle(last(1, ALPHA), &context(&())).await
    };
    let none = SearchConsoleConfig {
        credentials: None,
        ..stage.config.clone()
    };
    let error = run(none).await.unwrap_err();
    assert!(
        matches!(&error, HandlerError::Fail { reason: "credentials_missing", error } if error.contains("search_console.credentials"))
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.json");
    let write = |refresh_token: &str| {
        let client = emulator::Config::default()
            .oauth_clients
            .first()
            .cloned()
            .expect("the emulator has a client");
        let file = emulator::user_file(&client, &stage.emulator.url());
        let mut file: serde_json::Value = serde_json::from_str(&file).unwrap();
        file["refresh_token"] = refresh_token.into();
        std::fs::write(&path, file.to_string()).unwrap();
    };
    let user = SearchConsoleConfig {
        credentials: Some(path.clone()),
        ..stage.config.clone()
    };
    write("1//works");
    assert!(run(user.clone()).await.is_ok());
    write("revoked");
    let error = run(user.clone()).await.unwrap_err();
    assert!(
        matches!(
            error,
            HandlerError::Fail {
                reason: "reauth_required",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(stage.property_state(ALPHA).await, Some("reauth_required"));

    std::fs::write(&path, "{}").unwrap();
    let error = Job::new(&user, Arc::clone(&stage.ground.store))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("user.json") && error.contains("service_account"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_not_final_are_provisional() {
    let stage = Stage::new(Kind::Sqlite, |config| config.first_incomplete_age = 4).await;
    let payload = PlanPayload {
        dimensions: vec!["date".parse().unwrap()],
        types: vec![SearchType::Web],
        ..last(3, ALPHA)
    };
    stage.sync(&payload).await.unwrap();
    let states = stage
        .ground
        .rows(
            "date, state, is_final",
            "FROM search_analytics_slices ORDER BY date",
        )
        .await;
    let expected = [
        "2026-02-24\tfinal\t1",
        "2026-02-25\tprovisional\t0",
        "2026-02-26\tprovisional\t0",
    ];
    assert_eq!(states, expected);
}
