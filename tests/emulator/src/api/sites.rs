//! `sites.list` and `sites.get`.

use serde_json::{Value, json};

use super::error::ApiError;
use crate::config::{Config, Site};

/// The site, if it exists for this user.
pub(super) fn find<'a>(config: &'a Config, url: &str, user: &str) -> Option<&'a Site> {
    config
        .sites
        .iter()
        .find(|site| site.url == url && is_user(site, user))
}

fn is_user(site: &Site, user: &str) -> bool {
    site.users.is_empty() || site.users.iter().any(|known| known == user)
}

fn entry(site: &Site) -> Value {
    json!({ "siteUrl": site.url, "permissionLevel": site.permission })
}

pub(super) fn list(config: &Config, user: &str) -> Value {
    let entries: Vec<Value> = config
        .sites
        .iter()
        .filter(|site| is_user(site, user))
        .map(entry)
        .collect();
    if entries.is_empty() {
        json!({})
    } else {
        json!({ "siteEntry": entries })
    }
}

pub(super) fn get(config: &Config, url: &str, user: &str) -> Result<Value, ApiError> {
    find(config, url, user)
        .map(entry)
        .ok_or_else(|| ApiError::permission(url))
}
