//! Progress on a terminal: what is being worked on, how much, how fast, how long yet.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use crate::report::Progress;

const TICK: Duration = Duration::from_millis(120);

/// The bar, if there is one, so that log lines go above it.
static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Shows the progress until dropped.
pub(super) struct Display {
    task: Option<JoinHandle<()>>,
}

impl Display {
    /// Shows `progress` on stderr when that is a terminal and `wanted`.
    pub(super) fn start(progress: &Progress, wanted: bool) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self { task: None };
        }
        let bar = BAR
            .get_or_init(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))
            .clone();
        let progress = progress.clone();
        let task = tokio::spawn(async move {
            let mut shown = None;
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                let stage = progress.stage();
                if shown != Some(stage.number) {
                    shown = Some(stage.number);
                    if !stage.goes_on {
                        // A line of 80 columns is enough for all of it; the bar takes what is left.
                        let expected = stage.expected_bytes.filter(|expected| *expected > 0);
                        let template = match expected {
                            Some(_) => {
                                "{spinner} {msg:16!} [{wide_bar}] {binary_bytes:>10} of \
                                 ~{binary_total_bytes} {binary_bytes_per_sec:>12} {eta:>4} left"
                            }
                            None => {
                                "{spinner} {msg:24} {binary_bytes:>10} {binary_bytes_per_sec:>12} \
                                 {elapsed:>4}"
                            }
                        };
                        bar.set_style(
                            ProgressStyle::with_template(template)
                                .unwrap_or_else(|_| ProgressStyle::default_bar())
                                .progress_chars("=> "),
                        );
                        // A new length is drawn at once, so the style comes first.
                        match expected {
                            Some(expected) => bar.set_length(expected),
                            None => bar.unset_length(),
                        }
                        bar.reset();
                    } else {
                        // The next part has a speed of its own.
                        bar.reset_eta();
                    }
                    bar.set_message(stage.name);
                }
                let bytes = progress.stage_bytes();
                // The last run's size is a guess: a bar that is full says nothing of what is left.
                if bar.length().is_some_and(|length| bytes > length) {
                    bar.set_length(bytes);
                }
                bar.set_position(bytes);
                bar.tick();
            }
        });
        Self { task: Some(task) }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            if let Some(bar) = BAR.get() {
                bar.finish_and_clear();
            }
        }
    }
}

pub(super) struct LogWriter;

impl io::Write for LogWriter {
    /// A log that nobody takes (its disk is full, its reader has gone) must not end a backup: what
    /// cannot be written is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = match BAR.get() {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes)),
            None => io::stderr().write_all(bytes),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().flush();
        Ok(())
    }
}
