//! Which combinations the API refuses. The texts that were captured are letter by letter.

use crate::api::error::ApiError;
use crate::generator::{Aggregation, DataState, Dimension, SearchType, Selection};

const APPEARANCE_ALONE: &str =
    "Cannot group by search appearance dimension together with another dimension.";
const DISCOVER_DEVICE: &str = "Requests for Discover cannot be grouped by device";

/// Refuses what the API refuses, with its status 400.
pub(super) fn check(selection: &Selection) -> Result<(), ApiError> {
    let dimensions = &selection.dimensions;
    let grouped = |dimension| dimensions.contains(&dimension);
    let distinct = dimensions
        .iter()
        .enumerate()
        .all(|(index, d)| !dimensions[..index].contains(d));
    if !distinct {
        return Err(ApiError::bad_request(
            "Duplicate dimensions are not allowed.",
        ));
    }
    if grouped(Dimension::SearchAppearance) && dimensions.len() > 1 {
        return Err(ApiError::bad_request(APPEARANCE_ALONE));
    }
    if selection.search_type == SearchType::Discover && grouped(Dimension::Device) {
        return Err(ApiError::bad_request(DISCOVER_DEVICE));
    }
    check_type(selection)?;
    if selection.aggregation == Some(Aggregation::ByProperty) && selection.touches(Dimension::Page)
    {
        return Err(ApiError::bad_request(
            "Cannot group or filter by page when aggregating by property.",
        ));
    }
    if grouped(Dimension::Hour) && selection.data_state != DataState::HourlyAll {
        return Err(ApiError::bad_request(
            "The hour dimension requires dataState hourly_all.",
        ));
    }
    Ok(())
}

/// Discover and Google News know fewer dimensions, and no queries at all.
fn check_type(selection: &Selection) -> Result<(), ApiError> {
    let legal: &[Dimension] = match selection.search_type {
        SearchType::Discover => &[
            Dimension::Page,
            Dimension::Country,
            Dimension::Date,
            Dimension::SearchAppearance,
        ],
        SearchType::GoogleNews => &[
            Dimension::Page,
            Dimension::Country,
            Dimension::Device,
            Dimension::Date,
        ],
        _ => return Ok(()),
    };
    let illegal = selection
        .dimensions
        .iter()
        .find(|dimension| !legal.contains(dimension))
        .copied();
    let filtered = selection
        .touches(Dimension::Query)
        .then_some(Dimension::Query);
    illegal.or(filtered).map_or(Ok(()), |dimension| {
        let message = format!(
            "Dimension {dimension} is not supported for type {}.",
            selection.search_type
        );
        Err(ApiError::bad_request(&message))
    })
}
