//! What is started: found and checked once, when the worker starts.

use std::ffi::OsString;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared::batch::Batch;
use shared::config::{ConfigError, PipelineConfig};
use shared::name::PipelineName;
use tokio::process::Command;

/// What every command gets of the worker's environment.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
/// The worker's own variables hold the credentials of broker and sink.
const OWN_PREFIX: &str = "TIDEGATE_";

/// A program with its arguments and environment.
#[derive(Clone)]
pub(super) struct CommandTemplate {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, OsString)>,
}

/// Without the values of the environment, which may be secret.
impl fmt::Debug for CommandTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self
            .environment
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        f.debug_struct("CommandTemplate")
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .field("environment", &names)
            .finish()
    }
}

impl fmt::Display for CommandTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.program.display().fmt(f)
    }
}

impl CommandTemplate {
    pub(super) fn new(
        pipeline: &PipelineName,
        config: &PipelineConfig,
    ) -> Result<Self, ConfigError> {
        let wrong = |key: &str, problem: String| ConfigError::Wrong {
            key: format!("pipelines.{pipeline}.{key}"),
            problem,
        };
        let Some((program, arguments)) = config.command.split_first() else {
            return Err(wrong("command", "names no program".to_owned()));
        };
        let program = find(program).map_err(|problem| wrong("command", problem))?;
        if let Some(argument) = arguments.iter().find(|argument| argument.contains('\0')) {
            return Err(wrong(
                "command",
                format!("has an argument with a NUL character: {argument:?}"),
            ));
        }
        for name in &config.environment {
            check_name(name).map_err(|problem| wrong("environment", problem))?;
        }
        let named = config.environment.iter().map(String::as_str);
        let environment = PASSED_ON
            .into_iter()
            .chain(named)
            .filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?)))
            .collect();
        Ok(Self {
            program,
            arguments: arguments.to_vec(),
            environment,
        })
    }

    /// The command for one batch.
    pub(super) fn for_batch(&self, batch: &Batch) -> Command {
        let mut command = self.for_pipeline(&batch.pipeline);
        command
            .env("TIDEGATE_BATCH", batch.id.to_string())
            .env("TIDEGATE_RUN", batch.run.to_string())
            .env("TIDEGATE_KEY", batch.key.as_str())
            .env("TIDEGATE_ATTEMPT", batch.attempt.to_string());
        command
    }

    /// The command for any number of them.
    pub(super) fn for_pipeline(&self, pipeline: &PipelineName) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("TIDEGATE_PIPELINE", pipeline.as_str());
        command
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("{name:?} is no name of a variable"));
    }
    if name.starts_with(OWN_PREFIX) {
        return Err(format!(
            "names {name}: variables that start with {OWN_PREFIX} hold the worker's own credentials and \
             are never passed on"
        ));
    }
    Ok(())
}

/// The absolute path of a program, found as a shell would.
fn find(program: &str) -> Result<PathBuf, String> {
    if program.contains('/') {
        let path = std::path::absolute(program).map_err(|e| format!("names {program:?}: {e}"))?;
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(format!(
                "names {}, which is not there or not executable",
                path.display()
            ))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| is_program(candidate))
        .and_then(|found| std::path::absolute(found).ok())
        .ok_or_else(|| format!("names {program:?}, which is in no folder of PATH: install it or write its full path"))
}

fn is_program(path: &Path) -> bool {
    const ANY_EXECUTE_BIT: u32 = 0o111;
    let executable = |metadata: Metadata| {
        metadata.is_file() && metadata.permissions().mode() & ANY_EXECUTE_BIT != 0
    };
    path.metadata().is_ok_and(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(command: &[&str], environment: &[&str]) -> Result<CommandTemplate, ConfigError> {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let config = PipelineConfig {
            command: texts(command),
            environment: texts(environment),
            ..PipelineConfig::default()
        };
        CommandTemplate::new(&PipelineName::new("hashes").unwrap(), &config)
    }

    #[test]
    fn a_program_is_found_in_path_or_where_it_is_said_to_be() {
        let program = template(&["sh"], &[]).unwrap().program;
        assert!(program.is_absolute() && program.ends_with("sh"));
        assert!(template(&[program.to_str().unwrap()], &[]).is_ok());
    }

    #[test]
    fn a_program_that_cannot_run_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("no-program");
        std::fs::write(&file, "text").unwrap();
        for program in [
            "no-such-program-anywhere",
            "./no-such",
            file.to_str().unwrap(),
            folder.path().to_str().unwrap(),
        ] {
            let problem = template(&[program], &[]).unwrap_err().to_string();
            assert!(
                problem.starts_with("pipelines.hashes.command: names "),
                "{problem}"
            );
        }
    }

    #[test]
    fn credentials_of_the_worker_are_never_passed_on() {
        for name in ["TIDEGATE_BROKER__URL", "TIDEGATE_TOKEN", "", "A=B"] {
            let problem = template(&["sh"], &[name]).unwrap_err().to_string();
            assert!(
                problem.starts_with("pipelines.hashes.environment: "),
                "{problem}"
            );
        }
    }
}
