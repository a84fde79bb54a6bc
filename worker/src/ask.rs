//! Asks the coordinator: whatever was asked while the previous questions were being sent goes out together,
//! and each asker gets the answer to its own. Alone, a question waits for nobody.
//!
//! Nothing is certain to be answered: a question is transient, and whoever asked decides whether to ask again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::ask::{Answer, Answers, Asked, MAX_QUESTIONS_PER_MESSAGE, Question, Questions};
use shared::backoff::Backoff;
use shared::broker::{AskingChannel, BrokerError, Connector, Message, Replies, Verdict};
use shared::name::Lane;
use shared::signing::Purpose;
use shared::topology::ASK;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Questions that may wait; more than a worker has slots.
const QUEUE: usize = 8_192;
/// Most questions that are sent together.
const GROUP: usize = 1_000;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// No coordinator owns the lane, or it did not answer in time.
    #[error("no coordinator answers")]
    NobodyAnswers,
    /// The broker cannot be reached, or was lost before the answer came.
    #[error("the coordinator cannot be asked: {0}")]
    Broker(Arc<BrokerError>),
}

/// The way to ask; cheap to clone.
#[derive(Debug, Clone)]
pub struct Asker {
    queue: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lane: Lane,
    question: Question,
    /// `None` when no answer is expected.
    answer: Option<Waiter>,
}

type Waiter = oneshot::Sender<Result<Answer, AskError>>;

impl Asker {
    /// Asks the owner of `lane`, and waits at most `within` for the answer.
    pub async fn ask(
        &self,
        lane: Lane,
        question: Question,
        within: Duration,
    ) -> Result<Answer, AskError> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            let waiting = Waiting {
                lane,
                question,
                answer: Some(answer),
            };
            // Either fails only when the worker is stopping.
            let sent = self.queue.send(waiting).await;
            sent.map_err(|_| AskError::NobodyAnswers)?;
            answered.await.map_err(|_| AskError::NobodyAnswers)?
        };
        timeout(within, asking)
            .await
            .unwrap_or(Err(AskError::NobodyAnswers))
    }

    /// Tells the owner of `lane` something that has no answer. It may get lost.
    pub fn tell(&self, lane: Lane, question: Question) {
        let waiting = Waiting {
            lane,
            question,
            answer: None,
        };
        if self.queue.try_send(waiting).is_err() {
            tracing::debug!("too many questions wait to tell the coordinator something");
        }
    }
}

#[cfg(test)]
impl Asker {
    /// Asks nobody but this function.
    pub(crate) fn answered_by(
        mut answer: impl FnMut(Question) -> Result<Answer, AskError> + Send + 'static,
    ) -> Self {
        let (sender, mut queue) = mpsc::channel::<Waiting>(QUEUE);
        tokio::spawn(async move {
            while let Some(waiting) = queue.recv().await {
                let answered = answer(waiting.question);
                if let Some(waiter) = waiting.answer {
                    let _ = waiter.send(answered);
                }
            }
        });
        Self { queue: sender }
    }
}

/// Sends the questions and hands out the answers. It connects when there is something to ask.
pub struct AskStage {
    queue: mpsc::Receiver<Waiting>,
    connector: Connector,
    stopping: CancellationToken,
    waiters: Mutex<HashMap<u64, Waiter>>,
    next_id: u64,
}

impl AskStage {
    /// A stage and the way to it. `stopping` ends it with questions open.
    #[must_use]
    pub fn new(connector: Connector, stopping: CancellationToken) -> (Asker, Self) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let stage = Self {
            queue,
            connector,
            stopping,
            waiters: Mutex::default(),
            next_id: 0,
        };
        (Asker { queue: sender }, stage)
    }

    /// Runs until nobody can ask any more.
    pub async fn run(self) -> Result<(), std::convert::Infallible> {
        let stopping = self.stopping.clone();
        tokio::select! {
            () = self.sessions() => {}
            () = stopping.cancelled() => {}
        }
        Ok(())
    }

    async fn sessions(mut self) {
        let (mut failures, mut group) = (0, Vec::new());
        while gather(&mut self.queue, &mut group).await {
            let Err(error) = self.session(&mut group, &mut failures).await else {
                return;
            };
            failures += 1;
            tracing::warn!(%error, "cannot ask the coordinator");
            metrics::counter!("tidegate_asking_lost_total").increment(1);
            self.fail_all(group.drain(..), &Arc::new(error));
            tokio::time::sleep(Backoff::RECONNECT.draw(failures)).await;
        }
    }

    /// One connection. `Ok` when nobody can ask any more.
    async fn session(
        &mut self,
        group: &mut Vec<Waiting>,
        failures: &mut u32,
    ) -> Result<(), BrokerError> {
        let (channel, replies) = self.connector.asking().await?;
        *failures = 0;
        let Self {
            queue,
            connector,
            waiters,
            next_id,
            ..
        } = self;
        let ended = tokio::select! {
            ended = send(queue, group, waiters, next_id, &channel) => ended,
            ended = hand_out(connector, replies, waiters) => ended,
        };
        self.connector.goodbye(channel.into_connection()).await;
        ended
    }

    /// Tells everybody who waits, for an answer or for being sent.
    fn fail_all(&self, unsent: impl Iterator<Item = Waiting>, error: &Arc<BrokerError>) {
        let waiting: Vec<Waiter> = lock(&self.waiters)
            .drain()
            .map(|(_, waiter)| waiter)
            .collect();
        for waiter in waiting.into_iter().chain(unsent.filter_map(|w| w.answer)) {
            let _ = waiter.send(Err(AskError::Broker(error.clone())));
        }
    }
}

/// Waits for questions whose askers have not given up. `false` when nobody can ask any more.
async fn gather(queue: &mut mpsc::Receiver<Waiting>, group: &mut Vec<Waiting>) -> bool {
    loop {
        group.retain(|waiting| !waiting.answer.as_ref().is_some_and(Waiter::is_closed));
        if !group.is_empty() {
            return true;
        }
        if queue.recv_many(group, GROUP).await == 0 {
            return false;
        }
    }
}

async fn send(
    queue: &mut mpsc::Receiver<Waiting>,
    group: &mut Vec<Waiting>,
    waiters: &Mutex<HashMap<u64, Waiter>>,
    next_id: &mut u64,
    channel: &AskingChannel,
) -> Result<(), BrokerError> {
    loop {
        let (messages, ids) = messages(group.drain(..), waiters, next_id);
        let verdicts = channel.ask(messages).await?;
        for (ids, verdict) in ids.iter().zip(verdicts) {
            if verdict != Verdict::Confirmed {
                let mut waiters = lock(waiters);
                for waiter in ids.iter().filter_map(|id| waiters.remove(id)) {
                    let _ = waiter.send(Err(AskError::NobodyAnswers));
                }
            }
        }
        if !gather(queue, group).await {
            return Ok(());
        }
    }
}

/// Questions by lane, cut into messages of bounded count, and which questions are in each.
fn messages(
    group: impl Iterator<Item = Waiting>,
    waiters: &Mutex<HashMap<u64, Waiter>>,
    next_id: &mut u64,
) -> (Vec<Message>, Vec<Vec<u64>>) {
    let mut lanes: BTreeMap<Lane, Vec<Asked>> = BTreeMap::new();
    let mut waiters = lock(waiters);
    waiters.retain(|_, waiter| !waiter.is_closed());
    for waiting in group {
        let id = *next_id;
        *next_id += 1;
        if let Some(waiter) = waiting.answer {
            waiters.insert(id, waiter);
        }
        let question = waiting.question;
        let asked = lanes.entry(waiting.lane).or_default();
        asked.push(Asked { id, question });
    }
    let (mut messages, mut ids) = (Vec::new(), Vec::new());
    for (lane, asked) in lanes {
        for questions in asked.chunks(MAX_QUESTIONS_PER_MESSAGE) {
            ids.push(questions.iter().map(|asked| asked.id).collect());
            let questions = Questions {
                questions: questions.to_vec(),
            };
            messages.push(Message {
                exchange: ASK,
                routing_key: lane.to_string(),
                properties: Questions::properties(&Uuid::now_v7().to_string()),
                body: serde_json::to_vec(&questions).expect("questions are plain data"),
            });
        }
    }
    (messages, ids)
}

async fn hand_out(
    connector: &Connector,
    mut replies: Replies,
    waiters: &Mutex<HashMap<u64, Waiter>>,
) -> Result<(), BrokerError> {
    loop {
        let delivery = replies.next().await?;
        if connector.check(Purpose::Answers, &delivery).is_err() {
            continue;
        }
        match Answers::decode(&delivery.properties, &delivery.data) {
            Ok(answers) => {
                let mut waiters = lock(waiters);
                for answered in answers.answers {
                    // An asker that has given up is not there any more.
                    if let Some(waiter) = waiters.remove(&answered.id) {
                        let _ = waiter.send(Ok(answered.answer));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "an answer that cannot be read"),
        }
    }
}

fn lock(waiters: &Mutex<HashMap<u64, Waiter>>) -> std::sync::MutexGuard<'_, HashMap<u64, Waiter>> {
    waiters.lock().unwrap_or_else(PoisonError::into_inner)
}
