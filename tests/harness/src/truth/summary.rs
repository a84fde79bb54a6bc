//! What a sink says about each property, as a table for people.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::Sink;

/// What a sink says about one property.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Property {
    /// The property.
    pub property: String,
    /// `active`, or why nothing comes.
    pub state: String,
    /// Slices that are recorded.
    pub slices: u64,
    /// Rows in all its slices.
    pub rows: u64,
    /// Clicks by day and search type, which no other grouping repeats.
    pub clicks: u64,
    /// Calls that its slices say they took.
    pub api_calls: u64,
    /// Pages that were asked for again, as the emulator counted; Google does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
}

/// One line for each of these properties. `statistics` are the emulator's, where there is one.
pub async fn by_property(
    sink: &Sink,
    properties: &[String],
    statistics: Option<&Value>,
) -> Result<Vec<Property>> {
    let records = sink.slices().await?;
    let states = sink.properties().await?;
    let retries = statistics.map(retries_by_site);
    let mut lines = Vec::new();
    for property in properties {
        let mut line = Property {
            property: property.clone(),
            ..Property::default()
        };
        line.state = states
            .get(property)
            .map(|record| record.state.clone())
            .unwrap_or_default();
        line.retries = retries
            .as_ref()
            .map(|all| all.get(property).copied().unwrap_or_default());
        for (slice, record) in records
            .iter()
            .filter(|(slice, _)| slice.property == *property)
        {
            line.slices += 1;
            line.rows += record.rows;
            line.api_calls += record.api_calls;
            if slice.dimensions.to_string() == "date" {
                line.clicks += record.clicks;
            }
        }
        lines.push(line);
    }
    Ok(lines)
}

/// `fetches` counts how often each page was asked for: `site|type|date|dims|startRow`.
fn retries_by_site(statistics: &Value) -> BTreeMap<String, u64> {
    let mut retries = BTreeMap::new();
    for (page, count) in statistics["fetches"].as_object().into_iter().flatten() {
        let site = page.split('|').next().unwrap_or_default();
        let again = count.as_u64().unwrap_or_default().saturating_sub(1);
        *retries.entry(site.to_owned()).or_default() += again;
    }
    retries
}

/// The same for people.
#[must_use]
pub fn table(properties: &[Property]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "property",
        "state",
        "slices",
        "rows",
        "clicks",
        "API calls",
        "retries",
    ]);
    for line in properties {
        let counts = [line.slices, line.rows, line.clicks, line.api_calls].map(|n| n.to_string());
        let retries = line.retries.map_or("–".to_owned(), |n| n.to_string());
        let words = [line.property.clone(), line.state.clone()];
        table.add_row(words.into_iter().chain(counts).chain([retries]));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.to_string()
}
