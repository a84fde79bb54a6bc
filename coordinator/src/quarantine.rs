//! Where messages go that belong to nothing we know: `tidegate.quarantine`, for a person to look at.

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use shared::broker::{BrokerError, Message, PERSISTENT, PublishingPool, Verdict};
use shared::topology::{HEADER_ERROR, HEADER_REASON, QUARANTINE};

/// Puts a delivery aside, as it came, with the reason in its headers. The caller acks it after that.
///
/// # Errors
/// [`BrokerError`] when it is not known to be in the quarantine queue; it may be there twice later.
pub async fn put_aside(
    pool: &PublishingPool,
    delivery: &Delivery,
    reason: &str,
    error: &str,
) -> Result<(), BrokerError> {
    // Headers that the broker added about the message's earlier life would steer its later one.
    let mut headers = FieldTable::default();
    for (name, value) in delivery
        .properties
        .headers()
        .as_ref()
        .into_iter()
        .flat_map(FieldTable::inner)
    {
        if !is_the_brokers(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(HEADER_REASON.into(), AMQPValue::LongString(reason.into()));
    headers.insert(HEADER_ERROR.into(), AMQPValue::LongString(error.into()));
    let mut properties = delivery
        .properties
        .clone()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    if properties.message_id().is_none() {
        // A return is recognised by its message id.
        properties =
            properties.with_message_id(format!("stranger-{}", delivery.delivery_tag).into());
    }
    let message = Message {
        exchange: QUARANTINE,
        routing_key: String::new(),
        properties,
        body: delivery.data.clone(),
    };
    let verdicts = pool.publisher().publish(&[message]).await?;
    match verdicts.as_slice() {
        [Verdict::Confirmed] => Ok(()),
        [Verdict::Unroutable] => Err(BrokerError::Missing {
            object: format!("queue {QUARANTINE}"),
            problem: "a message for it found no queue".into(),
        }),
        other => Err(BrokerError::Lost(format!(
            "the quarantine queue did not take a message: {other:?}"
        ))),
    }
}

fn is_the_brokers(header: &str) -> bool {
    header == "x-death"
        || header == "x-delivery-count"
        || header == "x-acquired-count"
        || header.starts_with("x-first-death-")
        || header.starts_with("x-last-death-")
}
