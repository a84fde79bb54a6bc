//! The API proper: one call in, one answer out, in the API's own order of checks.
//!
//! The order is: token, faults, path and method, permission, quota, and only then the request itself.

mod batch;
mod discovery;
mod error;
mod inspection;
mod json;
mod query;
mod reply;
mod route;
mod sitemaps;
mod sites;

use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use serde_json::Value;

pub(crate) use batch::answer as answer_batch;
pub(crate) use discovery::document as discovery_document;
pub(crate) use error::ApiError;
pub(crate) use reply::{Reply, SiteCall};

use crate::app::App;
use crate::config::{Config, Permission};
use crate::fault::{self, Endpoint, Fault, Kind, Subject};
use crate::quota::load_cost;
use json::Mask;
pub(crate) use query::rows_as_lines;
use query::{Request, Sketch};
use route::Route;

/// The most rows a page can have.
pub(crate) const MAX_ROW_LIMIT: u64 = 25_000;

/// One call, from a request of its own or from a part of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) parameters: &'a str,
    pub(crate) authorization: Option<&'a str>,
    pub(crate) body: &'a [u8],
    pub(crate) gzip: bool,
}

/// How the caller wants the answer written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) pretty: bool,
    pub(crate) gzip: bool,
}

impl Call<'_> {
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.parameters.as_bytes());
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    pub(crate) fn format(&self) -> Format {
        let pretty = self
            .parameter("prettyPrint")
            .is_none_or(|value| value != "false");
        Format {
            pretty,
            gzip: self.gzip,
        }
    }

    fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.authorization?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

/// Answers one call and counts it.
pub(crate) async fn answer(app: &Arc<App>, call: Call<'_>) -> Reply {
    let route = Route::find(call.method, call.path);
    let body: Value = serde_json::from_slice(call.body).unwrap_or_default();
    let site = site_of(&route, &body);
    let under_way = site.map(|site| SiteCall::begin(app, site));
    let sketch = Sketch::of(&body);
    let label = match &route {
        Ok(Route::Query { site }) => format!("{site}|{}", sketch.label()),
        _ => call.path.to_owned(),
    };
    {
        let mut stats = app.stats();
        stats.call(route.as_ref().map_or("unknown", |route| route.endpoint().0));
        if matches!(route, Ok(Route::Query { .. })) {
            stats.fetch(&label);
        }
    }
    let subject = subject(&route, site, &sketch, &label);
    let visit = Visit {
        app,
        config: &app.config(),
        call,
        body: &body,
    };
    let reply = match visit.admit(&subject) {
        Ok((user, fault)) => match &route {
            Ok(route) => visit
                .serve(route, &user, &sketch, fault)
                .await
                .unwrap_or_else(Reply::from),
            Err(error) => error.clone().into(),
        },
        Err(reply) => *reply,
    };
    app.stats().status(reply.status);
    Reply { under_way, ..reply }
}

fn site_of<'a>(route: &'a Result<Route, ApiError>, body: &'a Value) -> Option<&'a str> {
    match route {
        Ok(Route::Inspect) => body["siteUrl"].as_str(),
        Ok(route) => route.site(),
        Err(_) => None,
    }
}

fn subject<'a>(
    route: &Result<Route, ApiError>,
    site: Option<&'a str>,
    sketch: &'a Sketch,
    label: &'a str,
) -> Subject<'a> {
    let endpoint = route
        .as_ref()
        .map_or(Endpoint::Any, |route| route.endpoint().1);
    let plain = Subject {
        endpoint,
        site,
        label,
        ..Subject::default()
    };
    if endpoint != Endpoint::Query {
        return plain;
    }
    Subject {
        search_type: sketch.search_type,
        days: sketch.days,
        dimensions: &sketch.dimensions,
        start_row: Some(sketch.start_row),
        ..plain
    }
}

/// One call with what is needed to judge it.
struct Visit<'a> {
    app: &'a Arc<App>,
    config: &'a Config,
    call: Call<'a>,
    body: &'a Value,
}

impl Visit<'_> {
    /// Token, then faults that answer themselves. Gives the user, and the fault that befalls the answer.
    fn admit(&self, subject: &Subject<'_>) -> Result<(String, Option<Fault>), Box<Reply>> {
        let bearer = self.call.bearer().unwrap_or_default();
        let user = self
            .app
            .tokens()
            .user(bearer, Instant::now())
            .map(str::to_owned);
        let user = user.ok_or_else(|| Box::new(Reply::from(ApiError::unauthenticated())))?;
        let Some(fault) = draw(self.app, self.config, subject) else {
            return Ok((user, None));
        };
        if fault.kind == Kind::TokenExpiredEarly {
            self.app.tokens().kill(bearer);
        }
        match refusal(&fault) {
            Some(reply) => Err(Box::new(reply)),
            None => Ok((user, Some(fault))),
        }
    }

    async fn serve(
        &self,
        route: &Route,
        user: &str,
        sketch: &Sketch,
        fault: Option<Fault>,
    ) -> Result<Reply, ApiError> {
        let mask = match self.call.parameter("fields") {
            None => Mask::default(),
            Some(fields) => Mask::parse(&fields).ok_or_else(|| {
                ApiError::invalid_parameter(&format!("Invalid field selection {fields}"))
            })?,
        };
        let now = self.app.clock.now();
        let value = match route {
            Route::Query { site } => {
                self.may_read(site, user)?;
                self.charge(site, user, sketch)?;
                let request = Request::read(site, self.body)?;
                return Ok(query::serve(
                    self.app,
                    self.config,
                    request,
                    self.call.format(),
                    &mask,
                    fault,
                )
                .await);
            }
            Route::Sites => sites::list(self.config, user),
            Route::Site { site } => sites::get(self.config, site, user)?,
            Route::Sitemaps { site } => {
                self.may_read(site, user)?;
                sitemaps::list(site, self.call.parameter("sitemapIndex").as_deref(), &now)
            }
            Route::Sitemap { site, feed } => {
                self.may_read(site, user)?;
                sitemaps::get(site, feed, &now)?
            }
            Route::Inspect => {
                inspection::inspect(self.body, &now, |site| self.may_read(site, user))?
            }
        };
        let mut value = value;
        mask.apply(&mut value);
        Ok(Reply {
            wire: fault,
            ..Reply::json(200, &value)
        })
    }

    /// Unknown, unverified and revoked sites look alike.
    fn may_read(&self, site: &str, user: &str) -> Result<(), ApiError> {
        let known = sites::find(self.config, site, user);
        let is_allowed =
            known.is_some_and(|known| known.permission != Permission::SiteUnverifiedUser);
        let is_revoked =
            fault::is_revoked(&self.config.faults, site, self.app.clock.now().timestamp());
        if is_allowed && !is_revoked {
            Ok(())
        } else {
            Err(ApiError::permission(site))
        }
    }

    fn charge(&self, site: &str, user: &str, sketch: &Sketch) -> Result<(), ApiError> {
        use crate::generator::Dimension;
        let by_page = sketch.dimensions.contains(&Dimension::Page) || sketch.filters_page;
        let by_query = sketch.dimensions.contains(&Dimension::Query) || sketch.filters_query;
        let load = load_cost(sketch.day_count(), by_page, by_query, sketch.start_row);
        let charged = self
            .app
            .quotas()
            .charge(self.config, site, user, load, Instant::now());
        charged.map_err(|limit| {
            self.app.stats().over_quota(limit.key());
            ApiError::over(limit)
        })
    }
}

/// Draws and counts the fault of a call.
pub(crate) fn draw(app: &App, config: &Config, subject: &Subject<'_>) -> Option<Fault> {
    let fault = app
        .draws()
        .draw(&config.faults, config.fault_seed, subject)?;
    app.stats().fault(fault.kind.name());
    Some(fault)
}

/// The answer of a fault that does not wait for the real one.
pub(crate) fn refusal(fault: &Fault) -> Option<Reply> {
    if fault.kind == Kind::ConnResetBefore {
        return Some(Reply::broken(*fault));
    }
    ApiError::of_fault(fault).map(Reply::from)
}
