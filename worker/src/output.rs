//! How a handler in Rust says what it produced: rows and follow-ups from anything that serializes.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::name::{Key, PipelineName};
use shared::outcome::FollowUp;
use shared::payload::check_json;

use crate::collect::BAD_OUTPUT;
use crate::handler::{HandlerError, Output, Rows};
use crate::json_rows::JsonRows;

impl Output {
    /// One row of each item, as JSON. What cannot be stored fails the batch (`bad_output`): a map with keys that
    /// are no text, a NUL character, more than 100 levels. Floats that are no number become `null`.
    pub fn rows<T: Serialize>(items: impl IntoIterator<Item = T>) -> Result<Self, HandlerError> {
        let mut rows = JsonRows::default();
        for (index, item) in items.into_iter().enumerate() {
            serde_json::to_string(&item)
                .map_err(not_json)
                .and_then(|row| rows.push(&row).map_err(|error| error.to_string()))
                .map_err(|problem| {
                    HandlerError::fail(BAD_OUTPUT, format!("row {index} {problem}"))
                })?;
        }
        Ok(Self {
            rows: Rows::Json(rows.complete()),
            ..Self::default()
        })
    }

    /// The same and a batch to run next, in the same run: of which pipeline, whose work, and what to work on. It
    /// exists once this batch is completed, and exactly once.
    pub fn follow_up(
        mut self,
        pipeline: &str,
        key: &Key,
        payload: &impl Serialize,
    ) -> Result<Self, HandlerError> {
        let refused = |problem: String| {
            HandlerError::fail(
                BAD_OUTPUT,
                format!("a follow-up of {pipeline:?}: {problem}"),
            )
        };
        self.follow_ups.push(FollowUp {
            pipeline: PipelineName::new(pipeline).map_err(|error| refused(error.to_string()))?,
            key: key.clone(),
            payload: json(payload).map_err(refused)?,
        });
        Ok(self)
    }

    /// The same, to be written with the rows of batches that name the same batch key.
    #[must_use]
    pub fn batch_key(mut self, key: Key) -> Self {
        self.batch_key = Some(key);
        self
    }

    /// The same with so many more of something that is counted over the run.
    #[must_use]
    pub fn count(mut self, name: &str, many: u64) -> Self {
        let sum = self.statistics.entry(name.to_owned()).or_default();
        *sum = sum.saturating_add(many);
        self
    }
}

fn json(value: &impl Serialize) -> Result<Box<RawValue>, String> {
    let json = to_raw_value(value).map_err(not_json)?;
    check_json(json.get()).map_err(|error| error.to_string())?;
    Ok(json)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_json(error: serde_json::Error) -> String {
    format!("is no JSON: {error}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn texts(output: &Output) -> Vec<&str> {
        match &output.rows {
            Rows::Json(rows) => rows.iter().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        share: f64,
    }

    #[test]
    fn whatever_serializes_is_a_row() {
        let rows = [0.5, f64::NAN].map(|share| Row { name: "ä", share });
        let output = Output::rows(rows).unwrap();
        assert_eq!(
            texts(&output),
            [
                r#"{"name":"ä","share":0.5}"#,
                r#"{"name":"ä","share":null}"#
            ]
        );
        assert!(texts(&Output::rows(Vec::<u8>::new()).unwrap()).is_empty());
    }

    #[test]
    fn what_cannot_be_stored_fails_with_its_place() {
        let problem = |result: Result<Output, HandlerError>| match result {
            Err(HandlerError::Fail { reason, error }) => {
                assert_eq!(reason, "bad_output");
                error
            }
            other => panic!("{other:?}"),
        };
        let nul = problem(Output::rows(["fine", "a\0b"]));
        assert!(nul.starts_with("row 1 contains a NUL"), "{nul}");
        let keys = problem(Output::rows([BTreeMap::from([((1, 2), 3)])]));
        assert!(keys.starts_with("row 0 is no JSON: key must be"), "{keys}");
        let key = Key::default();
        let name = problem(Output::default().follow_up("No Name", &key, &1));
        assert!(name.contains("\"No Name\" is not usable"), "{name}");
        let payload = problem(Output::default().follow_up("next", &key, &"\0"));
        assert!(payload.contains("NUL"), "{payload}");
    }

    #[test]
    fn follow_ups_and_counts_add_up() {
        let key = Key::new("tenant").unwrap();
        let output = Output::rows([1, 2])
            .and_then(|output| output.follow_up("next", &key, &["a"]))
            .and_then(|output| output.follow_up("next", &key, &["b"]))
            .unwrap()
            .batch_key(key.clone())
            .count("calls", 2)
            .count("calls", 3);
        let payloads: Vec<&str> = output.follow_ups.iter().map(|f| f.payload.get()).collect();
        assert_eq!(payloads, [r#"["a"]"#, r#"["b"]"#]);
        assert_eq!(output.statistics["calls"], 5);
        assert_eq!(output.batch_key, Some(key));
    }
}
