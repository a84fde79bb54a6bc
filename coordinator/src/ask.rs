//! Answers the workers' questions: may this call start, and what to do with a batch that was delivered before.
//!
//! Questions come over `tidegate.ask` to a queue of this coordinator's own, for the lanes that it owns, and are
//! answered through direct reply-to. Nothing here is durable: a question or an answer that is lost is asked
//! for again.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use shared::ask::{
    Answer, Answered, Answers, ClaimAnswer, ClaimRequest, Feedback, PermitAnswer, PermitRequest,
    Question, Questions,
};
use shared::broker::{Ack, Answering, BrokerError, Connector, PublishingPool, Reply};
use shared::name::{Instance, Lane};
use shared::signing::Purpose;
use shared::topology::ASK;
use tokio_util::sync::CancellationToken;

use crate::consuming::{ConsumeError, Consumer, Failures};
use crate::ledger::{LedgerError, Ownership};

/// Unacked messages of up to a hundred questions each.
const PREFETCH: u16 = 256;
/// Claims that may wait for the ledger; further questions wait until there is room.
const MAX_CLAIMS: usize = 1_024;

/// What knows the limits. Answers at once: what it has to remember, it remembers later.
pub trait Permits: Send + Sync + 'static {
    /// When a call may start.
    fn permit(&self, request: &PermitRequest) -> PermitAnswer;
    /// How a call ended.
    fn feedback(&self, feedback: &Feedback);
}

/// What knows who may run a batch that was delivered before.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    /// Decides. Several may be asked for at a time, and the same one more than once. An error is no answer:
    /// the worker asks again.
    async fn claim(&self, request: &ClaimRequest) -> Result<ClaimAnswer, LedgerError>;
}

/// The stage.
pub struct AskStage {
    /// Names this coordinator's own queue.
    pub instance: Instance,
    /// How to reach the broker.
    pub connector: Connector,
    /// Where answers go out.
    pub publishing: PublishingPool,
    /// How many lanes there are. All of them are this coordinator's.
    pub lanes: u16,
    /// Knows whether another coordinator may answer by now.
    pub ownership: Arc<dyn Ownership>,
    /// Answers for permits.
    pub permits: Arc<dyn Permits>,
    /// Answers for claims.
    pub claims: Arc<dyn Claims>,
    /// Ends the stage.
    pub draining: CancellationToken,
}

/// Where an answer goes: `reply_to` and `correlation_id` of the question's message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    reply_to: String,
    correlation_id: String,
}

/// Answers that are ready, by where they go.
type Ready = BTreeMap<Address, Vec<Answered>>;
type Claiming = FuturesUnordered<BoxFuture<'static, Option<(Address, Answered)>>>;

#[async_trait]
impl Consumer for AskStage {
    async fn consume(&mut self, failures: &mut Failures) -> Result<(), ConsumeError> {
        let Some(connection) = self.connector.reconnect("ask", &self.draining).await else {
            return Ok(());
        };
        let queue = format!("{ASK}.{}", self.instance);
        let lanes: Vec<String> = Lane::all(self.lanes).map(|lane| lane.to_string()).collect();
        let patience = self.connector.answer_timeout();
        shared::broker::declare_own_queue(&connection, ASK, &lanes, &queue, patience).await?;
        let (mut deliveries, settle) = self
            .connector
            .subscribe(&connection, &queue, PREFETCH)
            .await?;
        let mut answering = self.publishing.answering();
        let mut claiming = Claiming::new();
        loop {
            let mut ready = Ready::new();
            tokio::select! {
                delivery = deliveries.next(), if claiming.len() < MAX_CLAIMS => {
                    let ended = || BrokerError::Lost(format!("the consumer of {queue} was cancelled"));
                    let mut tag = None;
                    let mut next = Some(delivery.ok_or_else(ended)?);
                    while let Some(delivery) = next {
                        let delivery = delivery?;
                        tag = Some(delivery.delivery_tag);
                        self.hear(&delivery, &mut ready, &claiming);
                        next = deliveries.next().now_or_never().flatten();
                    }
                    failures.forget();
                    if let Some(tag) = tag {
                        settle.ack(Ack { tag, multiple: true }).await?;
                    }
                }
                Some(claimed) = claiming.next(), if !claiming.is_empty() => {
                    if let Some((address, answered)) = claimed {
                        ready.entry(address).or_default().push(answered);
                    }
                }
                () = self.draining.cancelled() => return Ok(()),
            }
            answer(&mut answering, ready).await;
        }
    }
}

impl AskStage {
    /// Answers what can be answered at once; starts what needs the ledger.
    fn hear(&self, delivery: &Delivery, ready: &mut Ready, claiming: &Claiming) {
        if self.connector.check(Purpose::Questions, delivery).is_err() {
            return;
        }
        let properties = &delivery.properties;
        let questions = match Questions::decode(properties, &delivery.data) {
            Ok(questions) => questions.questions,
            Err(error) => return tracing::debug!(%error, "questions that cannot be read"),
        };
        let address = Address {
            reply_to: text(properties.reply_to().as_ref()),
            correlation_id: text(properties.correlation_id().as_ref()),
        };
        for asked in questions {
            let id = asked.id;
            match asked.question {
                Question::Feedback(feedback) => self.permits.feedback(&feedback),
                // Two who give leave would give too much: the worker asks again.
                Question::Permit(_) if !self.ownership.is_sure() => {}
                Question::Permit(request) => {
                    let answer = Answer::Permit(self.permits.permit(&request));
                    let answers = ready.entry(address.clone()).or_default();
                    answers.push(Answered { id, answer });
                }
                Question::Claim(request) => {
                    claiming.push(claim(self.claims.clone(), request, id, address.clone()).boxed());
                }
            }
        }
    }
}

async fn claim(
    claims: Arc<dyn Claims>,
    request: ClaimRequest,
    id: u64,
    address: Address,
) -> Option<(Address, Answered)> {
    match claims.claim(&request).await {
        Ok(answer) => {
            let answer = Answer::Claim(answer);
            Some((address, Answered { id, answer }))
        }
        Err(error) => {
            tracing::error!(%error, batch.id = %request.batch, "cannot say what to do with a batch");
            None
        }
    }
}

async fn answer(answering: &mut Answering, ready: Ready) {
    let replies: Vec<Reply> = ready
        .into_iter()
        .map(|(address, answers)| Reply {
            address: address.reply_to,
            properties: Answers::properties(&address.correlation_id),
            body: serde_json::to_vec(&Answers { answers }).expect("answers are plain data"),
        })
        .collect();
    if replies.is_empty() {
        return;
    }
    if let Err(error) = answering.send(&replies).await {
        tracing::warn!(%error, "could not answer workers; they ask again");
        metrics::counter!("tidegate_answers_lost_total").increment(1);
    }
}

fn text(property: Option<&lapin::types::ShortString>) -> String {
    property.map(ToString::to_string).unwrap_or_default()
}
