//! What can be typed. Values are checked here, so that a wrong one is named together with its flag.
#![expect(
    clippy::doc_markdown,
    reason = "clap prints these comments as help, where backticks only disturb"
)]

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};
use coordinator::operations::MAX_RATE;
use coordinator::run::{Priority, RunState};
use coordinator::submission::{SubmissionError, check_idempotency_key};
use jiff::civil::Date;
use shared::config::Span;
use shared::id::{BatchId, RunId};
use shared::name::{Key, PipelineName};
use shared::search_console::{DimensionSet, MAX_DAYS, SearchType, normalize_property};
use url::Url;

/// Most items in a batch: beyond it a retry repeats too much work.
const MAX_BATCH_SIZE: u32 = 100_000;
/// Most entries that one list command shows.
const MAX_LIMIT: u32 = 1_000;

const EXIT_CODES: &str = "\
Exit codes:
    0  done; with --watch: the run completed and nothing of it is dead
    1  with --watch: the run ended with dead or cancelled batches; doctor: something does not work
    2  the command line is wrong
   65  the input is wrong, or the coordinator refused it (nothing was changed)
   69  the coordinator cannot be reached, or takes nothing now
   78  the token or its file is wrong, or the coordinator's certificate is not trusted
  130  left with Ctrl-C while watching (the run goes on)

Environment: TIDEGATE_URL, TIDEGATE_TOKEN, TIDEGATE_CA_FILE, TIDEGATE_LOG (filter of the debug log, such as debug).";

const SUBMIT_NOTES: &str = "\
FILE is NDJSON: one item, any JSON value, a line. Empty lines, CRLF and a byte order mark are fine.
Everything is checked before anything is submitted: one bad line refuses the whole file.
A batch's payload is always a JSON array of items, also with --batch-size 1. A batch is closed early
when the next item would take its payload over 1 MiB, or when very many keys wait at a time.";

/// Batch work over RabbitMQ: submit runs, watch and steer them, see what is dead and who works.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where the coordinator's API is.
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_URL",
        default_value = "http://127.0.0.1:8420",
        value_parser = api_url
    )]
    pub(crate) url: Url,
    /// File with the API token; otherwise TIDEGATE_TOKEN holds it.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file with the CAs that are trusted with https://, and no others. Default: those of this machine.
    #[arg(long, global = true, env = "TIDEGATE_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Print one JSON document to stdout (lists: one a line) instead of a table.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep a service's data in the sink.
    #[command(subcommand, arg_required_else_help = true)]
    Sync(Sync),
    /// Submit a file of items as a run.
    #[command(after_help = SUBMIT_NOTES)]
    Submit(Submit),
    /// Look at runs; cancel, pause, resume, prioritize them.
    #[command(subcommand, arg_required_else_help = true)]
    Run(RunCommand),
    /// Look at one batch.
    #[command(subcommand, arg_required_else_help = true)]
    Batch(BatchCommand),
    /// Look at batches that were given up; redrive or discard them.
    #[command(subcommand, arg_required_else_help = true)]
    Dead(DeadCommand),
    /// Look at the live workers.
    #[command(subcommand, arg_required_else_help = true)]
    Worker(WorkerCommand),
    /// Look at pipelines; pause and resume them.
    #[command(subcommand, arg_required_else_help = true)]
    Pipeline(PipelineCommand),
    /// Look at the schedules.
    #[command(subcommand, arg_required_else_help = true)]
    Schedule(ScheduleCommand),
    /// Look at how fast services may be called.
    #[command(subcommand, arg_required_else_help = true)]
    Limit(LimitCommand),
    /// Have the coordinator look at broker, ledger and workers, and say what is wrong.
    Doctor,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sync {
    /// Fetch Google Search Console's Search Analytics.
    SearchConsole(SearchConsole),
}

#[derive(Debug, Args)]
pub(crate) struct SearchConsole {
    /// A property as Search Console spells it: sc-domain:example.com or https://example.com/. Repeatable.
    #[arg(long = "property", value_name = "PROPERTY", required = true, value_parser = normalize_property)]
    pub(crate) properties: Vec<String>,
    /// First day, in Pacific time, YYYY-MM-DD.
    #[arg(long, value_name = "DATE", requires = "to", value_parser = date)]
    pub(crate) from: Option<Date>,
    /// Last day, included.
    #[arg(long, value_name = "DATE", requires = "from", value_parser = date)]
    pub(crate) to: Option<Date>,
    /// The last N days that are final [default: 480, all that Google keeps].
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["from", "to"],
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS))
    )]
    pub(crate) days: Option<u32>,
    /// Search types, comma-separated: web, image, video, news, discover, googleNews
    /// [default: the worker's config].
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub(crate) types: Vec<SearchType>,
    /// One dimension set, comma-separated: date, or some of page, query, country, device. Repeatable
    /// [default: the worker's config].
    #[arg(long, value_name = "SET")]
    pub(crate) dimensions: Vec<DimensionSet>,
    /// Fetch days again that are stored as final.
    #[arg(long)]
    pub(crate) refetch: bool,
    #[command(flatten)]
    pub(crate) run: NewRun,
}

/// What every new run takes.
#[derive(Debug, Args)]
pub(crate) struct NewRun {
    /// The same key gives the same run: makes it safe to repeat a submission.
    #[arg(long, value_name = "KEY", value_parser = idempotency_key)]
    pub(crate) idempotency_key: Option<String>,
    /// Whom to tell when the run has ended: an address that the coordinator's webhooks.allow names.
    #[arg(long, value_name = "URL")]
    pub(crate) webhook: Option<String>,
    /// Stay until the run has ended.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// Which pipeline does the work.
    #[arg(value_parser = PipelineName::new)]
    pub(crate) pipeline: PipelineName,
    /// NDJSON items, `-` is stdin.
    pub(crate) file: PathBuf,
    /// Field of the items that says whose work they are: text or a whole number [default: one key for all].
    #[arg(long, value_name = "FIELD")]
    pub(crate) key_field: Option<String>,
    /// Most items in a batch.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BATCH_SIZE))
    )]
    pub(crate) batch_size: u32,
    /// Which of a key's runs goes first.
    #[arg(long, default_value = "normal", value_parser = words::<Priority>(&["low", "normal", "high"]))]
    pub(crate) priority: Priority,
    #[command(flatten)]
    pub(crate) run: NewRun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// Show the newest runs.
    List {
        /// Only runs in this state.
        #[arg(long, value_parser = words::<RunState>(&["running", "paused", "completed", "cancelled"]))]
        state: Option<RunState>,
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = limit())]
        limit: u32,
    },
    /// Show one run.
    Show {
        /// Its id.
        id: RunId,
    },
    /// Stay until a run has ended.
    Watch {
        /// Its id.
        id: RunId,
    },
    /// Call a run off: nothing more of it goes out, its pending batches are cancelled.
    Cancel {
        /// Its id.
        id: RunId,
    },
    /// Let nothing more of a run go out until it is resumed.
    Pause {
        /// Its id.
        id: RunId,
    },
    /// Let a paused run go on.
    Resume {
        /// Its id.
        id: RunId,
    },
    /// Change which of a key's runs goes first.
    Prioritize {
        /// Its id.
        id: RunId,
        /// low, normal or high.
        #[arg(value_parser = words::<Priority>(&["low", "normal", "high"]))]
        priority: Priority,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// Show everything about a batch: payload, attempts, who worked on it.
    Show {
        /// Its id.
        id: BatchId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Show dead batches and why.
    List {
        #[command(flatten)]
        which: Which,
        /// How many.
        #[arg(long, default_value_t = 100, value_parser = limit())]
        limit: u32,
    },
    /// Show everything about a batch: payload, attempts, who worked on it.
    Show {
        /// Its id.
        id: BatchId,
    },
    /// Make dead batches pending again. They start over with all attempts.
    Redrive {
        #[command(flatten)]
        chosen: Chosen,
        /// How many become due a second [default: all at once].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
        rate: Option<u32>,
    },
    /// Call dead batches off for good.
    Discard {
        #[command(flatten)]
        chosen: Chosen,
    },
}

/// Which dead batches. Several filters narrow each other down.
#[derive(Debug, Default, Args)]
pub(crate) struct Which {
    /// Only those of this run.
    #[arg(long, value_name = "ID")]
    pub(crate) run: Option<RunId>,
    /// Only those of this pipeline.
    #[arg(long, value_parser = PipelineName::new)]
    pub(crate) pipeline: Option<PipelineName>,
    /// Only those of this key.
    #[arg(long, value_parser = Key::new)]
    pub(crate) key: Option<Key>,
    /// Only those with this reason, such as attempts_exhausted or poison.
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Only this one.
    #[arg(long, value_name = "ID")]
    pub(crate) batch: Option<BatchId>,
    /// Only those that are dead for longer than this, such as 2h.
    #[arg(long, value_name = "SPAN", value_parser = |text: &str| Span::try_from(text.to_owned()))]
    pub(crate) older_than: Option<Span>,
}

/// Which dead batches are changed: never all of them by mistake.
#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("chosen")
        .required(true)
        .multiple(true)
        .args(["run", "pipeline", "key", "reason", "batch", "older_than", "all"])
))]
pub(crate) struct Chosen {
    #[command(flatten)]
    pub(crate) which: Which,
    /// All of them.
    #[arg(long, conflicts_with_all = ["run", "pipeline", "key", "reason", "batch", "older_than"])]
    pub(crate) all: bool,
    /// Only say how many there are.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// Show the live workers.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PipelineCommand {
    /// Show the pipelines: what waits, what is out, who serves them.
    List,
    /// Let nothing of a pipeline go out until it is resumed.
    Pause {
        /// Its name.
        #[arg(value_parser = PipelineName::new)]
        pipeline: PipelineName,
    },
    /// Let a paused pipeline go on.
    Resume {
        /// Its name.
        #[arg(value_parser = PipelineName::new)]
        pipeline: PipelineName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// Show the schedules: when each fires next, what came of it last.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// Show the limits: how fast each key's calls may go now, who waits, what is held back.
    List,
}

fn limit() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_LIMIT))
}

/// Accepts exactly these words. clap lists them when another one is typed.
fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err: std::fmt::Debug> + Clone + Send + std::marker::Sync + 'static,
{
    PossibleValuesParser::new(words)
        .map(|word| word.parse().expect("every listed word stands for a value"))
}

fn date(text: &str) -> Result<Date, String> {
    // Dates parse from many forms; only this one is promised.
    let date: Result<Date, _> = text.parse();
    date.ok()
        .filter(|date| date.to_string() == text)
        .ok_or_else(|| "is no day of the calendar: write YYYY-MM-DD, such as 2026-01-31".to_owned())
}

fn api_url(text: &str) -> Result<Url, String> {
    let hint = "write http://host:port or https://host";
    let url = Url::parse(text).map_err(|e| format!("is no URL ({e}): {hint}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("has the scheme {:?}: {hint}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "holds a user or password: put the token into TIDEGATE_TOKEN instead".to_owned(),
        );
    }
    Ok(url)
}

fn idempotency_key(text: &str) -> Result<String, SubmissionError> {
    check_idempotency_key(text)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dates_have_one_form() {
        assert!(date("2026-01-31").is_ok());
        for bad in [
            "2026-02-30",
            "20260131",
            "2026-1-31",
            "2026-01-31T00:00",
            "yesterday",
            "",
        ] {
            assert!(date(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_carry_no_secrets() {
        assert!(api_url("https://tidegate.example/prefix").is_ok());
        for bad in [
            "127.0.0.1:8420",
            "ftp://x",
            "http://user:pw@host",
            "http://",
        ] {
            assert!(api_url(bad).is_err(), "{bad}");
        }
    }
}
