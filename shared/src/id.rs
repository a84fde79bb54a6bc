//! Ids of runs and batches: UUID version 7, so they sort by time of creation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: the current time and random bits (RFC 9562, section 5.7).
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The sixteen bytes that databases store.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id behind sixteen stored bytes; `None` when there are not sixteen.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// Which batch: what is dispatched, acked, retried and counted as a whole.
    BatchId
}
uuid_id! {
    /// Which run: one submission and whatever its batches fan out into.
    RunId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_give_the_same_id_back() {
        let id = BatchId::generate();
        assert_eq!(id.to_string().parse::<BatchId>().unwrap(), id);
        assert_eq!(BatchId::from_bytes(id.as_bytes()), Some(id));
        assert_eq!(BatchId::from_bytes(b"short"), None);
    }

    #[test]
    fn later_ids_sort_later() {
        let earlier = BatchId::generate();
        let later = BatchId::generate();
        assert!(earlier < later);
    }
}
