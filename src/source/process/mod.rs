//! The only place that starts a child.
//!
//! A child has a cleared environment, a process group of its own, and standard streams that are
//! watched: its standard error is always drained and kept, its silence is timed, and it is always
//! reaped.
//! The end of its output is not success; only the exit status 0, known after that end, is.

mod environment;
mod error;
mod heard;
mod memory_file;
mod running;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

pub use self::environment::{Environment, is_executable};
pub use self::error::{ProcessError, Said};
pub use self::heard::{Heard, LinePattern};
use self::heard::{Listener, Voice, without};
pub use self::memory_file::{MemoryFile, path_for_children};
use self::running::{Pipes, Running, Wake};
use super::{Context, SourceError};
use crate::model::Secret;

/// How much is read from or written to a child at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// How long the output of a child that has ended may stay open without a byte: something that it
/// left running holds it.
const LINGER: Duration = Duration::from_secs(5);

/// What a child read of what it was fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    /// Bytes that the child took.
    pub bytes: u64,
    /// Whether it ended, with success, before it had taken everything.
    pub stopped_early: bool,
}

/// A program to run, once or several times.
#[derive(Clone)]
pub struct Call {
    attempt: String,
    program: PathBuf,
    args: Vec<OsString>,
    variables: BTreeMap<OsString, OsString>,
    working_dir: Option<PathBuf>,
    not_found: String,
    explain: Option<fn(&str) -> Option<String>>,
    redacted: Vec<Secret>,
    voice: Voice,
    timeout: Option<Duration>,
    environment: Environment,
    user: Option<(u32, u32)>,
}

impl Call {
    /// A call of `program`, a path or a name that is looked up in the search path, to `attempt`
    /// something: words that follow "Could not".
    pub fn new(cx: &Context, program: impl Into<PathBuf>, attempt: impl Into<String>) -> Self {
        let mut of_all: Vec<Secret> = cx.secrets.iter().flat_map(Secret::forms).collect();
        // A shorter one is in many words.
        of_all.retain(|secret| secret.expose().len() >= 4);
        of_all.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        Self {
            attempt: attempt.into(),
            program: program.into(),
            args: Vec::new(),
            variables: cx.environment.for_children(),
            working_dir: None,
            not_found: String::new(),
            explain: None,
            redacted: of_all,
            voice: Voice::Any,
            timeout: Some(cx.no_progress_timeout),
            environment: cx.environment.clone(),
            user: None,
        }
    }

    /// Adds arguments. Every user of the machine can read them: never a secret.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the child's environment.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Runs the child in `folder`.
    pub fn working_dir(mut self, folder: Option<PathBuf>) -> Self {
        self.working_dir = folder;
        self
    }

    /// Runs the child as another user, with that one's group and no other. Only root can.
    pub fn as_user(mut self, user: Option<(u32, u32)>) -> Self {
        self.user = user;
        self
    }

    /// How to get the program when it is not there, in a sentence.
    pub fn when_missing(mut self, sentence: &str) -> Self {
        self.not_found = format!(". {sentence}");
        self
    }

    /// Finds a hint in what the child said.
    pub fn explained_by(mut self, explain: fn(&str) -> Option<String>) -> Self {
        self.explain = Some(explain);
        self
    }

    /// Masks `secret` wherever the child says it. (Credentials in addresses are masked anyway.)
    pub fn redact(mut self, secret: &Secret) -> Self {
        self.redacted.extend(secret.forms());
        self.redacted.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        self
    }

    /// The child is a tool of PostgreSQL. What it marks as a warning is one, unless it was
    /// `accepted`.
    pub fn of_postgres(mut self, accepted: &[LinePattern]) -> Self {
        self.voice = Voice::Postgres { accepted: accepted.to_vec() };
        self
    }

    /// How long the child may neither write, read nor end; without a limit where silence is no sign
    /// of a fault.
    pub fn silent_for(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs the child and copies its standard output to `out`; how many bytes that were.
    ///
    /// Only the time in which we wait for the child counts against its silence: a slow `out` does
    /// not.
    ///
    /// # Errors
    /// When it does not end with exit status 0 after the end of its output; when it is silent for
    /// too long; when `out` fails ([`SourceError::Stream`]); when the run is cancelled. The child
    /// is dead and reaped by then.
    pub fn read_into(&self, cx: &Context, out: &mut dyn Write) -> Result<u64, SourceError> {
        let (mut running, pipes) = self.start(cx, Wants::Output)?;
        let Some(mut stdout) = pipes.stdout else {
            return Err(self.pipe_failed(ErrorKind::NotConnected.into()));
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut bytes = 0;
        loop {
            let limit = if running.ended { Some(LINGER) } else { self.timeout };
            match running.wait(Some(&PollFd::new(&stdout, PollFlags::IN)), limit) {
                Ok(Wake::Ready) => {}
                Ok(Wake::Exited) => {
                    // What a failed child still has in the pipe is of no use.
                    if running.has_failed() {
                        break;
                    }
                    continue;
                }
                Ok(Wake::Timeout) if running.ended => return Err(running.held_open()),
                other => return Err(running.stop(other)),
            }
            let part = match stdout.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(running.stop(Err(error))),
            };
            if let Err(error) = out.write_all(part) {
                running.terminate();
                return Err(if cx.cancel.is_cancelled() {
                    SourceError::Cancelled
                } else {
                    SourceError::Stream(error)
                });
            }
            bytes += part.len() as u64;
        }
        running.finish()?;
        Ok(bytes)
    }

    /// Runs the child and feeds it `input` on its standard input. Its standard output is drained
    /// with its standard error.
    ///
    /// # Errors
    /// When it does not end with exit status 0; when it is silent for too long; when the run is
    /// cancelled. When `input` fails ([`SourceError::Stream`]), the child is killed while its
    /// standard input is still open, so that it never sees the end of a stream that is damaged.
    pub fn feed(&self, cx: &Context, input: &mut dyn Read) -> Result<Fed, SourceError> {
        let (mut running, pipes) = self.start(cx, Wants::Input)?;
        let Some(mut stdin) = pipes.stdin else {
            return Err(self.pipe_failed(ErrorKind::NotConnected.into()));
        };
        // Our end only: the child's end of a pipe has flags of its own.
        let flags = rustix::fs::fcntl_getfl(&stdin).and_then(|flags| {
            rustix::fs::fcntl_setfl(&stdin, flags | rustix::fs::OFlags::NONBLOCK)
        });
        if let Err(error) = flags {
            return Err(running.stop(Err(error.into())));
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut bytes = 0;
        let mut complete = false;
        'feeding: loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => {
                    complete = true;
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    running.terminate();
                    let cancelled = cx.cancel.is_cancelled();
                    return Err(if cancelled {
                        SourceError::Cancelled
                    } else {
                        SourceError::Stream(error)
                    });
                }
            };
            let mut rest = buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                match running.wait(Some(&PollFd::new(&stdin, PollFlags::OUT)), self.timeout) {
                    Ok(Wake::Ready) => {}
                    Ok(Wake::Exited) => break 'feeding,
                    other => return Err(running.stop(other)),
                }
                match stdin.write(rest) {
                    Ok(written) => {
                        rest = rest.get(written..).unwrap_or_default();
                        bytes += written as u64;
                    }
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::Interrupted | ErrorKind::WouldBlock
                        ) => {}
                    // It reads no more: its exit status says why.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => break 'feeding,
                    Err(error) => return Err(running.stop(Err(error))),
                }
            }
        }
        drop(stdin);
        running.finish()?;
        if !complete {
            // Whether what it did take was undamaged is known only at the end of the input.
            std::io::copy(input, &mut std::io::sink()).map_err(SourceError::Stream)?;
        }
        Ok(Fed { bytes, stopped_early: !complete })
    }

    /// Runs the child, feeding it nothing, and returns its standard output, of at most `limit`
    /// bytes.
    ///
    /// # Errors
    /// As [`Call::read_into`], and when there is more.
    pub fn capture(&self, cx: &Context, limit: usize) -> Result<String, SourceError> {
        let mut taken = Bounded { bytes: Vec::new(), limit };
        match self.read_into(cx, &mut taken) {
            Ok(_) => Ok(String::from_utf8_lossy(&taken.bytes).into_owned()),
            Err(SourceError::Stream(_)) => Err(ProcessError::TooMuch {
                attempt: self.attempt.clone(),
                program: self.name(),
                limit,
            }
            .into()),
            Err(error) => Err(error),
        }
    }

    /// The program, as it is named in errors.
    fn name(&self) -> String {
        self.program.display().to_string()
    }

    fn pipe_failed(&self, error: std::io::Error) -> SourceError {
        ProcessError::Pipe { attempt: self.attempt.clone(), program: self.name(), error }.into()
    }

    fn not_started(&self, error: std::io::Error) -> SourceError {
        ProcessError::Start { attempt: self.attempt.clone(), program: self.name(), error }.into()
    }

    /// Looks whether there is such a program, and the folder that it runs in.
    ///
    /// # Errors
    /// Those that a start would end with.
    pub fn ensure_found(&self) -> Result<(), SourceError> {
        self.file().map(drop)
    }

    /// The file of the program.
    fn file(&self) -> Result<PathBuf, SourceError> {
        let file = match &self.working_dir {
            Some(folder) if !folder.is_dir() => {
                return Err(SourceError::Io {
                    attempt: "run a program in",
                    path: folder.display().to_string(),
                    error: ErrorKind::NotFound.into(),
                });
            }
            // A relative path is counted from the folder that the program runs in, as a shell there
            // would.
            Some(folder) if self.program.components().count() > 1 => folder.join(&self.program),
            _ => self.program.clone(),
        };
        let Some(file) = self.environment.find_program(&file) else {
            if file.is_file() {
                return Err(self.not_started(std::io::Error::new(
                    ErrorKind::PermissionDenied,
                    "The file is not executable",
                )));
            }
            let hint = self.not_found.clone();
            return Err(ProcessError::NotFound {
                attempt: self.attempt.clone(),
                program: self.name(),
                hint,
            }
            .into());
        };
        Ok(file)
    }

    fn start(&self, cx: &Context, wants: Wants) -> Result<(Running<'_>, Pipes), SourceError> {
        if cx.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let file = self.file()?;
        let (errors, said) = std::io::pipe().map_err(|error| self.pipe_failed(error))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the door through which children are started"
        )]
        let mut command = std::process::Command::new(&file);
        command
            .arg0(&self.program)
            .args(&self.args)
            .env_clear()
            .envs(&self.variables)
            .process_group(0);
        if let Some(folder) = &self.working_dir {
            command.current_dir(folder);
        }
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        match wants {
            Wants::Output => command.stdin(Stdio::null()).stdout(Stdio::piped()),
            Wants::Input => {
                let output = said.try_clone().map_err(|error| self.pipe_failed(error))?;
                command.stdin(Stdio::piped()).stdout(output)
            }
        };
        let child = command.stderr(said).spawn().map_err(|error| self.not_started(error))?;
        // The command holds our copies of the child's ends: without this the pipe would never end.
        drop(command);
        Running::new(self, cx, child, errors)
    }

    fn listener(&self) -> Listener {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        let name = name.to_string_lossy().into_owned();
        Listener::new(name, self.voice.clone(), self.redacted.clone())
    }

    /// What the child said, without the secrets that it was given and the credentials in addresses.
    fn said(&self, tail: &[u8]) -> Said {
        let stderr = String::from_utf8_lossy(tail).into_owned();
        // Before the masks: a short password may be a part of any word.
        let hint = self.explain.and_then(|explain| explain(&stderr));
        Said::new(&without(&self.redacted, stderr), hint)
    }
}

/// Which of a child's streams is ours.
#[derive(Clone, Copy)]
enum Wants {
    Output,
    Input,
}

/// Takes what fits and fails at what does not.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
