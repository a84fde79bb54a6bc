//! Which limits a call falls under, and what Google's answer says about them. Google limits sites, users and
//! projects, not processes, so the coordinator counts; what is particular about Google is here.
//!
//! The load quota is about calls that ask for pages or queries: when it is used up, those of the property are left
//! alone for the quarter of an hour that Google recommends, and if that was not enough until the Pacific day ends.

use std::time::Duration;

use jiff::Timestamp;
use shared::ask::{About, Pauses, Said, Want};
use shared::name::{Key, LimitName};
use shared::search_console::{
    Dimension, DimensionSet, LOAD_LIMIT, PROJECT_LIMIT, SITE_LIMIT, USER_LIMIT,
};

use super::calendar::Calendar;

/// What Google recommends to wait for the ten-minute load quota.
const LOAD_PAUSE: Duration = Duration::from_mins(15);

/// What a call costs Google: grouping by page or query is what the load quota is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Days, countries, devices.
    Light,
    /// Pages, queries.
    Heavy,
}

impl Weight {
    /// The weight of a dimension set.
    pub(super) fn of(dimensions: &DimensionSet) -> Self {
        if dimensions.contains(Dimension::Page) || dimensions.contains(Dimension::Query) {
            Self::Heavy
        } else {
            Self::Light
        }
    }
}

/// What Google said to a call, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The call was within all limits.
    Accepted,
    /// Too fast; with Google's own wish for a pause, if it named one.
    TooFast(Option<Duration>),
    /// The load quota is used up.
    LoadUsedUp,
    /// The day's quota is used up.
    DayUsedUp,
}

/// The limits of all calls with one credential.
#[derive(Debug)]
pub(super) struct Limits {
    site: LimitName,
    user: LimitName,
    project: LimitName,
    load: LimitName,
    /// The credential, as Google counts it.
    credential: Key,
}

impl Limits {
    pub(super) fn new(credential: Key) -> Self {
        let name = |name| LimitName::new(name).expect("the built-in names are well-formed");
        Self {
            site: name(SITE_LIMIT),
            user: name(USER_LIMIT),
            project: name(PROJECT_LIMIT),
            load: name(LOAD_LIMIT),
            credential,
        }
    }

    /// What a call for this property falls under.
    pub(super) fn wants(&self, property: &Key, weight: Weight) -> Vec<Want> {
        let want = |limit: &LimitName, key: &Key| Want {
            limit: limit.clone(),
            key: key.clone(),
            n: 1,
        };
        let mut wants = vec![
            want(&self.site, property),
            want(&self.user, &self.credential),
            want(&self.project, &self.credential),
        ];
        if weight == Weight::Heavy {
            wants.push(want(&self.load, property));
        }
        wants
    }

    /// What an answer says, and about which limits.
    pub(super) fn said(
        &self,
        property: &Key,
        weight: Weight,
        answer: Answer,
        calendar: &Calendar,
        now: Timestamp,
    ) -> (Vec<About>, Said) {
        let about = |limit: &LimitName| About {
            limit: limit.clone(),
            key: property.clone(),
        };
        let (site, load) = (about(&self.site), about(&self.load));
        let until_midnight = calendar.next_midnight(now).duration_since(now);
        let until_midnight = Duration::try_from(until_midnight).unwrap_or_default();
        let load_pauses = Pauses {
            first: LOAD_PAUSE,
            again: until_midnight,
        };
        match (answer, weight) {
            (Answer::Accepted, Weight::Light) => (vec![site], Said::Accepted),
            (Answer::Accepted, Weight::Heavy) => (vec![site, load], Said::Accepted),
            (Answer::TooFast(retry_after), weight) => {
                // Google has one error for all quotas: when it persists, it is the load quota's.
                let heavy = weight == Weight::Heavy;
                let said = Said::TooFast {
                    retry_after,
                    persistent: heavy.then_some(load_pauses),
                };
                let about = if heavy { vec![site, load] } else { vec![site] };
                (about, said)
            }
            // When even a cheap call is too much, nothing else is worth trying.
            (Answer::LoadUsedUp, Weight::Light) => (vec![site, load], Said::UsedUp(load_pauses)),
            (Answer::LoadUsedUp, Weight::Heavy) => (vec![load], Said::UsedUp(load_pauses)),
            (Answer::DayUsedUp, _) => {
                let pauses = Pauses {
                    first: until_midnight,
                    again: until_midnight,
                };
                (vec![site], Said::UsedUp(pauses))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(weight: Weight, answer: Answer) -> (Vec<String>, Said) {
        let limits = Limits::new(Key::new("robot@project.example").unwrap());
        let property = Key::new("sc-domain:a.example").unwrap();
        let now = "2026-03-01T18:00:00Z".parse().unwrap();
        let calendar = Calendar::new(None);
        let (about, said) = limits.said(&property, weight, answer, &calendar, now);
        assert!(about.iter().all(|about| about.key == property));
        let names = about.iter().map(|about| about.limit.to_string());
        (names.collect(), said)
    }

    #[test]
    fn a_call_falls_under_everything_that_google_counts() {
        let limits = Limits::new(Key::new("robot@project.example").unwrap());
        let property = Key::new("sc-domain:a.example").unwrap();
        let wants = |weight| -> Vec<(String, String)> {
            let wants = limits.wants(&property, weight).into_iter();
            wants
                .map(|want| (want.limit.to_string(), want.key.to_string()))
                .collect()
        };
        let light = wants(Weight::Light);
        assert_eq!(light[0], ("gsc.site".into(), "sc-domain:a.example".into()));
        assert_eq!(
            light[1],
            ("gsc.user".into(), "robot@project.example".into())
        );
        assert_eq!(light[2].0, "gsc.project");
        let heavy = wants(Weight::Heavy);
        assert_eq!(heavy[..3], light);
        assert_eq!(heavy[3], ("gsc.load".into(), "sc-domain:a.example".into()));
    }

    #[test]
    fn a_load_quota_is_about_heavy_calls_unless_a_light_one_meets_it() {
        let pauses = Pauses {
            first: Duration::from_mins(15),
            again: Duration::from_hours(14),
        };
        let (about, said_) = said(Weight::Heavy, Answer::LoadUsedUp);
        assert_eq!(
            (about, said_),
            (vec!["gsc.load".into()], Said::UsedUp(pauses))
        );
        let (about, _) = said(Weight::Light, Answer::LoadUsedUp);
        assert_eq!(about, ["gsc.site", "gsc.load"]);
        let (about, said_) = said(Weight::Heavy, Answer::TooFast(None));
        assert_eq!(about, ["gsc.site", "gsc.load"]);
        let persistent = Some(pauses);
        assert_eq!(
            said_,
            Said::TooFast {
                retry_after: None,
                persistent
            }
        );
        let (about, _) = said(Weight::Light, Answer::TooFast(None));
        assert_eq!(about, ["gsc.site"]);
    }

    #[test]
    fn a_used_up_day_ends_at_the_pacific_midnight() {
        let (about, said) = said(Weight::Light, Answer::DayUsedUp);
        assert_eq!(about, ["gsc.site"]);
        let midnight = Duration::from_hours(14);
        let pauses = Pauses {
            first: midnight,
            again: midnight,
        };
        assert_eq!(said, Said::UsedUp(pauses));
    }
}
