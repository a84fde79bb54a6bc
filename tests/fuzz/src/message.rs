//! An AMQP message as text, so that an input can be read and changed sensibly: `name: value` lines for what
//! stands in the properties, a blank line, the body.
//!
//! A header's value says its type first: `t` text (a long string), `s` a short string, `u` and `i` 32 bits,
//! `U` and `I` 8 bits, `L` 64 bits, `v` nothing at all.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// AMQP's limit for short strings.
const SHORT: usize = 255;

/// Takes an input apart. What cannot be read is left out.
#[must_use]
pub fn read(input: &[u8]) -> (BasicProperties, &[u8]) {
    let end = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = match end {
        Some(end) => (&input[..end], &input[end + 2..]),
        None => (input, &[][..]),
    };
    let mut properties = BasicProperties::default();
    let mut headers = FieldTable::default();
    for line in String::from_utf8_lossy(head).lines() {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        properties = match name {
            "type" => properties.with_type(short(value)),
            "message_id" => properties.with_message_id(short(value)),
            "correlation_id" => properties.with_correlation_id(short(value)),
            "reply_to" => properties.with_reply_to(short(value)),
            "content_type" => properties.with_content_type(short(value)),
            _ => {
                if let Some(value) = header(value) {
                    headers.insert(short(name), value);
                }
                properties
            }
        };
    }
    (properties.with_headers(headers), body)
}

/// The same, the other way round.
#[must_use]
pub fn write(properties: &BasicProperties, body: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.extend([name, ": ", &value, "\n"]);
    };
    let known = [
        ("type", properties.kind()),
        ("message_id", properties.message_id()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("content_type", properties.content_type()),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            line(name, value.to_string());
        }
    }
    if let Some(headers) = properties.headers() {
        for (name, value) in headers.inner() {
            let value = match value {
                AMQPValue::LongString(text) => format!("t{text}"),
                AMQPValue::LongUInt(number) => format!("u{number}"),
                other => panic!("a header that none of our messages has: {other:?}"),
            };
            line(name.as_str(), value);
        }
    }
    [text.as_bytes(), b"\n", body].concat()
}

fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(SHORT)].into()
}

fn header(value: &str) -> Option<AMQPValue> {
    let (kind, value) = value.split_at_checked(1)?;
    Some(match kind {
        "t" => AMQPValue::LongString(value.into()),
        "s" => AMQPValue::ShortString(short(value)),
        "u" => AMQPValue::LongUInt(value.parse().ok()?),
        "i" => AMQPValue::LongInt(value.parse().ok()?),
        "U" => AMQPValue::ShortShortUInt(value.parse().ok()?),
        "I" => AMQPValue::ShortShortInt(value.parse().ok()?),
        "L" => AMQPValue::LongLongInt(value.parse().ok()?),
        "v" => AMQPValue::Void,
        _ => return None,
    })
}
