//! The standard output of a command, for what has no source of its own; and a command that reads it
//! back.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place::{file_in, refuse_occupied, write_private};
use super::process::Call;
use super::scratch::{Each, Scratch, ScratchPlace, no_database as no_database_here};
use super::{
    ArtifactSpec, Context, Dumped, Finding, Level, Outputs, RestoreArtifact, RestoreJob, Restored,
    Restorer, Source, SourceError, Streams, Target,
};
use crate::model::{ArtifactKind, Check, CommandLine, Name, Remarks, Secret};

/// Values shorter than this are not masked in what a command says: too many innocent words would
/// be.
const SHORTEST_MASKED: usize = 4;

/// A command whose standard output is backed up. Exit status 0 after the end of the output is
/// success; all else is not.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments. No shell is involved; write `["sh", "-c", "…"]` for one.
    /// Every user of the machine can read the arguments of a running command, so secrets belong in
    /// `env`, `env_pass` or a file.
    pub command: CommandLine,
    /// The program and its arguments that read the output back from their standard input, with the
    /// same variables and in the same folder as `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_command: Option<CommandLine>,
    /// Variables that are set for the command. It gets no other than these, `env_pass`, and the
    /// usual harmless ones (`PATH`, `HOME`, `LANG`, `TZ` and their like).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// Names of variables of our own environment that the command gets too, when they are set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_pass: Vec<String>,
    /// The folder that the command runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<PathBuf>,
}

impl CommandConfig {
    /// Makes relative paths absolute. A program with a `/` in it is counted from `working_dir`,
    /// else from `base`.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(folder) = &mut self.working_dir {
            *folder = crate::model::counted_from(base, folder);
        }
        let from = self.working_dir.as_deref().unwrap_or(base);
        for program in [
            self.command.program_mut(),
            self.restore_command.as_mut().and_then(CommandLine::program_mut),
        ] {
            if let Some(program) = program
                && program.contains('/')
            {
                *program = from.join(&*program).to_string_lossy().into_owned();
            }
        }
    }

    /// Refuses what could never work.
    ///
    /// # Errors
    /// [`SourceError::Unsuitable`].
    pub fn validate(&self) -> Result<(), SourceError> {
        for (key, mut names) in [
            ("env", Box::new(self.env.keys()) as Box<dyn Iterator<Item = &String>>),
            ("env_pass", Box::new(self.env_pass.iter())),
        ] {
            if names.any(|name| name.is_empty() || name.contains(['=', '\0'])) {
                // Not repeated: what follows the `=` is often a secret.
                return Err(SourceError::Unsuitable(format!(
                    "`{key}` has something in it that is not the name of an environment variable, \
                     such as `NAME=VALUE`"
                )));
            }
        }
        Ok(())
    }

    /// A call of one of the two commands with what both get: variables and a folder.
    fn call(
        &self,
        cx: &Context,
        command: &[String],
        attempt: &str,
    ) -> Result<(Call, String), SourceError> {
        self.validate()?;
        let (mut call, program) = call(cx, command, attempt)?;
        call = call.working_dir(self.working_dir.clone());
        let set = self.env.iter().map(|(name, value)| (name, value.expose().to_owned().into()));
        let passed = self
            .env_pass
            .iter()
            .filter_map(|name| Some((name, cx.environment.get(name)?.to_owned())));
        for (name, value) in set.chain(passed) {
            match value.to_str() {
                Some(text) if text.len() >= SHORTEST_MASKED => {
                    call = call.redact(&Secret::new(text));
                }
                _ => {}
            }
            call = call.variable(name, value);
        }
        Ok((call, program))
    }
}

/// The source.
pub struct Command {
    config: CommandConfig,
}

impl Command {
    /// As configured.
    pub fn new(config: CommandConfig) -> Self {
        Self { config }
    }
}

/// A call of an argument vector, and the program's name without its folder.
fn call(cx: &Context, command: &[String], attempt: &str) -> Result<(Call, String), SourceError> {
    let Some((program, args)) = command.split_first().filter(|(program, _)| !program.is_empty())
    else {
        return Err(SourceError::Unsuitable(format!("The command of `{}` is empty", cx.name)));
    };
    let call = Call::new(cx, program, format!("{attempt} `{}`", cx.name))
        .args(args)
        .when_missing("Install it, correct its name, or write its whole path");
    let name = Path::new(program)
        .file_name()
        .map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned());
    Ok((call, name))
}

impl Source for Command {
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        let (call, program) = self.config.call(cx, &self.config.command, "run the command of")?;
        let spec = ArtifactSpec {
            extension: "out",
            number: ArtifactSpec::FIRST,
            kind: ArtifactKind::Stream,
            bulk: true,
            blocks: false,
        };
        let mut output = outputs.create(spec).map_err(SourceError::Stream)?;
        let began = Instant::now();
        let bytes = call.read_into(cx, &mut output)?;
        let artifact = outputs.finish(output).map_err(SourceError::Stream)?;
        let mut remarks = Remarks::default();
        if bytes == 0 {
            remarks.warn("The command ended with success and wrote nothing");
        }
        let seconds = began.elapsed().as_secs_f64();
        let facts = serde_json::json!({
            "type": "command", "v": 1, "program": program, "bytes": bytes, "seconds": seconds,
        });
        Ok(Dumped { artifacts: vec![artifact], consistency: "command", facts, remarks })
    }

    fn ensure_present(&self, cx: &Context) -> Result<(), SourceError> {
        let (call, _) = self.config.call(cx, &self.config.command, "run the command of")?;
        call.ensure_found()
    }

    fn check(&self, cx: &Context) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(folder) = self.config.working_dir.as_deref().filter(|folder| !folder.is_dir()) {
            let message = format!(
                "`{}` is not a folder: create it or correct `working_dir`",
                folder.display()
            );
            findings.push(Finding::new(Level::Error, "working_dir", message));
        }
        for (subject, command) in [
            ("command", Some(&self.config.command)),
            ("restore_command", self.config.restore_command.as_ref()),
        ] {
            let Some(command) = command else { continue };
            let program = command.first().map(String::as_str).unwrap_or_default();
            findings.push(match cx.environment.find_program(Path::new(program)) {
                Some(file) => Finding::new(Level::Ok, subject, format!("`{}`", file.display())),
                None => {
                    let message = format!(
                        "The program `{program}` was not found or is not executable: install it, \
                         correct its name, or write \
                         its whole path"
                    );
                    Finding::new(Level::Error, subject, message)
                }
            });
        }
        for name in &self.config.env_pass {
            if cx.environment.get(name).is_none() {
                let message = format!("`{name}` is not set, so the command will not have it");
                findings.push(Finding::new(Level::Warning, "env_pass", message));
            }
        }
        findings
    }
}

/// The inverse: a file in a folder, or a command that reads the stream.
pub struct CommandRestorer;

impl Restorer for CommandRestorer {
    fn restore(&self, job: RestoreJob<'_>, input: &mut dyn Read) -> Result<Restored, SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        self.prepare(job)?;
        if let Some(file) = file_in(target, &artifact.name)? {
            write_private(&file, input, options)?;
            return Ok(Restored { place: file.display().to_string(), ..Restored::default() });
        }
        let (config, command) = reader(target)?;
        let (call, program) = config.call(cx, command, "restore with the command of")?;
        let fed = call.feed(cx, input)?;
        let mut remarks = Remarks::default();
        if fed.stopped_early {
            remarks.warn(format!(
                "`{program}` ended with success before it had read all of the stream"
            ));
        }
        Ok(Restored { place: format!("the command `{program}`"), remarks, ..Restored::default() })
    }

    fn prepare(&self, job: RestoreJob<'_>) -> Result<(), SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        if let Some(file) = file_in(target, &artifact.name)? {
            return refuse_occupied(&file, options);
        }
        let (config, command) = reader(target)?;
        let (_, _) = config.call(cx, command, "restore with the command of")?;
        let program = command.first().map(String::as_str).unwrap_or_default();
        if cx.environment.find_program(Path::new(program)).is_none() {
            return Err(SourceError::Unsuitable(format!(
                "The program `{program}`, which should read the stream, was not found or is not \
                 executable"
            )));
        }
        Ok(())
    }

    fn scratch(
        &self,
        cx: &Context,
        _artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Box<dyn Scratch>, SourceError> {
        Ok(Box::new(ScratchFile {
            name: cx.name.clone(),
            folder: place.folder.join(cx.name.as_str()),
        }))
    }

    fn describe(&self, facts: &serde_json::Value) -> Option<String> {
        Some(format!("the command `{}`", facts.get("program")?.as_str()?))
    }

    fn by_hand(&self, artifact: &RestoreArtifact) -> Vec<String> {
        vec![format!("cat > {}", artifact.name)]
    }
}

/// A stream as a file in a private folder.
struct ScratchFile {
    name: Name,
    folder: PathBuf,
}

impl Scratch for ScratchFile {
    fn target(&self, _artifact: &RestoreArtifact) -> Result<Target, String> {
        Ok(Target::Folder(self.folder.clone()))
    }

    fn inspect(
        &mut self,
        _cx: &Context,
        artifact: &RestoreArtifact,
        _streams: &dyn Streams,
    ) -> Result<Vec<Check>, SourceError> {
        let file = self.folder.join(&artifact.name);
        let found = std::fs::metadata(&file).map_err(|error| SourceError::Io {
            attempt: "look at",
            path: file.display().to_string(),
            error,
        })?;
        let check = Check::new("size", Some(&self.name), format!("bytes of {}", artifact.name));
        let expected = artifact.facts.get("bytes").and_then(serde_json::Value::as_u64);
        Ok(expected.map(|expected| check.compared(expected, found.len())).into_iter().collect())
    }

    fn query(
        &mut self,
        _: &Context,
        _: &str,
        _: Duration,
        _: &mut Each<'_>,
    ) -> Result<(), SourceError> {
        Err(no_database_here(&self.name))
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("PATH", self.folder.display().to_string())]
    }

    fn description(&self) -> String {
        format!("a file in `{}`", self.folder.display())
    }

    fn keep(&mut self, _: &Context) -> Result<String, SourceError> {
        Ok(format!("rm -r {}", self.folder.display()))
    }
}

/// The command that is to read the stream.
fn reader(target: &Target) -> Result<(&CommandConfig, &[String]), SourceError> {
    match target {
        Target::Command(config) => {
            Ok((config, config.restore_command.as_deref().unwrap_or_default()))
        }
        Target::Folder(_) | Target::Database(_) => Err(no_database()),
    }
}

fn no_database() -> SourceError {
    SourceError::Unsuitable(
        "The output of a command cannot be restored into a database by itself: restore it to a \
         folder, or with a command that \
         reads it"
            .to_owned(),
    )
}
