//! Questions and answers between workers and coordinators.

use std::time::Duration;

use jiff::Timestamp;
use shared::ask::{
    About, Answer, Answered, Answers, Asked, ClaimAnswer, ClaimRequest, Feedback, Pauses,
    PermitAnswer, PermitRequest, Question, Questions, Said, Want,
};
use shared::id::BatchId;
use shared::name::{Attempt, Instance, Key, LimitName, PipelineName};

use crate::message;

/// What was read can be sent on as it is.
pub fn run(input: &[u8]) {
    let (properties, body) = message::read(input);
    if let Ok(questions) = Questions::decode(&properties, body) {
        let again = serde_json::to_vec(&questions).expect("questions are plain data");
        let again = Questions::decode(&properties, &again).expect("what was read can be sent on");
        assert_eq!(again, questions);
    }
    if let Ok(answers) = Answers::decode(&properties, body) {
        let again = serde_json::to_vec(&answers).expect("answers are plain data");
        let again = Answers::decode(&properties, &again).expect("what was read can be sent on");
        assert_eq!(again, answers);
    }
}

/// Every kind of question and answer.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let limit = LimitName::new("gsc.site").expect("a name");
    let key = Key::new("sc-domain:example.com").expect("a key");
    let span = Duration::from_secs(1);
    let pauses = Pauses {
        first: span,
        again: 2 * span,
    };
    let feedback = |said| {
        Question::Feedback(Feedback {
            about: vec![About {
                limit: limit.clone(),
                key: key.clone(),
            }],
            asked_ago: span,
            said,
        })
    };
    let questions = [
        Question::Permit(PermitRequest {
            pipeline: PipelineName::new("gsc.slice").expect("a name"),
            wants: vec![Want {
                limit: limit.clone(),
                key: key.clone(),
                n: 1,
            }],
            patience: span,
        }),
        feedback(Said::Accepted),
        feedback(Said::TooFast {
            retry_after: Some(span),
            persistent: Some(pauses),
        }),
        feedback(Said::UsedUp(pauses)),
        Question::Claim(ClaimRequest {
            batch: BatchId::generate(),
            attempt: Attempt::new(2),
            worker: Instance::from("worker-1".to_owned()),
            alone: true,
        }),
    ];
    let answers = [
        Answer::Permit(PermitAnswer::Granted { after: span }),
        Answer::Permit(PermitAnswer::Parked {
            reason: "quota".into(),
            after: span,
            until: Some(Timestamp::UNIX_EPOCH),
        }),
        Answer::Permit(PermitAnswer::Unknown { limit }),
        Answer::Claim(ClaimAnswer::Alone),
    ];
    let questions = (0..).zip(questions).map(|(id, question)| {
        let questions = vec![Asked { id, question }];
        let body = serde_json::to_vec(&Questions { questions }).expect("plain data");
        message::write(&Questions::properties("1"), &body)
    });
    let answers = (0..).zip(answers).map(|(id, answer)| {
        let answers = vec![Answered { id, answer }];
        let body = serde_json::to_vec(&Answers { answers }).expect("plain data");
        message::write(&Answers::properties("1"), &body)
    });
    questions.chain(answers).collect()
}
