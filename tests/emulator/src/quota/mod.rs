//! The quotas of queries: sliding windows per site, user and project, by the real clock.
//!
//! A query is charged to all windows or to none. With `punish` a refused query is charged too.

mod window;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::Config;
use window::Window;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const TEN_MINUTES: Duration = Duration::from_mins(10);
const DAY: Duration = Duration::from_hours(24);
/// Queries a new project may send in a minute.
const NEW_PROJECT_PER_MINUTE: u64 = 60;

/// Which limit a query ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limit {
    ProjectDay,
    NewProject,
    ProjectMinute,
    UserMinute,
    SiteBurst,
    SiteMinute,
    LoadLong,
    LoadShort,
}

impl Limit {
    /// The configuration key, which is its name in the statistics too.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::ProjectDay => "qpd_project",
            Self::NewProject => "new_project",
            Self::ProjectMinute => "qpm_project",
            Self::UserMinute => "qpm_user",
            Self::SiteBurst => "qps_burst",
            Self::SiteMinute => "qpm_site",
            Self::LoadLong => "load_long",
            Self::LoadShort => "load_short",
        }
    }
}

/// All windows.
#[derive(Debug)]
pub(crate) struct Quotas {
    project_day: Window,
    project_minute: Window,
    sites: HashMap<String, SiteWindows>,
    users: HashMap<String, Window>,
}

#[derive(Debug)]
struct SiteWindows {
    burst: Window,
    minute: Window,
    load_short: Window,
    load_long: Window,
}

impl SiteWindows {
    fn new() -> Self {
        Self {
            burst: Window::new(SECOND),
            minute: Window::new(MINUTE),
            load_short: Window::new(TEN_MINUTES),
            load_long: Window::new(DAY),
        }
    }
}

impl Quotas {
    pub(crate) fn new() -> Self {
        Self {
            project_day: Window::new(DAY),
            project_minute: Window::new(MINUTE),
            sites: HashMap::new(),
            users: HashMap::new(),
        }
    }

    /// Charges one query that costs `load` units, or says which limit it ran into.
    pub(crate) fn charge(
        &mut self,
        config: &Config,
        site: &str,
        user: &str,
        load: u64,
        now: Instant,
    ) -> Result<(), Limit> {
        if !self.sites.contains_key(site) {
            self.sites.insert(site.to_owned(), SiteWindows::new());
        }
        if !self.users.contains_key(user) {
            self.users.insert(user.to_owned(), Window::new(MINUTE));
        }
        // Both were just put there.
        let (Some(of_site), Some(of_user)) = (self.sites.get_mut(site), self.users.get_mut(user))
        else {
            return Ok(());
        };
        let new_project = if config.new_project {
            NEW_PROJECT_PER_MINUTE
        } else {
            0
        };
        let checks = [
            (
                Limit::ProjectDay,
                self.project_day.has_room(1, config.qpd_project, now),
            ),
            (
                Limit::NewProject,
                self.project_minute.has_room(1, new_project, now),
            ),
            (
                Limit::ProjectMinute,
                self.project_minute.has_room(1, config.qpm_project, now),
            ),
            (Limit::UserMinute, of_user.has_room(1, config.qpm_user, now)),
            (
                Limit::SiteBurst,
                of_site.burst.has_room(1, config.qps_burst, now),
            ),
            (
                Limit::SiteMinute,
                of_site.minute.has_room(1, config.qpm_site, now),
            ),
            (
                Limit::LoadLong,
                of_site.load_long.has_room(load, config.load_long, now),
            ),
            (
                Limit::LoadShort,
                of_site.load_short.has_room(load, config.load_short, now),
            ),
        ];
        let refused = checks
            .iter()
            .find(|(_, has_room)| !has_room)
            .map(|(limit, _)| *limit);
        if refused.is_none() || config.punish {
            for window in [&mut self.project_day, &mut self.project_minute, of_user] {
                window.charge(1, now);
            }
            of_site.burst.charge(1, now);
            of_site.minute.charge(1, now);
            of_site.load_short.charge(load, now);
            of_site.load_long.charge(load, now);
        }
        refused.map_or(Ok(()), Err)
    }
}

/// What a query costs: more for more days, for pages and queries, and for later pages of the answer.
pub(crate) fn load_cost(days: u64, by_page: bool, by_query: bool, start_row: u64) -> u64 {
    let weight = match (by_page, by_query) {
        (true, true) => 25,
        (true, false) | (false, true) => 10,
        (false, false) => 1,
    };
    days * weight * (1 + start_row / crate::api::MAX_ROW_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst_of(config: &Config, quotas: &mut Quotas, now: Instant, count: u32) -> u32 {
        (0..count)
            .map(|_| u32::from(quotas.charge(config, "site", "user", 1, now).is_ok()))
            .sum()
    }

    #[test]
    fn a_refused_query_costs_nothing_unless_punished() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        for (punish, then) in [(false, 20), (true, 0)] {
            let config = Config {
                punish,
                ..Config::default()
            };
            let mut quotas = Quotas::new();
            assert_eq!(burst_of(&config, &mut quotas, start, 20), 20);
            assert_eq!(
                burst_of(&config, &mut quotas, start + Duration::from_millis(500), 40),
                0
            );
            assert_eq!(burst_of(&config, &mut quotas, later, 20), then);
        }
    }

    #[test]
    fn sites_are_limited_apart_and_users_together() {
        let config = Config {
            qps_burst: 1,
            qpm_user: 2,
            ..Config::default()
        };
        let mut quotas = Quotas::new();
        let now = Instant::now();
        assert_eq!(quotas.charge(&config, "a", "u", 1, now), Ok(()));
        assert_eq!(
            quotas.charge(&config, "a", "u", 1, now),
            Err(Limit::SiteBurst)
        );
        assert_eq!(quotas.charge(&config, "b", "u", 1, now), Ok(()));
        assert_eq!(
            quotas.charge(&config, "c", "u", 1, now),
            Err(Limit::UserMinute)
        );
        assert_eq!(quotas.charge(&config, "c", "v", 1, now), Ok(()));
    }

    #[test]
    fn load_grows_with_days_dimensions_and_offset() {
        assert_eq!(load_cost(1, false, false, 0), 1);
        assert_eq!(load_cost(30, true, false, 0), 300);
        let slice: u64 = [0, 25_000, 50_000]
            .map(|start| load_cost(1, true, true, start))
            .iter()
            .sum();
        assert_eq!(slice, 150);
    }
}
