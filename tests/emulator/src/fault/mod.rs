//! Faults: which request meets which misfortune. What they do to an answer is in `api` and `http`.

mod rule;

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;

pub use rule::{Endpoint, Kind, Rule};

use crate::generator::{Dimension, SearchType, fnv, mix};
use crate::latency::unit;

/// What rules can look at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subject<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) site: Option<&'a str>,
    pub(crate) search_type: Option<SearchType>,
    pub(crate) days: Option<(Date, Date)>,
    pub(crate) dimensions: &'a [Dimension],
    pub(crate) start_row: Option<u64>,
    /// Tells one request from another when probabilities are drawn.
    pub(crate) label: &'a str,
}

/// A fault that happens, with the parameters of its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) retry_after_s: Option<u64>,
    pub(crate) stall_ms: u64,
    pub(crate) at_byte: usize,
    pub(crate) bytes_per_s: u64,
}

const DEFAULT_STALL_MS: u64 = 60_000;
const DEFAULT_BYTES_PER_S: u64 = 1_000;

/// How often each rule matched and fired, and how often each request was made.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    rules: Vec<(u64, u64)>,
    requests: HashMap<u64, u64>,
}

impl Draws {
    /// The fault that this request meets, if any.
    pub(crate) fn draw(
        &mut self,
        rules: &[Rule],
        seed: u64,
        subject: &Subject<'_>,
    ) -> Option<Fault> {
        if rules.is_empty() {
            return None;
        }
        self.rules.resize(rules.len(), (0, 0));
        let label = fnv(subject.label);
        let made = self.requests.entry(label).or_default();
        *made += 1;
        let base = mix(seed ^ label ^ mix(*made));
        for ((rule, (matched, fired)), index) in rules.iter().zip(&mut self.rules).zip(1..) {
            let kinds = rule.kinds();
            if kinds.contains(&Kind::RevokePermission) || !rule.matches(subject) {
                continue;
            }
            *matched += 1;
            let chance = mix(base ^ mix(index));
            if rule.nth.is_some_and(|nth| nth != *matched)
                || rule.p.is_some_and(|p| unit(chance) > p)
                || *fired >= rule.limit()
            {
                continue;
            }
            *fired += 1;
            let choice = usize::try_from(mix(chance) % kinds.len() as u64).unwrap_or(0);
            return Some(Fault {
                kind: kinds[choice],
                retry_after_s: rule.retry_after_s,
                stall_ms: rule.ms.unwrap_or(DEFAULT_STALL_MS),
                at_byte: rule.at_byte.unwrap_or(0),
                bytes_per_s: rule.bytes_per_s.unwrap_or(DEFAULT_BYTES_PER_S),
            });
        }
        None
    }
}

/// Whether a `revoke_permission` rule holds for this site by now.
pub(crate) fn is_revoked(rules: &[Rule], site: &str, now: Timestamp) -> bool {
    rules.iter().any(|rule| {
        rule.kind == Some(Kind::RevokePermission)
            && rule.site.as_deref() == Some(site)
            && rule.at.is_none_or(|at| at <= now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(toml: &str) -> Vec<Rule> {
        crate::Config::from_toml(toml).unwrap().faults
    }

    fn query(label: &str) -> Subject<'_> {
        Subject {
            site: Some("a"),
            start_row: Some(0),
            label,
            ..Subject::default()
        }
    }

    #[test]
    fn two_percent_of_mixed_faults_are_two_percent_and_the_same_in_any_order() {
        let rules =
            rules("[[faults]]\nkinds = [\"500\", \"503\", \"conn_reset_before\"]\np = 0.02");
        let labels: Vec<String> = (0..20_000).map(|n| format!("request {n}")).collect();
        let victims = |labels: &mut dyn Iterator<Item = &String>| {
            let mut draws = Draws::default();
            let mut hit: Vec<(String, Kind)> = labels
                .filter_map(|label| {
                    Some((label.clone(), draws.draw(&rules, 42, &query(label))?.kind))
                })
                .collect();
            hit.sort_unstable();
            hit
        };
        let forward = victims(&mut labels.iter());
        assert_eq!(forward, victims(&mut labels.iter().rev()));
        assert!((320..480).contains(&forward.len()), "{}", forward.len());
        for kind in [Kind::Internal, Kind::Unavailable, Kind::ConnResetBefore] {
            assert!(forward.iter().any(|(_, hit)| *hit == kind));
        }
    }

    #[test]
    fn a_request_that_failed_is_drawn_anew() {
        let rules = rules("[[faults]]\nkind = \"500\"\np = 0.5");
        let mut draws = Draws::default();
        let hits = (0..100)
            .filter(|_| draws.draw(&rules, 42, &query("same")).is_some())
            .count();
        assert!((30..70).contains(&hits), "{hits}");
    }

    #[test]
    fn nth_times_and_conditions_narrow_a_rule() {
        let rules = rules(
            "[[faults]]\nkind = \"503\"\nnth = 2\n[[faults]]\nkind = \"500\"\nsite = \"b\"\n\
             [[faults]]\nkind = \"401once\"",
        );
        let mut draws = Draws::default();
        let mut draw = || draws.draw(&rules, 42, &query("x")).map(|fault| fault.kind);
        let kinds = [draw(), draw(), draw()];
        assert_eq!(
            kinds,
            [Some(Kind::Unauthorized), Some(Kind::Unavailable), None]
        );
    }

    #[test]
    fn permission_is_revoked_at_its_time() {
        let rules = rules(
            "[[faults]]\nkind = \"revoke_permission\"\nsite = \"a\"\nat = \"2026-03-02T00:00:00Z\"",
        );
        let at = |time: &str| is_revoked(&rules, "a", time.parse().unwrap());
        assert!(!at("2026-03-01T23:59:59Z") && at("2026-03-02T00:00:00Z"));
    }
}
