//! Questions of workers and answers of the coordinator, over a real broker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use coordinator::ask::{AskStage, Claims, Permits};
use coordinator::consuming::keep_consuming;
use coordinator::ledger::{LedgerError, Ownership};
use coordinator::topology::Topology;
use harness::{rabbitmq, wait};
use shared::ask::{
    Answer, ClaimAnswer, ClaimRequest, Feedback, PermitAnswer, PermitRequest, Question,
};
use shared::broker::Connector;
use shared::config::{BrokerConfig, Config};
use shared::id::BatchId;
use shared::name::{Attempt, Instance, Lane, PipelineName};
use tokio_util::sync::CancellationToken;
use worker::ask::{AskError, Asker};

const WITHIN: Duration = Duration::from_secs(10);

/// Grants after as many microseconds as it was asked for milliseconds; claims are told by their attempt.
#[derive(Default)]
struct Echo {
    told: Mutex<Vec<Feedback>>,
}

impl Ownership for Echo {
    fn is_sure(&self) -> bool {
        true
    }
}

impl Permits for Echo {
    fn permit(&self, request: &PermitRequest) -> PermitAnswer {
        let after = request.patience / 1_000;
        PermitAnswer::Granted { after }
    }

    fn feedback(&self, feedback: &Feedback) {
        self.told.lock().unwrap().push(feedback.clone());
    }
}

#[async_trait]
impl Claims for Echo {
    async fn claim(&self, request: &ClaimRequest) -> Result<ClaimAnswer, LedgerError> {
        Ok(match request.attempt.number() {
            1 => ClaimAnswer::Run,
            2 => ClaimAnswer::Alone,
            _ => ClaimAnswer::Drop,
        })
    }
}

fn permit(milliseconds: u64) -> Question {
    Question::Permit(PermitRequest {
        pipeline: PipelineName::new("p").unwrap(),
        wants: vec![],
        patience: Duration::from_millis(milliseconds),
    })
}

fn granted(microseconds: u64) -> Answer {
    let after = Duration::from_micros(microseconds);
    Answer::Permit(PermitAnswer::Granted { after })
}

fn claim(attempt: u32) -> Question {
    Question::Claim(ClaimRequest {
        batch: BatchId::generate(),
        attempt: Attempt::new(attempt),
        worker: Instance::from("w".to_owned()),
        alone: false,
    })
}

struct Sides {
    config: Config,
    connector: Connector,
    stopping: CancellationToken,
}

impl Sides {
    async fn new(url: &str) -> Result<Self> {
        let broker = BrokerConfig {
            url: url.to_owned().into(),
            ..BrokerConfig::default()
        };
        let config = Config {
            broker,
            ..Config::default()
        };
        let connector = Connector::new(&config.broker, &Instance::generate("test"));
        Topology::new(&config, connector.clone()).ensure().await?;
        Ok(Self {
            config,
            connector,
            stopping: CancellationToken::new(),
        })
    }

    fn asker(&self) -> Asker {
        let (asker, stage) =
            worker::ask::AskStage::new(self.connector.clone(), self.stopping.clone());
        tokio::spawn(stage.run());
        asker
    }

    fn answer(&self, echo: &Arc<Echo>) {
        let stage = AskStage {
            ownership: echo.clone(),
            instance: Instance::generate("coordinator"),
            connector: self.connector.clone(),
            publishing: self.connector.publishing_pool(),
            lanes: self.config.lanes,
            permits: echo.clone(),
            claims: echo.clone(),
            ownership: echo.clone(),
            draining: self.stopping.clone(),
        };
        let topology = Topology::new(&self.config, self.connector.clone());
        tokio::spawn(keep_consuming(
            "ask",
            stage,
            topology,
            self.stopping.clone(),
        ));
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

async fn until_answered(asker: &Asker, lane: Lane) -> Result<()> {
    wait::until("an answer", Duration::from_secs(30), async || {
        Ok(asker.ask(lane, permit(1), WITHIN).await.ok())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn everybody_gets_the_answer_to_their_own_question() -> Result<()> {
    let vhost = rabbitmq::shared().new_vhost()?;
    let sides = Sides::new(&vhost.url()).await?;
    let asker = sides.asker();
    let lanes: Vec<Lane> = Lane::all(sides.config.lanes).collect();
    let asked_at = Instant::now();
    let unanswered = asker.ask(lanes[0], permit(1), WITHIN).await;
    assert!(matches!(unanswered, Err(AskError::NobodyAnswers)));
    assert!(
        asked_at.elapsed() < WITHIN,
        "it did not wait for the timeout"
    );

    let echo = Arc::new(Echo::default());
    sides.answer(&echo);
    until_answered(&asker, lanes[0]).await?;
    let askers = [asker, sides.asker()];
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..1_000_u64 {
        let asker = askers[usize::from(number % 3 == 0)].clone();
        let lane = lanes[usize::from(number % 2 == 0)];
        asking.spawn(async move {
            let answer = asker.ask(lane, permit(number), WITHIN).await;
            (number, answer)
        });
    }
    while let Some(asked) = asking.join_next().await {
        let (number, answer) = asked?;
        assert_eq!(answer?, granted(number));
    }
    for (attempt, expected) in [
        (1, ClaimAnswer::Run),
        (2, ClaimAnswer::Alone),
        (3, ClaimAnswer::Drop),
    ] {
        let answer = askers[0].ask(lanes[1], claim(attempt), WITHIN).await?;
        assert_eq!(answer, Answer::Claim(expected));
    }
    let feedback = Feedback {
        about: vec![],
        asked_ago: Duration::from_millis(7),
        said: shared::ask::Said::Accepted,
    };
    askers[0].tell(lanes[0], Question::Feedback(feedback.clone()));
    wait::until("the feedback", WITHIN, async || {
        Ok((*echo.told.lock().unwrap() == [feedback.clone()]).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_broken_connection_is_built_again_on_both_sides() -> Result<()> {
    let vhost = rabbitmq::shared().new_vhost()?;
    let sides = Sides::new(&vhost.url()).await?;
    let asker = sides.asker();
    let lane = Lane::all(1).next().unwrap();
    sides.answer(&Arc::new(Echo::default()));
    until_answered(&asker, lane).await?;
    for _ in 0..2 {
        let close = ["close_all_connections", "-p", vhost.name(), "test"];
        vhost.broker().rabbitmqctl(close)?;
        until_answered(&asker, lane).await?;
    }
    Ok(())
}
