//! A limit on bytes a second.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::model::{Cancel, Rate};

/// Lets bytes through at a rate, for threads that may block and for tasks. Shared: all who hold a
/// clone together keep to the rate.
///
/// Who comes waits until all that passed before is paid for at the rate, and then passes whole. So
/// over any time no more passes than the rate allows and one piece, and a time of silence saves up
/// nothing.
#[derive(Clone)]
pub struct Throttle {
    rate: Rate,
    /// When all that passed is paid for.
    paid: Arc<Mutex<Instant>>,
}

impl Throttle {
    /// A throttle of `rate`.
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits until `bytes` more may pass, or until cancelled.
    pub fn wait(&self, bytes: u64, cancel: &Cancel) {
        let delay = self.book(bytes);
        if delay.is_zero() {
            return;
        }
        let (sender, receiver) = mpsc::channel();
        let _guard = cancel.on_cancel(move || {
            // The receiver is gone when the time was over first.
            let _ = sender.send(());
        });
        let _ = receiver.recv_timeout(delay);
    }

    /// The same for async code.
    pub async fn pass(&self, bytes: u64, cancel: &Cancel) {
        let delay = self.book(bytes);
        if delay.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = cancel.cancelled() => {}
        }
    }

    /// Puts `bytes` on the account, and returns how long those before them take.
    fn book(&self, bytes: u64) -> Duration {
        let now = Instant::now();
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.rate.bytes_per_second() as f64)
            .unwrap_or(LONGEST);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid).max(now);
        *paid = start.checked_add(cost.min(LONGEST)).unwrap_or(start);
        start.duration_since(now)
    }
}

/// The longest that one piece is made to cost, so that times can be added.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Throttle;
    use crate::model::{Cancel, Rate};

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    #[test]
    fn threads_that_share_a_throttle_keep_to_the_rate_together() {
        let (throttle, cancel) = (Throttle::new(rate("1MB/s")), Cancel::new());
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| throttle.wait(20_000, &cancel)));
            }
        });
        // 20 pieces of 20 ms, of which the last is not waited for.
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(375) && took < Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test]
    async fn a_wait_of_years_ends_when_cancelled() {
        let (throttle, cancel) = (Throttle::new(rate("1B/s")), Cancel::new());
        throttle.wait(u64::MAX, &cancel);
        let waiting = tokio::spawn({
            let (throttle, cancel) = (throttle.clone(), cancel.clone());
            async move { throttle.pass(1, &cancel).await }
        });
        let blocked = std::thread::spawn({
            let cancel = cancel.clone();
            move || throttle.wait(1, &cancel)
        });
        tokio::task::yield_now().await;
        cancel.cancel();
        assert!(waiting.await.is_ok());
        assert!(blocked.join().is_ok());
    }
}
