//! An installation in which everybody has an account of its own on the broker, with no more than it needs.

use std::fs;

use anyhow::{Result, ensure};
use coordinator::definitions::User;
use harness::processes;
use harness::stack::Stack;

/// Everybody's password here: the broker knows them only as salted hashes.
const PASSWORD: &str = "correct-horse";

/// Has the broker import the definitions that the coordinator writes for this installation. From now on
/// nobody declares the topology.
pub fn import(stack: &mut Stack<'_>) -> Result<()> {
    let folder = stack.scratch().path().to_owned();
    let passwords = folder.join("passwords");
    fs::create_dir(&passwords)?;
    for user in User::ALL {
        fs::write(passwords.join(user.name()), format!("{PASSWORD}\n"))?;
    }
    let definitions = folder.join("definitions.json");
    let mut command = processes::command("coordinator", &folder, &stack.environment)?;
    command.args(["topology", "definitions", "--vhost", stack.vhost().name()]);
    command.arg("--passwords").arg(&passwords);
    command.arg("--out").arg(&definitions);
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    let broker = stack.vhost().broker();
    broker.rabbitmqctl(["import_definitions".as_ref(), definitions.as_os_str()])?;
    stack.set("TIDEGATE_BROKER__TOPOLOGY", "check");
    Ok(())
}

/// The broker's URL for one of the accounts.
#[must_use]
pub fn url(stack: &Stack<'_>, user: User) -> String {
    let vhost = stack.vhost();
    vhost.broker().url_for(user.name(), PASSWORD, vhost.name())
}

/// What is started from now on logs in as this user.
pub fn log_in(stack: &mut Stack<'_>, user: User) {
    let url = url(stack, user);
    stack.set("TIDEGATE_BROKER__URL", url);
}

/// Starts the coordinator and workers of these names, each under its role's account.
pub async fn start(stack: &mut Stack<'_>, workers: &[&str]) -> Result<()> {
    log_in(stack, User::Coordinator);
    stack.start_coordinator().await?;
    log_in(stack, User::Worker);
    for worker in workers {
        stack.start_worker(worker).await?;
    }
    Ok(())
}
