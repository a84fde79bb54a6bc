//! The body of a query, with the checks of the API.

use jiff::civil::Date;
use serde_json::{Map, Value};

use super::rules;
use crate::api::MAX_ROW_LIMIT;
use crate::api::error::ApiError;
use crate::generator::{Aggregation, DataState, Dimension, Filter, SearchType, Selection};

/// Rows in a page when the request does not say.
const DEFAULT_ROW_LIMIT: u64 = 1_000;
const KNOWN_FIELDS: [&str; 10] = [
    "startDate",
    "endDate",
    "dimensions",
    "type",
    "searchType",
    "dimensionFilterGroups",
    "aggregationType",
    "rowLimit",
    "startRow",
    "dataState",
];

/// A request that passed all checks.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) selection: Selection,
    pub(crate) start_row: usize,
    pub(crate) row_limit: usize,
}

impl Request {
    pub(crate) fn read(site: &str, body: &Value) -> Result<Self, ApiError> {
        let Some(fields) = body.as_object() else {
            return Err(ApiError::bad_request("Invalid JSON payload received."));
        };
        if let Some(unknown) = fields
            .keys()
            .find(|name| !KNOWN_FIELDS.contains(&name.as_str()))
        {
            let message = format!(
                "Invalid JSON payload received. Unknown name \"{unknown}\": Cannot find field."
            );
            return Err(ApiError::bad_request(&message));
        }
        let (start, end) = (date(fields, "startDate")?, date(fields, "endDate")?);
        if start > end {
            return Err(ApiError::invalid_parameter(
                "The start date must not be after the end date.",
            ));
        }
        let type_name = if fields.contains_key("type") {
            "type"
        } else {
            "searchType"
        };
        let selection = Selection {
            site: site.to_owned(),
            search_type: word(fields, type_name, SearchType::parse)?.unwrap_or(SearchType::Web),
            start,
            end,
            dimensions: dimensions(fields)?,
            filters: filters(fields)?,
            aggregation: aggregation(fields)?,
            data_state: word(fields, "dataState", DataState::parse)?.unwrap_or(DataState::Final),
        };
        rules::check(&selection)?;
        let row_limit = number(fields, "rowLimit", DEFAULT_ROW_LIMIT, 1..=MAX_ROW_LIMIT)?;
        let start_row = number(fields, "startRow", 0, 0..=u64::from(u32::MAX))?;
        Ok(Self {
            selection,
            start_row,
            row_limit,
        })
    }
}

/// JSON numbers, and the text form that Google's parsers take too.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    }
}

fn number(
    fields: &Map<String, Value>,
    name: &str,
    default: u64,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<usize, ApiError> {
    let given = match fields.get(name) {
        None | Some(Value::Null) => Some(default),
        Some(value) => integer(value).and_then(|number| u64::try_from(number).ok()),
    };
    let fitting = given
        .filter(|number| allowed.contains(number))
        .and_then(|number| usize::try_from(number).ok());
    fitting.ok_or_else(|| {
        let (low, high) = (allowed.start(), allowed.end());
        ApiError::invalid_parameter(&format!(
            "Invalid value for {name}: it must be between {low} and {high}."
        ))
    })
}

fn invalid(name: &str, value: &Value) -> ApiError {
    ApiError::bad_request(&format!("Invalid value at '{name}': {value}"))
}

fn date(fields: &Map<String, Value>, name: &str) -> Result<Date, ApiError> {
    let Some(value) = fields.get(name) else {
        return Err(ApiError::invalid_parameter(&format!(
            "Required parameter is missing: {name}"
        )));
    };
    // Jiff reads more than the API does: only `YYYY-MM-DD` is a date here.
    let text = value
        .as_str()
        .filter(|text| text.len() == "YYYY-MM-DD".len());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(name, value))
}

fn word<T>(
    fields: &Map<String, Value>,
    name: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_str()
            .and_then(parse)
            .map(Some)
            .ok_or_else(|| invalid(name, value)),
    }
}

fn aggregation(fields: &Map<String, Value>) -> Result<Option<Aggregation>, ApiError> {
    let is_auto = fields
        .get("aggregationType")
        .and_then(Value::as_str)
        .is_some_and(|t| t.eq_ignore_ascii_case("auto"));
    if is_auto {
        Ok(None)
    } else {
        word(fields, "aggregationType", Aggregation::parse)
    }
}

fn dimensions(fields: &Map<String, Value>) -> Result<Vec<Dimension>, ApiError> {
    let name = "dimensions";
    match fields.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(words)) => words
            .iter()
            .map(|value| {
                value
                    .as_str()
                    .and_then(Dimension::parse)
                    .ok_or_else(|| invalid(name, value))
            })
            .collect(),
        Some(value) => Err(invalid(name, value)),
    }
}

fn filters(fields: &Map<String, Value>) -> Result<Vec<Filter>, ApiError> {
    let name = "dimensionFilterGroups";
    let groups = match fields.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(groups)) => groups,
        Some(value) => return Err(invalid(name, value)),
    };
    let mut filters = Vec::new();
    for group in groups {
        if group
            .get("groupType")
            .and_then(Value::as_str)
            .is_some_and(|kind| !kind.eq_ignore_ascii_case("and"))
        {
            return Err(invalid(
                "dimensionFilterGroups.groupType",
                &group["groupType"],
            ));
        }
        for filter in group["filters"].as_array().into_iter().flatten() {
            filters.push(
                read_filter(filter)
                    .ok_or_else(|| invalid("dimensionFilterGroups.filters", filter))?,
            );
        }
    }
    Ok(filters)
}

fn read_filter(filter: &Value) -> Option<Filter> {
    let dimension = filter["dimension"].as_str().and_then(Dimension::parse)?;
    if matches!(dimension, Dimension::Date | Dimension::Hour) {
        return None;
    }
    let operator = filter
        .get("operator")
        .map_or(Some("equals"), Value::as_str)?;
    Filter::parse(dimension, operator, filter["expression"].as_str()?)
}
