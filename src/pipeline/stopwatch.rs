//! How long each step of getting something back takes, where the steps run inside one another on
//! one thread.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A step of getting a snapshot back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// What is restored to is made ready.
    Prepare,
    /// Waiting for bytes of the storage.
    Fetch,
    /// Holding bytes against their digests.
    Digest,
    /// Decrypting them.
    Decrypt,
    /// Decompressing them.
    Decompress,
    /// Writing them to where they are restored.
    Restore,
    /// Looking at what was restored.
    Checks,
    /// Removing it again.
    CleanUp,
}

impl Step {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 8] = [
        Self::Prepare,
        Self::Fetch,
        Self::Digest,
        Self::Decrypt,
        Self::Decompress,
        Self::Restore,
        Self::Checks,
        Self::CleanUp,
    ];

    /// Whether it is a part of getting something back, and not of looking at it and removing it
    /// again, which a drill does besides.
    pub fn is_recovery(self) -> bool {
        !matches!(self, Self::Checks | Self::CleanUp)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Fetch => "fetch",
            Self::Digest => "digest",
            Self::Decrypt => "decrypt",
            Self::Decompress => "decompress",
            Self::Restore => "restore",
            Self::Checks => "checks",
            Self::CleanUp => "clean-up",
        }
    }
}

/// Counts the time of each [`Step`]. At any moment it runs for one of them, so that all of them
/// together are the time that went by.
#[derive(Debug, Clone)]
pub struct Stopwatch(Arc<Mutex<Laps>>);

#[derive(Debug)]
struct Laps {
    since: Instant,
    step: Step,
    spent: [Duration; Step::ALL.len()],
}

impl Laps {
    fn turn(&mut self, step: Step) -> Step {
        let now = Instant::now();
        if let Some(spent) = self.spent.get_mut(self.step as usize) {
            *spent += now - self.since;
        }
        self.since = now;
        std::mem::replace(&mut self.step, step)
    }
}

impl Stopwatch {
    /// Begins with `step`.
    pub fn start(step: Step) -> Self {
        Self(Arc::new(Mutex::new(Laps { since: Instant::now(), step, spent: Default::default() })))
    }

    fn laps(&self) -> MutexGuard<'_, Laps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the time is that of `step`; the one that it was of before.
    pub fn turn(&self, step: Step) -> Step {
        self.laps().turn(step)
    }

    /// The seconds of each step so far.
    pub fn seconds(&self) -> Vec<(Step, f64)> {
        let mut laps = self.laps();
        let step = laps.step;
        laps.turn(step);
        Step::ALL
            .into_iter()
            .zip(laps.spent)
            .map(|(step, spent)| (step, spent.as_secs_f64()))
            .collect()
    }
}

/// A reader whose time counts as that of a step, less what those inside it count as theirs.
pub struct Clocked<R> {
    inner: R,
    watch: Option<(Stopwatch, Step)>,
}

impl<R> Clocked<R> {
    /// `inner`, counted where there is a watch.
    pub fn new(inner: R, watch: Option<&Stopwatch>, step: Step) -> Self {
        Self { inner, watch: watch.map(|watch| (watch.clone(), step)) }
    }
}

impl<R: Read> Read for Clocked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((watch, step)) = &self.watch else { return self.inner.read(buffer) };
        let before = watch.turn(*step);
        let read = self.inner.read(buffer);
        watch.turn(before);
        read
    }
}

impl<R: BufRead> BufRead for Clocked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let Some((watch, step)) = &self.watch else { return self.inner.fill_buf() };
        let before = watch.turn(*step);
        let filled = self.inner.fill_buf();
        watch.turn(before);
        filled
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a little time at each read.
    struct Slow<R>(R);

    impl<R: Read> Read for Slow<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let until = Instant::now() + Duration::from_millis(3);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            self.0.read(buffer)
        }
    }

    #[test]
    fn the_time_of_all_steps_together_is_the_time_that_went_by() {
        let began = Instant::now();
        let watch = Stopwatch::start(Step::Restore);
        let inner = Clocked::new(Slow(&b"four"[..]), Some(&watch), Step::Fetch);
        let mut outer = Clocked::new(Slow(inner), Some(&watch), Step::Digest);
        let mut text = String::new();
        outer.read_to_string(&mut text).unwrap();
        let spent = watch.seconds();
        let all = began.elapsed().as_secs_f64();
        let of = |wanted| spent.iter().find(|(step, _)| *step == wanted).unwrap().1;
        assert!(of(Step::Fetch) >= 0.006 && of(Step::Digest) >= 0.006, "{spent:?}");
        let sum: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
        assert!(sum <= all && sum > 0.5 * all, "{sum} of {all}");
        assert_eq!(watch.turn(Step::Checks), Step::Restore);
    }
}
