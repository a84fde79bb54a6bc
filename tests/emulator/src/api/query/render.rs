//! From rows to the JSON text of a page.

use std::fmt::Write as _;

use crate::api::json::Mask;
use crate::generator::{Row, RowSet};

/// Which members of rows and answer are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "members of an answer, each wanted or not"
)]
pub(super) struct Shape {
    rows: bool,
    keys: bool,
    clicks: bool,
    impressions: bool,
    ctr: bool,
    position: bool,
    aggregation: bool,
    metadata: bool,
}

impl Shape {
    pub(super) fn new(mask: &Mask) -> Self {
        let row = mask.member("rows");
        let wants = |name| row.as_ref().is_some_and(|row| row.member(name).is_some());
        Self {
            rows: row.is_some(),
            keys: wants("keys"),
            clicks: wants("clicks"),
            impressions: wants("impressions"),
            ctr: wants("ctr"),
            position: wants("position"),
            aggregation: mask.member("responseAggregationType").is_some(),
            metadata: mask.member("metadata").is_some(),
        }
    }
}

/// Every row as the API writes it, one per line.
pub(crate) fn rows_as_lines(set: &RowSet) -> String {
    let mut out = String::with_capacity(BYTES_PER_ROW * set.len());
    for one in set.rows() {
        row(&mut out, set, one, Shape::new(&Mask::default()));
        out.push('\n');
    }
    out
}

/// An estimate that saves the growing of the text.
const BYTES_PER_ROW: usize = 160;

/// The answer with the rows at `places`, and `metadata` (name and value) if there is any.
pub(super) fn page(
    set: &RowSet,
    places: &[usize],
    shape: Shape,
    metadata: Option<&(String, String)>,
) -> String {
    let mut out = String::with_capacity(BYTES_PER_ROW * (places.len() + 1));
    out.push('{');
    // `rows` is left out, not empty, when there are none.
    if shape.rows && !places.is_empty() {
        out.push_str("\"rows\":[");
        for place in places {
            row(&mut out, set, &set.rows()[*place], shape);
            out.push(',');
        }
        out.pop();
        out.push_str("],");
    }
    if shape.aggregation {
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "\"responseAggregationType\":\"{}\",",
            set.aggregation()
        );
    }
    if let Some((name, value)) = metadata.filter(|_| shape.metadata) {
        let _ = write!(out, "\"metadata\":{{\"{name}\":\"{value}\"}},");
    }
    if out.ends_with(',') {
        out.pop();
    }
    out.push('}');
    out
}

fn row(out: &mut String, set: &RowSet, row: &Row, shape: Shape) {
    out.push('{');
    if shape.keys && set.layout().key_count() > 0 {
        out.push_str("\"keys\":[");
        for index in 0..set.layout().key_count() {
            out.push('"');
            set.layout().write_key(row.key, index, out);
            out.push_str("\",");
        }
        out.pop();
        out.push_str("],");
    }
    let _ = if shape.clicks {
        write!(out, "\"clicks\":{},", row.clicks)
    } else {
        Ok(())
    };
    let _ = if shape.impressions {
        write!(out, "\"impressions\":{},", row.impressions)
    } else {
        Ok(())
    };
    let _ = if shape.ctr {
        write!(out, "\"ctr\":{},", row.ctr())
    } else {
        Ok(())
    };
    if shape.position && set.has_position() {
        let _ = write!(out, "\"position\":{},", row.position());
    }
    if out.ends_with(',') {
        out.pop();
    }
    out.push('}');
}
