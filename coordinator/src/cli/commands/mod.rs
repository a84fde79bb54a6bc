//! What each verb does. Each asks the coordinator, prints the result, and gives the exit code.

mod submit;
mod sync;

use coordinator::run::Run;
use shared::exit;

use crate::args::{Cli, Command, DeadCommand, RunCommand, Sync, WorkerCommand};
use crate::client::Client;
use crate::failure::Failure;
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
        Command::Dead(command) => dead(&session, command).await,
        Command::Worker(WorkerCommand::List) => workers(&session).await,
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
    }
}

async fn dead(session: &Session, command: DeadCommand) -> Result<u8, Failure> {
    let DeadCommand::List {
        run,
        pipeline,
        limit,
    } = command;
    let dead = session.client.dead(run, pipeline.as_ref(), limit).await?;
    session.list(&dead, show::dead, "there are no such dead batches")?;
    Ok(exit::OK)
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
        if self.json {
            output::json(run)
        } else {
            output::result(&show::run(run))
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
        match self.client.dead(Some(run.run), None, NAMED_DEAD).await {
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
