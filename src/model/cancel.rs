//! Stopping a run: one flag that every thread and task of it watches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    next: AtomicU64,
    callbacks: Mutex<Vec<(u64, Callback)>>,
    notify: tokio::sync::Notify,
}

/// A request to stop, shared by everything that belongs to one run. Once asked for it stays asked
/// for.
///
/// Blocking code looks at [`Cancel::is_cancelled`] or registers a callback that unblocks it
/// (killing a child, say); async code awaits [`Cancel::cancelled`].
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

/// Keeps a callback registered; dropping it takes the callback back.
#[must_use = "dropping the guard takes the callback back"]
pub struct CancelGuard {
    cancel: Cancel,
    id: u64,
}

impl Cancel {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that shares this token to stop. Runs the registered callbacks, once, on this
    /// thread.
    pub fn cancel(&self) {
        let callbacks = {
            let mut callbacks = self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.cancelled.store(true, Ordering::SeqCst);
            std::mem::take(&mut *callbacks)
        };
        for (_, callback) in callbacks {
            callback();
        }
        self.0.notify.notify_waiters();
    }

    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Runs `callback` when the token is cancelled, at once if it already is. It must be short and
    /// must not block.
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) -> CancelGuard {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let guard = CancelGuard { cancel: self.clone(), id };
        {
            let mut callbacks = self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_cancelled() {
                callbacks.push((id, Box::new(callback)));
                return guard;
            }
        }
        callback();
        guard
    }

    /// Completes when the token is cancelled.
    pub async fn cancelled(&self) {
        loop {
            let notified = self.0.notify.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        let mut callbacks = self.cancel.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Cancel;

    #[test]
    fn callbacks_run_once_and_only_while_registered() {
        let cancel = Cancel::new();
        let count = Arc::new(AtomicUsize::new(0));
        let bump = || {
            let count = Arc::clone(&count);
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        drop(cancel.on_cancel(bump()));
        let _kept = cancel.on_cancel(bump());
        cancel.cancel();
        cancel.cancel();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let _late = cancel.on_cancel(bump());
        assert_eq!(count.load(Ordering::SeqCst), 2, "a late callback runs at once");
    }

    #[tokio::test]
    async fn a_waiter_wakes_when_cancelled_before_or_after_it_began_to_wait() {
        let cancel = Cancel::new();
        let waiting = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.cancelled().await }
        });
        tokio::task::yield_now().await;
        cancel.cancel();
        assert!(waiting.await.is_ok());
        cancel.cancelled().await;
    }
}
