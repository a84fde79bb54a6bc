//! `/__emu/…`: what tests and benchmarks ask and tell the emulator. No tokens, no quotas, no faults.

use std::sync::Arc;

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::api::{ApiError, Call, Reply, rows_as_lines};
use crate::app::App;
use crate::generator::{DataState, Dimension, SearchType, Selection, rows};

const NDJSON: &str = "application/x-ndjson";

/// Answers an admin call.
pub(crate) async fn answer(app: &Arc<App>, call: Call<'_>) -> Reply {
    let answered = match (call.method, call.path) {
        (&Method::GET, "/__emu/stats") => Ok(stats(app)),
        (&Method::GET, "/__emu/config") => Ok(config(app)),
        (&Method::GET, "/__emu/truth") => truth(app, call).await,
        (&Method::POST, "/__emu/reset") => {
            app.reset();
            Ok(done(app))
        }
        (&Method::POST, "/__emu/config") => object(call).and_then(|change| {
            app.patch(change)
                .map_err(|error| ApiError::bad_request(&error.to_string()))?;
            Ok(done(app))
        }),
        (&Method::POST, "/__emu/clock") => set_clock(app, call),
        (&Method::POST, "/__emu/advance") => advance(app, call),
        _ => Err(ApiError::not_found()),
    };
    answered.unwrap_or_else(Reply::from)
}

/// The virtual time, which is what most callers want to know next.
fn done(app: &App) -> Reply {
    let now = app.clock.now();
    Reply::json(
        200,
        &json!({ "now": now.timestamp().to_string(), "pacificDate": now.date().to_string() }),
    )
}

fn stats(app: &App) -> Reply {
    let stats = app.stats().clone();
    Reply::json(200, &serde_json::to_value(stats).unwrap_or_default())
}

fn config(app: &App) -> Reply {
    Reply::json(
        200,
        &serde_json::to_value(&*app.config()).unwrap_or_default(),
    )
}

fn object(call: Call<'_>) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(call.body).map_err(|error| ApiError::bad_request(&error.to_string()))
}

fn set_clock(app: &App, call: Call<'_>) -> Result<Reply, ApiError> {
    let now = object(call)?
        .get("now")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<Timestamp>().ok());
    app.clock
        .set(now.ok_or_else(|| ApiError::bad_request("now must be an RFC 3339 time"))?);
    Ok(done(app))
}

fn advance(app: &App, call: Call<'_>) -> Result<Reply, ApiError> {
    let seconds = object(call)?.get("seconds").and_then(Value::as_i64);
    let seconds = seconds.ok_or_else(|| ApiError::bad_request("seconds must be an integer"))?;
    app.clock.advance(SignedDuration::from_secs(seconds));
    Ok(done(app))
}

/// One row object per line, in answer order, at the current virtual time.
async fn truth(app: &Arc<App>, call: Call<'_>) -> Result<Reply, ApiError> {
    let selection = selection(call)?;
    let cap = call.parameter("cap");
    let cap = cap.map(|cap| {
        cap.parse::<usize>()
            .map_err(|_| ApiError::bad_request("cap must be a number"))
    });
    let config = app.config();
    let profile = config
        .sites
        .iter()
        .find(|site| site.url == selection.site)
        .and_then(|site| site.profile);
    let mut options = config.content(profile);
    if let Some(cap) = cap.transpose()? {
        options.row_cap = if cap == 0 { usize::MAX } else { cap };
    }
    let now = app.clock.now();
    let lines =
        tokio::task::spawn_blocking(move || rows_as_lines(&rows(&options, &selection, &now)));
    // The only way to fail is that the runtime is going down, and then nobody reads the answer.
    Ok(Reply::text(200, NDJSON, lines.await.unwrap_or_default()))
}

fn selection(call: Call<'_>) -> Result<Selection, ApiError> {
    let wrong = |name: &str| ApiError::bad_request(&format!("{name} is missing or wrong"));
    let parameter = |name: &str| call.parameter(name).filter(|value| !value.is_empty());
    let dims = parameter("dims").unwrap_or_default();
    let dimensions: Option<Vec<Dimension>> = dims
        .split(',')
        .filter(|word| !word.is_empty())
        .map(Dimension::parse)
        .collect();
    let search_type = SearchType::parse(&parameter("type").unwrap_or_else(|| "web".to_owned()));
    let data_state =
        DataState::parse(&parameter("dataState").unwrap_or_else(|| "final".to_owned()));
    let date = parameter("date").and_then(|date| date.parse().ok());
    Ok(Selection {
        data_state: data_state.ok_or_else(|| wrong("dataState"))?,
        ..Selection::day(
            &parameter("site").ok_or_else(|| wrong("site"))?,
            search_type.ok_or_else(|| wrong("type"))?,
            date.ok_or_else(|| wrong("date"))?,
            &dimensions.ok_or_else(|| wrong("dims"))?,
        )
    })
}
