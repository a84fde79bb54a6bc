//! A tolerant look at a body: what counters, faults and quotas need before anything is checked.

use jiff::civil::Date;
use serde_json::Value;

use super::request::integer;
use crate::generator::{Dimension, SearchType, days_between};

/// What can be made out of a body, however wrong it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sketch {
    pub(crate) search_type: Option<SearchType>,
    pub(crate) days: Option<(Date, Date)>,
    pub(crate) dimensions: Vec<Dimension>,
    pub(crate) start_row: u64,
    pub(crate) filters_page: bool,
    pub(crate) filters_query: bool,
}

impl Sketch {
    pub(crate) fn of(body: &Value) -> Self {
        let date = |name: &str| body[name].as_str().and_then(|text| text.parse().ok());
        let kind = body.get("type").or(body.get("searchType"));
        let dimensions = body["dimensions"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            search_type: kind.map_or(Some(SearchType::Web), |word| {
                word.as_str().and_then(SearchType::parse)
            }),
            days: date("startDate").zip(date("endDate")),
            dimensions: dimensions
                .iter()
                .filter_map(|word| word.as_str().and_then(Dimension::parse))
                .collect(),
            start_row: integer(&body["startRow"])
                .unwrap_or(0)
                .try_into()
                .unwrap_or(0),
            filters_page: mentions(&body["dimensionFilterGroups"], Dimension::Page),
            filters_query: mentions(&body["dimensionFilterGroups"], Dimension::Query),
        }
    }

    /// How many days are asked for, 1 when that cannot be told.
    pub(crate) fn day_count(&self) -> u64 {
        let days = self.days.map_or(0, |(from, to)| days_between(from, to));
        u64::try_from(days).unwrap_or(0) + 1
    }

    /// `type|date|dims|startRow`, the page's name in the statistics.
    pub(crate) fn label(&self) -> String {
        let search_type = self.search_type.map_or("?", SearchType::word);
        let days = match self.days {
            Some((from, to)) if from == to => from.to_string(),
            Some((from, to)) => format!("{from}..{to}"),
            None => "?".to_owned(),
        };
        let dimensions: Vec<&str> = self
            .dimensions
            .iter()
            .map(|dimension| dimension.word())
            .collect();
        format!(
            "{search_type}|{days}|{}|{}",
            dimensions.join(","),
            self.start_row
        )
    }
}

fn mentions(groups: &Value, dimension: Dimension) -> bool {
    let filters = groups
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group["filters"].as_array())
        .flatten();
    filters
        .filter_map(|filter| filter["dimension"].as_str())
        .any(|word| Dimension::parse(word) == Some(dimension))
}
