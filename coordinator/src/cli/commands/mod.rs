//! What each verb does. Each asks the coordinator, prints the result, and gives the exit code.

mod submit;
mod sync;

use coordinator::doctor::Finding;
use coordinator::run::Run;
use shared::exit;
use shared::id::{BatchId, RunId};

use crate::args::{
    BatchCommand, Cli, Command, DeadCommand, PipelineCommand, RunCommand, ScheduleCommand, Sync,
    Which, WorkerCommand,
};
use crate::client::Client;
use crate::failure::Failure;
use crate::requests::RunOrder;
use crate::{output, show, watch};

/// Dead batches that are named after a watched run; `tidegate dead list` has all.
const NAMED_DEAD: u32 = 5;

/// Does what was typed, and says with which exit code to end.
pub(crate) async fn execute(cli: Cli) -> Result<u8, Failure> {
    let session = Session {
        client: Client::new(&cli.common)?,
        json: cli.common.json,
    };
    match cli.command {
        Command::Sync(Sync::SearchConsole(args)) => sync::search_console(&session, args).await,
        Command::Submit(args) => submit::submit(&session, args).await,
        Command::Run(command) => run(&session, command).await,
        Command::Batch(BatchCommand::Show { id }) => batch(&session, id).await,
        Command::Dead(command) => dead(&session, command).await,
        Command::Worker(WorkerCommand::List) => workers(&session).await,
        Command::Pipeline(command) => pipeline(&session, command).await,
        Command::Schedule(ScheduleCommand::List) => schedules(&session).await,
        Command::Doctor => doctor(&session).await,
    }
}

async fn run(session: &Session, command: RunCommand) -> Result<u8, Failure> {
    match command {
        RunCommand::List { state, limit } => {
            let runs = session.client.runs(state, limit).await?;
            session.list(&runs, show::runs, "there are no such runs")?;
            Ok(exit::OK)
        }
        RunCommand::Show { id } => {
            let run = session.client.run(id).await?;
            session.show(&run)?;
            Ok(exit::OK)
        }
        RunCommand::Watch { id } => {
            let run = session.client.run(id).await?;
            session.watch(run).await
        }
        RunCommand::Cancel { id } => order(session, id, RunOrder::Cancel).await,
        RunCommand::Pause { id } => order(session, id, RunOrder::Pause).await,
        RunCommand::Resume { id } => order(session, id, RunOrder::Resume).await,
        RunCommand::Prioritize { id, priority } => {
            order(session, id, RunOrder::Prioritize(priority)).await
        }
    }
}

async fn order(session: &Session, id: RunId, order: RunOrder) -> Result<u8, Failure> {
    let run = session.client.order(id, order).await?;
    session.show(&run)?;
    Ok(exit::OK)
}

async fn batch(session: &Session, id: BatchId) -> Result<u8, Failure> {
    let batch = session.client.batch(id).await?;
    session.print(&batch, show::batch)?;
    Ok(exit::OK)
}

async fn dead(session: &Session, command: DeadCommand) -> Result<u8, Failure> {
    match command {
        DeadCommand::List { which, limit } => {
            let dead = session.client.dead(&which, limit).await?;
            session.list(&dead, show::dead, "there are no such dead batches")?;
        }
        DeadCommand::Show { id } => return batch(session, id).await,
        DeadCommand::Redrive { chosen, rate } => {
            let handled = session.client.redrive(&chosen, rate).await?;
            session.print(&handled, |handled| show::handled(handled, "redriven"))?;
        }
        DeadCommand::Discard { chosen } => {
            let handled = session.client.discard(&chosen).await?;
            session.print(&handled, |handled| show::handled(handled, "discarded"))?;
        }
    }
    Ok(exit::OK)
}

async fn pipeline(session: &Session, command: PipelineCommand) -> Result<u8, Failure> {
    let pipelines = match command {
        PipelineCommand::List => session.client.pipelines().await?,
        PipelineCommand::Pause { pipeline } => {
            vec![session.client.pause_pipeline(&pipeline, true).await?]
        }
        PipelineCommand::Resume { pipeline } => {
            vec![session.client.pause_pipeline(&pipeline, false).await?]
        }
    };
    session.list(&pipelines, show::pipelines, "there are no pipelines")?;
    Ok(exit::OK)
}

async fn schedules(session: &Session) -> Result<u8, Failure> {
    let schedules = session.client.schedules().await?;
    session.list(&schedules, show::schedules, "no schedule is configured")?;
    Ok(exit::OK)
}

async fn doctor(session: &Session) -> Result<u8, Failure> {
    let diagnosis = session.client.doctor().await?;
    session.print(&diagnosis, show::diagnosis)?;
    Ok(if diagnosis.finding == Finding::Fail {
        exit::FAILED
    } else {
        exit::OK
    })
}

async fn workers(session: &Session) -> Result<u8, Failure> {
    let workers = session.client.workers().await?;
    session.list(&workers, show::workers, "no worker is running")?;
    Ok(exit::OK)
}

/// What all verbs need: whom to ask and how to answer.
#[derive(Debug)]
struct Session {
    client: Client,
    json: bool,
}

impl Session {
    /// Prints one run.
    fn show(&self, run: &Run) -> Result<(), Failure> {
        self.print(run, show::run)
    }

    /// Prints one thing: JSON, or as people read it.
    fn print<T: serde::Serialize>(
        &self,
        thing: &T,
        text: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            output::json(thing)
        } else {
            output::result(&text(thing))
        }
    }

    /// Prints a list: NDJSON, or a table, of which an empty one is told on stderr.
    fn list<T: serde::Serialize>(
        &self,
        entries: &[T],
        table: fn(&[T]) -> String,
        none: &str,
    ) -> Result<(), Failure> {
        if self.json {
            output::ndjson(entries)
        } else if entries.is_empty() {
            output::say(none);
            Ok(())
        } else {
            output::result(&table(entries))
        }
    }

    /// After a submission: stays with the run if asked to, else prints it as it was accepted.
    async fn accepted(&self, run: Run, watch: bool) -> Result<u8, Failure> {
        if watch {
            return self.watch(run).await;
        }
        self.show(&run)?;
        output::say(&format!(
            "accepted; watch it: tidegate run watch {}",
            run.run
        ));
        Ok(exit::OK)
    }

    /// Stays with the run until it has ended, prints it, and names the first dead batches.
    async fn watch(&self, run: Run) -> Result<u8, Failure> {
        let run = watch::watch(&self.client, run).await?;
        if run.batches.dead > 0 {
            self.name_dead(&run).await;
        }
        self.show(&run)?;
        Ok(watch::exit_code(&run))
    }

    /// Not knowing them is no failure: the run is what was asked for.
    async fn name_dead(&self, run: &Run) {
        let which = Which {
            run: Some(run.run),
            ..Which::default()
        };
        match self.client.dead(&which, NAMED_DEAD).await {
            Ok(dead) => dead
                .iter()
                .for_each(|batch| output::say(&show::dead_line(batch))),
            Err(error) => output::say(&format!("cannot name the dead batches: {error}")),
        }
        if run.batches.dead > u64::from(NAMED_DEAD) {
            output::say(&format!(
                "all of them: tidegate dead list --run {}",
                run.run
            ));
        }
    }
}
