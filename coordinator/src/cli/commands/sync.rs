//! `tidegate sync search-console`: one `gsc.plan` batch a property.

use coordinator::run::Priority;
use shared::name::PipelineName;
use shared::search_console::{Days, PLAN_PIPELINE, Sync};

use super::Session;
use super::submit::{repeatable, submission};
use crate::args::SearchConsole;
use crate::failure::Failure;

/// All days that Google keeps, which is 16 months.
const DEFAULT_DAYS: u32 = 480;

pub(super) async fn search_console(session: &Session, args: SearchConsole) -> Result<u8, Failure> {
    let (batches, watch) = (lines(&args)?, args.run.watch);
    let pipeline = PipelineName::new(PLAN_PIPELINE).expect("a built-in name is well-formed");
    let submission = submission(pipeline, Priority::default(), args.run);
    let answer = session.client.submit(&submission, batches.into()).await;
    let run = answer.map_err(|error| repeatable(error, &submission.idempotency_key))?;
    session.accepted(run, watch).await
}

fn lines(args: &SearchConsole) -> Result<String, Failure> {
    let sync = Sync {
        days: days(args)?,
        properties: args.properties.clone(),
        types: args.types.clone(),
        dimensions: args.dimensions.clone(),
        refetch: args.refetch,
    };
    sync.lines()
        .map_err(|error| Failure::usage(error.to_string()))
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{self, Cli, Command};

    fn submitted(typed: &str) -> Result<String, Failure> {
        let line = format!("tidegate sync search-console {typed}");
        let cli =
            Cli::try_parse_from(line.split(' ')).map_err(|e| Failure::usage(e.to_string()))?;
        let Command::Sync(args::Sync::SearchConsole(args)) = cli.command else {
            panic!("another command")
        };
        lines(&args)
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
