//! One `[[faults]]` entry: what goes wrong, for which requests, and how often.

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::Subject;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// HTTP 500 `Backend Error`.
    #[serde(rename = "500")]
    Internal,
    /// HTTP 500 whose message is null.
    #[serde(rename = "500null")]
    InternalNull,
    /// HTTP 503.
    #[serde(rename = "503")]
    Unavailable,
    /// HTTP 429, with `Retry-After` when `retry_after_s` is given.
    #[serde(rename = "429")]
    TooManyRequests,
    /// The rate quota's 403.
    #[serde(rename = "403rate")]
    RateQuota,
    /// The load quota's 403.
    #[serde(rename = "403load")]
    LoadQuota,
    /// HTTP 401, once unless `p` or `times` is given.
    #[serde(rename = "401once")]
    Unauthorized,
    /// HTTP 400.
    #[serde(rename = "400")]
    BadRequest,
    /// HTTP 502 with a page of HTML.
    #[serde(rename = "html_502")]
    Html502,
    /// The connection is reset before any answer.
    ConnResetBefore,
    /// The connection is reset in the middle of the body.
    ConnResetMidBody,
    /// The compressed body ends early, properly framed; plain JSON when gzip was not asked for.
    TruncatedGzip,
    /// The JSON ends early, properly framed, with status 200.
    #[serde(rename = "truncated_json_with_200")]
    TruncatedJson,
    /// The body pauses for `ms` at byte `at_byte`.
    Stall,
    /// The body comes at `bytes_per_s`.
    SlowDrip,
    /// `Content-Length` promises more than comes.
    WrongContentLength,
    /// A page begins with the last row of the page before, in place of its own first row.
    DuplicateRowBetweenPages,
    /// A row was inserted before this page: all its rows move down by one.
    ShiftedPage,
    /// A page has only half of its rows although more follow.
    ShortPageNotLast,
    /// Metadata keys in camel case.
    MetadataCamel,
    /// From `at` on, `site` answers 403.
    RevokePermission,
    /// The access token dies before its time, once unless `p` or `times` is given.
    TokenExpiredEarly,
}

impl Kind {
    /// Its name in configuration and statistics.
    pub(crate) fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    fn happens_once_by_default(self) -> bool {
        matches!(self, Self::Unauthorized | Self::TokenExpiredEarly)
    }
}

/// Which calls a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Search Analytics queries.
    #[default]
    Query,
    /// The list of sites, and single ones.
    Sites,
    /// Sitemaps.
    Sitemaps,
    /// URL inspection.
    Inspection,
    /// Tokens.
    Token,
    /// All of these.
    Any,
}

/// A rule. Conditions that are absent hold always; the first rule that fires decides.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// What goes wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Several kinds, one of which is drawn each time. Give either this or `kind`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Kind>,
    /// Which calls.
    pub endpoint: Endpoint,
    /// This site only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// This search type only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub search_type: Option<String>,
    /// Requests whose range contains this day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<Date>,
    /// Exactly these dimensions, in any order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<String>>,
    /// This `startRow` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_row: Option<u64>,
    /// Only the n-th call that meets the conditions above, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Probability, drawn from seed, request and how often that request was made: the same victims in every
    /// run, in whatever order requests come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// How often the rule may fire at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// For `429` and `503`: seconds in `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
    /// For `stall`: how long, 60 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// For `stall`: before which byte of the body, 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_byte: Option<usize>,
    /// For `slow_drip`: speed, 1,000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// For `revoke_permission`: from this virtual time on; at once when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl Rule {
    /// A rule that always fires, for code that builds on it.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }

    pub(crate) fn kinds(&self) -> &[Kind] {
        self.kind
            .as_ref()
            .map_or(self.kinds.as_slice(), std::slice::from_ref)
    }

    /// What is wrong with the rule, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.kind.is_some() != self.kinds.is_empty() {
            return Some("a rule needs either kind or kinds".to_owned());
        }
        if self.p.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Some("p must be between 0 and 1".to_owned());
        }
        if self.bytes_per_s == Some(0) || self.nth == Some(0) {
            return Some("bytes_per_s and nth start at 1".to_owned());
        }
        let revokes = self.kinds().contains(&Kind::RevokePermission);
        if revokes && (self.site.is_none() || self.kind.is_none()) {
            return Some("revoke_permission stands alone and needs a site".to_owned());
        }
        None
    }

    /// How often the rule may fire.
    pub(crate) fn limit(&self) -> u64 {
        let once = self.p.is_none() && self.kind.is_some_and(Kind::happens_once_by_default);
        self.times.unwrap_or(if once { 1 } else { u64::MAX })
    }

    /// Whether the rule is about this request at all.
    pub(crate) fn matches(&self, subject: &Subject<'_>) -> bool {
        let same_dims = |dims: &Vec<String>| {
            let mut wanted: Vec<&str> = dims.iter().map(String::as_str).collect();
            let mut asked: Vec<&str> = subject
                .dimensions
                .iter()
                .map(|dimension| dimension.word())
                .collect();
            wanted.sort_unstable();
            asked.sort_unstable();
            wanted == asked
        };
        (self.endpoint == Endpoint::Any || self.endpoint == subject.endpoint)
            && self
                .site
                .as_deref()
                .is_none_or(|site| Some(site) == subject.site)
            && self
                .search_type
                .as_deref()
                .is_none_or(|word| subject.search_type.is_some_and(|t| t.word() == word))
            && self.date.is_none_or(|day| {
                subject
                    .days
                    .is_some_and(|(from, to)| from <= day && day <= to)
            })
            && self.dims.as_ref().is_none_or(same_dims)
            && self
                .start_row
                .is_none_or(|row| Some(row) == subject.start_row)
    }
}
