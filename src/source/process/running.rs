//! A child while it lives: what is awaited of it, what it says, how it is ended and reaped.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::Call;
use super::error::{ProcessError, Said, signal_name};
use super::heard::{Heard, Listener};
use crate::model::{CancelGuard, Span};
use crate::source::{Context, SourceError};

/// How much of what a child says is kept: the end of it.
const KEPT_BYTES: usize = 16 * 1024;
/// How long a child that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Our ends of a child's streams.
pub(super) struct Pipes {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
}

/// What ended a wait.
pub(super) enum Wake {
    /// The awaited stream can be used.
    Ready,
    /// The child ended just now.
    Exited,
    /// Stopping was asked for.
    Cancelled,
    /// The child was silent for too long.
    Timeout,
}

/// A started child. Dropping it kills its process group and reaps it.
pub(super) struct Running<'a> {
    call: &'a Call,
    group: Group,
    /// Hangs up when the child has ended. It is not reaped by then, so that its id still means it.
    exit: PipeReader,
    /// Hangs up when the run is cancelled.
    cancelled: PipeReader,
    _on_cancel: CancelGuard,
    drain: Option<Drain>,
    heard: Heard,
    progress: Arc<AtomicU64>,
    /// Whether its end was noticed.
    pub(super) ended: bool,
}

impl<'a> Running<'a> {
    pub(super) fn new(
        call: &'a Call,
        cx: &Context,
        mut child: Child,
        errors: PipeReader,
    ) -> Result<(Self, Pipes), SourceError> {
        let pipes = Pipes { stdin: child.stdin.take(), stdout: child.stdout.take() };
        let pid = Pid::from_child(&child);
        // From here on whatever fails drops the group, and with it the child.
        let group = Group { pid, child: Arc::new(Mutex::new(Some(child))) };
        let failed = |error| call.pipe_failed(error);
        let (exit, exit_writer) = std::io::pipe().map_err(failed)?;
        let (cancelled, cancel_writer) = std::io::pipe().map_err(failed)?;
        let progress = Arc::new(AtomicU64::new(0));
        let drain = Drain::start(errors, Arc::clone(&progress), call.listener()).map_err(failed)?;
        thread("wait for child")
            .spawn(move || {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while matches!(
                    rustix::process::waitid(WaitId::Pid(pid), options),
                    Err(rustix::io::Errno::INTR)
                ) {}
                drop(exit_writer);
            })
            .map_err(failed)?;
        let on_cancel = cx.cancel.on_cancel({
            let child = Arc::clone(&group.child);
            move || {
                signal(pid, &child, Signal::TERM);
                drop(cancel_writer);
            }
        });
        let running = Self {
            call,
            group,
            exit,
            cancelled,
            _on_cancel: on_cancel,
            drain: Some(drain),
            heard: cx.heard.clone(),
            progress,
            ended: false,
        };
        Ok((running, pipes))
    }

    /// Waits until the stream can be used or something else happens. Standard error counts as a
    /// sign of life.
    pub(super) fn wait(
        &mut self,
        stream: Option<&PollFd<'_>>,
        limit: Option<Duration>,
    ) -> std::io::Result<Wake> {
        loop {
            let seen = self.progress.load(Ordering::Relaxed);
            let mut fds = vec![PollFd::new(&self.cancelled, PollFlags::IN)];
            let exit_at = if self.ended { None } else { Some(fds.len()) };
            if !self.ended {
                fds.push(PollFd::new(&self.exit, PollFlags::IN));
            }
            let stream_at = stream.map(|_| fds.len());
            fds.extend(stream.cloned());
            let woken = poll(&mut fds, limit)?;
            let happened = |at: Option<usize>| {
                at.and_then(|at| fds.get(at)).is_some_and(|fd| !fd.revents().is_empty())
            };
            if happened(Some(0)) {
                return Ok(Wake::Cancelled);
            }
            if happened(stream_at) {
                return Ok(Wake::Ready);
            }
            if happened(exit_at) {
                self.ended = true;
                return Ok(Wake::Exited);
            }
            // What a dead child left running may go on to speak; that is not the child's life.
            if !woken && (self.ended || self.progress.load(Ordering::Relaxed) == seen) {
                return Ok(Wake::Timeout);
            }
        }
    }

    /// Whether the child, which has ended, did so without success.
    pub(super) fn has_failed(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::Pid(self.group.pid), options).ok().flatten();
        status.is_none_or(|status| status.exit_status() != Some(0))
    }

    /// Waits for the child's end and judges it.
    pub(super) fn finish(mut self) -> Result<(), SourceError> {
        while !self.ended {
            match self.wait(None, self.call.timeout) {
                Ok(Wake::Exited) => {}
                other => return Err(self.stop(other)),
            }
        }
        if self.has_failed() {
            // Nothing that a failed child started goes on.
            self.group.signal(Signal::KILL);
        }
        let status = self.group.reap().map_err(|error| self.call.pipe_failed(error))?;
        if status.success() {
            if let Some((_, listener)) = self.drain.take().and_then(Drain::finish) {
                listener.finish(&self.heard);
            }
            return Ok(());
        }
        if self.cancelled_now() {
            return Err(SourceError::Cancelled);
        }
        let said = self.said();
        let (attempt, program) = (self.call.attempt.clone(), self.call.name());
        Err(match (status.code(), status.signal()) {
            (Some(status), _) => ProcessError::Exit { attempt, program, status, said },
            (None, number) => {
                ProcessError::Signal { attempt, program, signal: signal_name(number), said }
            }
        }
        .into())
    }

    /// Ends the child because of what a wait ended with.
    pub(super) fn stop(mut self, why: std::io::Result<Wake>) -> SourceError {
        self.terminate();
        match why {
            _ if self.cancelled_now() => SourceError::Cancelled,
            Err(error) => self.call.pipe_failed(error),
            Ok(_) => {
                let (attempt, program) = (self.call.attempt.clone(), self.call.name());
                let after = Span::from(self.call.timeout.unwrap_or_default());
                ProcessError::Hung { attempt, program, after, said: self.said() }.into()
            }
        }
    }

    pub(super) fn held_open(mut self) -> SourceError {
        self.terminate();
        let (attempt, program) = (self.call.attempt.clone(), self.call.name());
        ProcessError::HeldOpen { attempt, program, said: self.said() }.into()
    }

    /// Asks the group to end, kills what is left of it after a grace, and reaps the child.
    pub(super) fn terminate(&mut self) {
        if !self.ended {
            self.group.signal(Signal::TERM);
            let ended = poll(&mut [PollFd::new(&self.exit, PollFlags::IN)], Some(GRACE));
            self.ended = ended.unwrap_or(false);
        }
        self.group.signal(Signal::KILL);
        // It was killed or has ended: there is a status, and nothing that failed can be done about
        // here.
        let _ = self.group.reap();
    }

    fn cancelled_now(&self) -> bool {
        poll(&mut [PollFd::new(&self.cancelled, PollFlags::IN)], Some(Duration::ZERO))
            .unwrap_or(false)
    }

    fn said(&mut self) -> Said {
        let said = self.drain.take().and_then(Drain::finish);
        self.call.said(&said.map(|(tail, _)| tail).unwrap_or_default())
    }
}

/// The process group of a child, which is its leader. Until the child is reaped, no other group can
/// have its number.
struct Group {
    pid: Pid,
    /// None once it is reaped.
    child: Arc<Mutex<Option<Child>>>,
}

impl Group {
    fn signal(&self, number: Signal) {
        signal(self.pid, &self.child, number);
    }

    fn reap(&self) -> std::io::Result<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.take() {
            Some(mut child) => child.wait(),
            None => Err(ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.child.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.signal(Signal::KILL);
            let _ = self.reap();
        }
    }
}

fn signal(pid: Pid, child: &Mutex<Option<Child>>, number: Signal) {
    if child.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
        // A group that has no process left cannot be signalled, and need not be.
        let _ = rustix::process::kill_process_group(pid, number);
    }
}

/// Reads all that a child says, and keeps the end of it, and its lines.
struct Drain {
    /// Dropping it asks the thread to take what is there and end, even if something holds the pipe
    /// open.
    stop: PipeWriter,
    thread: JoinHandle<(Vec<u8>, Listener)>,
}

impl Drain {
    fn start(
        errors: PipeReader,
        progress: Arc<AtomicU64>,
        mut listener: Listener,
    ) -> std::io::Result<Self> {
        let (stopped, stop) = std::io::pipe()?;
        let thread = thread("drain child").spawn(move || {
            let mut errors = File::from(OwnedFd::from(errors));
            let mut buffer = vec![0; KEPT_BYTES];
            let mut tail = Vec::new();
            let mut cut = false;
            let mut last_reads = 64_u32;
            while last_reads > 0 {
                let mut fds =
                    [PollFd::new(&errors, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
                if poll(&mut fds, None).is_err() {
                    break;
                }
                let [readable, stopping] = fds.map(|fd| !fd.revents().is_empty());
                if stopping {
                    last_reads -= 1;
                }
                if readable {
                    let Ok(count @ 1..) = errors.read(&mut buffer) else { break };
                    progress.fetch_add(count as u64, Ordering::Relaxed);
                    let came = buffer.get(..count).unwrap_or_default();
                    listener.hear(came);
                    tail.extend_from_slice(came);
                    let excess = tail.len().saturating_sub(KEPT_BYTES);
                    cut |= excess > 0;
                    tail.drain(..excess);
                } else if stopping {
                    break;
                }
            }
            if cut {
                // Of what is cut nobody can tell whether it is the end of a secret. None is longer
                // than a quarter of what is kept.
                let quarter = tail.len() / 4;
                let line = tail.iter().take(quarter).position(|byte| *byte == b'\n');
                tail.drain(..line.map_or(quarter, |at| at + 1));
            }
            (tail, listener)
        })?;
        Ok(Self { stop, thread })
    }

    fn finish(self) -> Option<(Vec<u8>, Listener)> {
        drop(self.stop);
        self.thread.join().ok()
    }
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024)
}

/// Waits for events; false when the time is over first.
fn poll(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> std::io::Result<bool> {
    let began = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, timeout.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
