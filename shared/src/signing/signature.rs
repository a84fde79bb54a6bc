//! What a signature looks like and what it covers.
//!
//! The header is `v1:<key id>:<64 hex digits>`. The digits are HMAC-SHA256 over these fields, each preceded by its
//! length as eight bytes, so that no two messages have the same bytes:
//!
//! 1. `tidegate.signature.v1`, the key's id, and what the message is for ([`Purpose::word`]);
//! 2. `type`, `message_id` and `correlation_id`, each after a byte that says whether it is there;
//! 3. how many headers follow, then name and value of each header that begins with `x-tidegate-`, by name, but for
//!    the signature itself and what is added when a message is put aside. Whole numbers count by their value:
//!    a broker may pass them on in another width;
//! 4. the body.
//!
//! What the broker rewrites (`reply_to`, `expiration`, `x-death`, `x-delivery-count`), and what Tidegate does not read
//! (`timestamp`, `app_id`, `content_type`, tracing headers), is not covered.

use hmac::{Hmac, Mac};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use sha2::Sha256;

use super::keys::is_id;
use super::{HEADER_SIGNATURE, Purpose};
use crate::topology::{HEADER_ERROR, HEADER_REASON};

const VERSION: &str = "v1";
const DOMAIN: &[u8] = b"tidegate.signature.v1";
const OUR_HEADERS: &str = "x-tidegate-";
const TAG_BYTES: usize = 32;

/// Why a message is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("the message has no signature, and signing.mode asks for one")]
    Missing,
    /// It is none of ours.
    #[error("the header {HEADER_SIGNATURE} is not {VERSION}:<key id>:<64 hex digits>")]
    Malformed,
    /// It was made with a key that is not here.
    #[error(
        "the message is signed with the key {0:?}, which is not in signing.keys_folder: put a new key there everywhere \
         before anybody signs with it"
    )]
    UnknownKey(String),
    /// It is another message's, or another key's.
    #[error(
        "the signature does not fit the message: it was changed on its way, or the key {0:?} is another one here"
    )]
    Wrong(String),
}

impl SignatureError {
    /// The same in one closed word, for counting.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey(_) => "unknown_key",
            Self::Wrong(_) => "wrong",
        }
    }
}

/// The header's text.
pub(super) fn make(
    mac: Hmac<Sha256>,
    id: &str,
    purpose: Purpose,
    properties: &BasicProperties,
    body: &[u8],
) -> String {
    let tag = cover(mac, id, purpose, properties, body).finalize();
    format!("{VERSION}:{id}:{}", hex::encode(tag.into_bytes()))
}

/// Key id and tag.
pub(super) fn read(header: &AMQPValue) -> Result<(&str, [u8; TAG_BYTES]), SignatureError> {
    let bytes = match header {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes(),
        _ => return Err(SignatureError::Malformed),
    };
    let parts = || -> Option<(&str, [u8; TAG_BYTES])> {
        let mut parts = std::str::from_utf8(bytes).ok()?.split(':');
        let (version, id, digits) = (parts.next()?, parts.next()?, parts.next()?);
        // One text for one signature: capitals would be another.
        let is_ours = version == VERSION && is_id(id) && !digits.contains(char::is_uppercase);
        if !is_ours || parts.next().is_some() {
            return None;
        }
        let mut tag = [0; TAG_BYTES];
        hex::decode_to_slice(digits, &mut tag).ok()?;
        Some((id, tag))
    };
    parts().ok_or(SignatureError::Malformed)
}

/// Compares in constant time.
pub(super) fn check(
    mac: Hmac<Sha256>,
    id: &str,
    tag: &[u8; TAG_BYTES],
    purpose: Purpose,
    properties: &BasicProperties,
    body: &[u8],
) -> Result<(), SignatureError> {
    cover(mac, id, purpose, properties, body)
        .verify_slice(tag)
        .map_err(|_| SignatureError::Wrong(id.to_owned()))
}

fn cover(
    mut mac: Hmac<Sha256>,
    id: &str,
    purpose: Purpose,
    properties: &BasicProperties,
    body: &[u8],
) -> Hmac<Sha256> {
    for part in [DOMAIN, id.as_bytes(), purpose.word().as_bytes()] {
        field(&mut mac, part);
    }
    for property in [
        properties.kind(),
        properties.message_id(),
        properties.correlation_id(),
    ] {
        optional(&mut mac, property.as_ref());
    }
    let headers = properties.headers().as_ref();
    let covered = || {
        let headers = headers.into_iter().flat_map(FieldTable::inner);
        headers.filter(|(name, _)| is_covered(name.as_str()))
    };
    mac.update(&length(covered().count()));
    for (name, header) in covered() {
        field(&mut mac, name.as_str().as_bytes());
        value(&mut mac, header);
    }
    field(&mut mac, body);
    mac
}

fn is_covered(header: &str) -> bool {
    header.starts_with(OUR_HEADERS)
        && ![HEADER_SIGNATURE, HEADER_REASON, HEADER_ERROR].contains(&header)
}

fn field(mac: &mut Hmac<Sha256>, bytes: &[u8]) {
    mac.update(&length(bytes.len()));
    mac.update(bytes);
}

fn optional(mac: &mut Hmac<Sha256>, text: Option<&ShortString>) {
    mac.update(&[u8::from(text.is_some())]);
    if let Some(text) = text {
        field(mac, text.as_str().as_bytes());
    }
}

fn length(of: usize) -> [u8; 8] {
    (of as u64).to_be_bytes()
}

/// The value after a byte for its kind.
fn value(mac: &mut Hmac<Sha256>, value: &AMQPValue) {
    let number = match value {
        AMQPValue::LongString(text) => {
            mac.update(b"t");
            return field(mac, text.as_bytes());
        }
        AMQPValue::ShortString(text) => {
            mac.update(b"t");
            return field(mac, text.as_str().as_bytes());
        }
        AMQPValue::ShortShortInt(n) => n.to_string(),
        AMQPValue::ShortShortUInt(n) => n.to_string(),
        AMQPValue::ShortInt(n) => n.to_string(),
        AMQPValue::ShortUInt(n) => n.to_string(),
        AMQPValue::LongInt(n) => n.to_string(),
        AMQPValue::LongUInt(n) => n.to_string(),
        AMQPValue::LongLongInt(n) => n.to_string(),
        // None of our headers is one of these; a stranger's is covered all the same.
        other => {
            mac.update(b"o");
            return field(mac, format!("{other:?}").as_bytes());
        }
    };
    mac.update(b"n");
    field(mac, number.as_bytes());
}
