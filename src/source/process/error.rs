//! Why a child did not do its work, in words for an operator.

use std::fmt;

use crate::model::{ErrorCode, Span, without_credentials};

/// How many lines of what a child said are shown in an error.
const SHOWN_LINES: usize = 20;

/// Why a child did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such program.
    #[error("Could not {attempt}: the program `{program}` was not found{hint}")]
    NotFound {
        /// What was attempted: `dump the database "x"`.
        attempt: String,
        /// The program as it was looked for.
        program: String,
        /// How to get it, as a sentence after `. `; may be empty.
        hint: String,
    },
    /// The system refused to start it.
    #[error("Could not {attempt}: the program `{program}` could not be started: {error}")]
    Start {
        attempt: String,
        program: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// It ended with an exit status other than 0.
    #[error("Could not {attempt}: `{program}` ended with exit status {status}{said}")]
    Exit { attempt: String, program: String, status: i32, said: Said },
    /// A signal that we did not send ended it.
    #[error("Could not {attempt}: `{program}` was ended by {signal}{said}")]
    Signal {
        attempt: String,
        program: String,
        /// The signal's name, with what it usually means.
        signal: String,
        said: Said,
    },
    /// It neither wrote, read nor ended for too long, and was killed.
    #[error(
        "Could not {attempt}: `{program}` neither wrote, read nor ended for {after} and was \
         killed. If it may be silent \
         for that long, raise `no_progress_timeout`{said}"
    )]
    Hung { attempt: String, program: String, after: Span, said: Said },
    /// It ended, but its output did not: whether that is complete cannot be known.
    #[error(
        "Could not {attempt}: `{program}` ended, but a process that it left behind keeps its \
         output open, so that the \
         output cannot be known to be complete{said}"
    )]
    HeldOpen { attempt: String, program: String, said: Said },
    /// Its output is longer than it can sensibly be.
    #[error("Could not {attempt}: `{program}` wrote more than {limit} bytes")]
    TooMuch { attempt: String, program: String, limit: usize },
    /// The system failed between it and us.
    #[error("Could not {attempt}: the pipe to `{program}` failed: {error}")]
    Pipe {
        attempt: String,
        program: String,
        /// What the system said.
        error: std::io::Error,
    },
}

impl ProcessError {
    /// The stable code of the error, by what the operator does about it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ToolMissing,
            Self::Start { error, .. } | Self::Pipe { error, .. }
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                ErrorCode::NoThreads
            }
            Self::Hung { .. } => ErrorCode::ToolTimedOut,
            Self::Start { .. }
            | Self::Exit { .. }
            | Self::Signal { .. }
            | Self::HeldOpen { .. }
            | Self::TooMuch { .. }
            | Self::Pipe { .. } => ErrorCode::ToolFailed,
        }
    }
}

/// What a child said before it ended, without credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    stderr: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl Said {
    /// `stderr` may have credentials in it.
    pub(super) fn new(stderr: &str, hint: Option<String>) -> Self {
        Self { stderr: without_credentials(stderr), hint }
    }

    /// The end of its standard error, bytes that are not UTF-8 replaced and credentials masked.
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// The same, and what it wrote elsewhere.
    pub fn followed_by(self, text: &str) -> Self {
        Self::new(&format!("{}\n{text}", self.stderr.trim_end()), self.hint)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> =
            self.stderr.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        match lines.as_slice() {
            [] => {}
            [line] => write!(f, ": {line}")?,
            lines => {
                f.write_str(". It said:")?;
                let shown =
                    lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default();
                if shown.len() < lines.len() {
                    f.write_str("\n    ...")?;
                }
                for line in shown {
                    write!(f, "\n    {line}")?;
                }
            }
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The name of a signal, with what an operator should think of first.
pub(super) fn signal_name(number: Option<i32>) -> String {
    let name = match number {
        Some(1) => "SIGHUP",
        Some(2) => "SIGINT (interrupted)",
        Some(3) => "SIGQUIT",
        Some(6) => "SIGABRT (it found a fault in itself)",
        Some(9) => "SIGKILL (killed: out of memory?)",
        Some(11) => "SIGSEGV (it crashed)",
        Some(13) => "SIGPIPE (nobody reads its output)",
        Some(15) => "SIGTERM (asked to end by someone)",
        Some(24) => "SIGXCPU (its processor time is limited)",
        Some(25) => "SIGXFSZ (the size of its files is limited)",
        Some(other) => return format!("signal {other}"),
        None => "an unknown signal",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn the_end_of_what_was_said_is_shown() {
        let said = |text: &str| Said::new(text, None).to_string();
        assert_eq!(said(""), "");
        assert_eq!(said("one\n"), ": one");
        assert_eq!(said("one\ntwo\n"), ". It said:\n    one\n    two");
        let many: String = (0..1_000).map(|number| format!("line {number}\n")).collect();
        assert!(
            said(&many).ends_with("line 998\n    line 999") && said(&many).lines().count() < 30
        );
    }
}
