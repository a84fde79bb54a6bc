//! `tidegate sync search-console`: one `gsc.plan` batch a property.

use shared::name::{Key, PipelineName};
use shared::search_console::{Days, PLAN_PIPELINE, PlanPayload, SearchType};
use uuid::Uuid;

use super::Session;
use crate::args::SearchConsole;
use crate::failure::Failure;
use crate::requests::Submission;

/// All days that Google keeps, which is 16 months.
const DEFAULT_DAYS: u32 = 480;

pub(super) async fn search_console(session: &Session, args: SearchConsole) -> Result<u8, Failure> {
    let plans = plans(&args)?;
    let submission = Submission {
        pipeline: PipelineName::new(PLAN_PIPELINE).expect("a built-in name is well-formed"),
        priority: coordinator::run::Priority::default(),
        idempotency_key: Uuid::now_v7().to_string(),
    };
    let batches = lines(plans)?;
    let run = session.client.submit(&submission, batches.into()).await?;
    session.accepted(run, args.watch).await
}

/// What to do for each property. A property that is named twice is synced once.
fn plans(args: &SearchConsole) -> Result<Vec<PlanPayload>, Failure> {
    let days = days(args)?;
    let types = once(&args.types);
    let dimensions = once(&args.dimensions);
    let legal =
        |search_type: &SearchType| dimensions.iter().any(|set| set.is_legal_for(*search_type));
    if !types.is_empty() && !dimensions.is_empty() && !types.iter().any(legal) {
        return Err(Failure::usage(
            "nothing to fetch: Google answers none of --dimensions for any of --types \
             (discover knows no query and no device, googleNews no query)",
        ));
    }
    let plan = |property| PlanPayload {
        property,
        days,
        types: types.clone(),
        dimensions: dimensions.clone(),
        refetch: args.refetch,
    };
    Ok(once(&args.properties).into_iter().map(plan).collect())
}

fn days(args: &SearchConsole) -> Result<Days, Failure> {
    match (args.from, args.to) {
        (Some(from), Some(to)) if from > to => Err(Failure::usage(format!(
            "--from {from} is after --to {to}: swap them"
        ))),
        (Some(from), Some(to)) => Ok(Days::Between { from, to }),
        _ => Ok(Days::Last(args.days.unwrap_or(DEFAULT_DAYS))),
    }
}

/// The submission: a line a property, whose name is the key.
fn lines(plans: Vec<PlanPayload>) -> Result<Vec<u8>, Failure> {
    #[derive(serde::Serialize)]
    struct Line {
        key: Key,
        payload: PlanPayload,
    }
    let mut lines = Vec::new();
    for payload in plans {
        let key = Key::new(&payload.property).map_err(|problem| {
            Failure::usage(format!("--property {}: {problem}", payload.property))
        })?;
        serde_json::to_writer(&mut lines, &Line { key, payload }).expect("a plan serialises");
        lines.push(b'\n');
    }
    Ok(lines)
}

/// The values without repetitions, in their order.
fn once<T: Clone + PartialEq>(values: &[T]) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(value) {
            kept.push(value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, Sync};

    fn submitted(typed: &str) -> Result<String, Failure> {
        let line = format!("tidegate sync search-console {typed}");
        let cli =
            Cli::try_parse_from(line.split(' ')).map_err(|e| Failure::usage(e.to_string()))?;
        let Command::Sync(Sync::SearchConsole(args)) = cli.command else {
            panic!("another command")
        };
        let lines = lines(plans(&args)?)?;
        Ok(String::from_utf8(lines).unwrap())
    }

    #[test]
    fn a_property_is_a_batch() {
        let lines = submitted(
            "--property sc-domain:b.example --property https://A.example --property https://a.example/",
        );
        let expected = [
            r#"{"key":"sc-domain:b.example","payload":{"property":"sc-domain:b.example","days":{"last":480}}}"#,
            r#"{"key":"https://a.example/","payload":{"property":"https://a.example/","days":{"last":480}}}"#,
            "",
        ];
        assert_eq!(lines.unwrap(), expected.join("\n"));
    }

    #[test]
    fn what_is_typed_is_what_is_planned() {
        let line = submitted(
            "--property sc-domain:b.example --from 2026-01-01 --to 2026-01-31 --types web,image,web \
             --dimensions date --dimensions page,query --refetch",
        );
        let expected = r#""days":{"between":{"from":"2026-01-01","to":"2026-01-31"}},"types":["web","image"],"dimensions":["date","page,query"],"refetch":true}"#;
        assert!(line.as_ref().unwrap().contains(expected), "{line:?}");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            ("", "--property"),
            ("--property b.example", "sc-domain:b.example"),
            ("--property sc-domain:b.example --days 0", "--days"),
            ("--property sc-domain:b.example --days 99999", "3660"),
            (
                "--property sc-domain:b.example --days 3 --from 2026-01-01 --to 2026-01-02",
                "--from",
            ),
            ("--property sc-domain:b.example --from 2026-01-01", "--to"),
            (
                "--property sc-domain:b.example --from 2026-02-30 --to 2026-03-01",
                "2026-02-30",
            ),
            (
                "--property sc-domain:b.example --from 2026-02-03 --to 2026-02-01",
                "--from 2026-02-03 is after --to",
            ),
            ("--property sc-domain:b.example --types wob", "--types"),
            ("--property sc-domain:b.example --types web,", "--types"),
            (
                "--property sc-domain:b.example --dimensions page,page",
                "named twice",
            ),
            (
                "--property sc-domain:b.example --dimensions pages",
                "--dimensions",
            ),
            (
                "--property sc-domain:b.example --types discover --dimensions query",
                "nothing to fetch",
            ),
        ];
        for (typed, expected) in cases {
            let failure = submitted(typed).expect_err(typed);
            assert_eq!(failure.exit, shared::exit::USAGE);
            assert!(failure.message.contains(expected), "{typed}: {failure}");
        }
    }
}
