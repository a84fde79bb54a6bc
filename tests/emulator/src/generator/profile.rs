//! How much there is: the three sizes of generator v1.

use serde::{Deserialize, Serialize};

/// A size of site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// 2,000 searches a day: one page of answers.
    #[default]
    Small,
    /// 12,000 searches a day.
    Medium,
    /// 90,000 searches a day: more rows than the API's cap of 50,000.
    Large,
}

impl Profile {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// Searches per day of type web.
    pub(crate) const fn facts(self) -> u64 {
        match self {
            Self::Small => 2_000,
            Self::Medium => 12_000,
            Self::Large => 90_000,
        }
    }

    /// Ranks of queries are below two to this power.
    pub(crate) const fn query_bits(self) -> u64 {
        match self {
            Self::Small => 12,
            Self::Medium => 15,
            Self::Large => 17,
        }
    }

    /// Ranks of pages are below two to this power.
    pub(crate) const fn page_bits(self) -> u64 {
        match self {
            Self::Small => 9,
            Self::Medium => 12,
            Self::Large => 14,
        }
    }
}
