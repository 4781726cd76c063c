//! How long a storage may take to answer.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream, StreamExt as _};

use super::{
    Capabilities, CreateOptions, Object, ObjectLock, Storage, StorageError, StorageErrorKind,
    Upload, named,
};
use crate::model::Span;

/// `timeout` where none is configured.
pub(super) fn default_timeout() -> Span {
    Span::from(Duration::from_secs(10))
}

/// A storage that has not answered for so long is named.
const SLOW: Duration = Duration::from_secs(3);

/// What becomes of a storage that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It is tried again, as often as is configured: for runs, and what changes storages.
    Unattended,
    /// After `timeout` it is given up and not asked again: for a command that shows something.
    Watched,
}

/// A storage whose answers are waited for as its `timeout` says.
pub(super) struct Patient {
    inner: Box<dyn Storage>,
    rules: Arc<Rules>,
}

struct Rules {
    /// The storage, as it is named while it is waited for.
    name: String,
    address: String,
    /// How long one answer is waited for, where the storage itself does not end the wait.
    limit: Option<Duration>,
    /// How long the content of an object may stay away.
    stall: Option<Duration>,
    gives_up: bool,
    /// Why it is not asked again.
    silent: Mutex<Option<String>>,
    was_named: AtomicBool,
}

impl Patient {
    /// `limit` is how long each answer of `inner` is waited for; none where it sees to that itself.
    pub(super) fn new(
        inner: Box<dyn Storage>,
        name: &str,
        patience: Patience,
        (timeout, limit): (Duration, Option<Duration>),
    ) -> Self {
        let gives_up = patience == Patience::Watched;
        let rules = Rules {
            name: name.to_owned(),
            address: inner.address(),
            limit,
            stall: gives_up.then_some(timeout),
            gives_up,
            silent: Mutex::default(),
            was_named: AtomicBool::new(false),
        };
        Self { inner, rules: Arc::new(rules) }
    }
}

impl Rules {
    /// Waits for an answer, at most `limit`.
    async fn wait<T>(
        &self,
        attempt: impl Fn() -> String,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(problem) = silent {
            return Err(self.unavailable(attempt(), problem));
        }
        let limit = limit.unwrap_or(Duration::MAX);
        let mut work = pin!(work);
        let soon = SLOW.min(limit);
        let result = match tokio::time::timeout(soon, &mut work).await {
            Ok(result) => Ok(result),
            Err(_) if limit <= SLOW => Err(()),
            Err(_) => {
                if !self.was_named.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        storage = self.name,
                        "no answer for {} s, still waiting for `{}`",
                        SLOW.as_secs(),
                        self.address
                    );
                }
                tokio::time::timeout(limit.saturating_sub(soon), work).await.map_err(|_| ())
            }
        };
        let result = result.unwrap_or_else(|()| {
            let problem = format!(
                "no answer for {}; check that it can be reached, or raise `timeout`",
                Span::from(limit)
            );
            Err(self.unavailable(attempt(), problem))
        });
        match &result {
            Err(error) if error.may_pass() && self.gives_up => {
                let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
                silent.get_or_insert_with(|| error.problem().to_owned());
            }
            _ => {}
        }
        result
    }

    fn unavailable(&self, attempt: String, problem: String) -> StorageError {
        StorageError::new(StorageErrorKind::Unavailable, &self.address, attempt, problem)
    }

    /// The items of `items`, each waited for at most `limit`.
    fn each<T: Send + 'static>(
        self: &Arc<Self>,
        attempt: String,
        limit: Option<Duration>,
        items: BoxStream<'static, Result<T, StorageError>>,
    ) -> BoxStream<'static, Result<T, StorageError>> {
        let state = Some((Arc::clone(self), items));
        stream::unfold((state, attempt), move |(state, attempt)| async move {
            let (rules, mut items) = state?;
            let next = async { items.next().await.transpose() };
            let next = rules.wait(|| attempt.clone(), limit, next).await.transpose()?;
            let state = next.is_ok().then_some((rules, items));
            Some((next, (state, attempt)))
        })
        .boxed()
    }
}

#[async_trait]
impl Storage for Patient {
    fn address(&self) -> String {
        self.inner.address()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn local_path(&self) -> Option<&Path> {
        self.inner.local_path()
    }

    async fn create(
        &self,
        key: &str,
        options: CreateOptions,
    ) -> Result<Box<dyn Upload>, StorageError> {
        self.inner.create(key, options).await
    }

    async fn replace(&self, key: &str, body: Bytes) -> Result<(), StorageError> {
        let work = self.inner.replace(key, body);
        self.rules.wait(|| format!("write `{key}`"), None, work).await
    }

    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        let (rules, attempt) = (&self.rules, format!("read `{key}`"));
        let work = self.inner.read(key, range);
        let items = rules.wait(|| attempt.clone(), rules.stall, work).await?;
        Ok(if rules.stall.is_some() { rules.each(attempt, rules.stall, items) } else { items })
    }

    async fn read_document(
        &self,
        key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        let (rules, attempt) = (&self.rules, format!("read `{key}`"));
        let work = self.inner.read_document(key);
        let items = rules.wait(|| attempt.clone(), rules.limit, work).await?;
        Ok(rules.each(attempt, rules.stall.or(rules.limit), items))
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Object, StorageError>> {
        let attempt = format!("list {}", named(prefix));
        self.rules.each(attempt, self.rules.limit, self.inner.list(prefix))
    }

    async fn beside(&self) -> Vec<String> {
        let work = async { Ok(self.inner.beside().await) };
        let found = self.rules.wait(|| "list folders".to_owned(), self.rules.limit, work).await;
        found.unwrap_or_default()
    }

    async fn stat(&self, key: &str) -> Result<Object, StorageError> {
        let work = self.inner.stat(key);
        self.rules.wait(|| format!("look up `{key}`"), self.rules.limit, work).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let work = self.inner.delete(key);
        self.rules.wait(|| format!("delete `{key}`"), self.rules.limit, work).await
    }

    async fn lock_of(&self, key: &str) -> Result<Option<ObjectLock>, StorageError> {
        let work = self.inner.lock_of(key);
        self.rules.wait(|| format!("ask for the lock of `{key}`"), self.rules.limit, work).await
    }

    async fn sweep_uploads(
        &self,
        prefix: &str,
        before: DateTime<Utc>,
    ) -> Result<u64, StorageError> {
        let work = self.inner.sweep_uploads(prefix, before);
        self.rules.wait(|| format!("sweep {}", named(prefix)), None, work).await
    }

    async fn probe(&self, key: &str, body: Bytes) -> Result<Capabilities, StorageError> {
        let work = self.inner.probe(key, body);
        self.rules.wait(|| format!("write `{key}`"), None, work).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        self.rules.wait(|| "ask for the time".to_owned(), self.rules.limit, self.inner.now()).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let work = self.inner.free_bytes();
        self.rules.wait(|| "ask for free space".to_owned(), self.rules.limit, work).await
    }

    async fn lock(&self, folder: &str) -> Result<Option<Box<dyn Send + Sync>>, StorageError> {
        let work = self.inner.lock(folder);
        self.rules.wait(|| format!("lock `{folder}`"), self.rules.limit, work).await
    }

    fn max_object_bytes(&self) -> Option<u64> {
        self.inner.max_object_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cancel;
    use crate::storage::StorageConfig;
    use crate::storage::local::{Local, LocalConfig};

    const TIMEOUT: Duration = Duration::from_millis(100);

    fn rules(patience: Patience) -> Arc<Rules> {
        let inner = Box::new(Local::open(&LocalConfig::from_path("/nowhere")));
        Patient::new(inner, "disk", patience, (TIMEOUT, Some(TIMEOUT))).rules
    }

    /// How long a hung answer is waited for.
    async fn waited(rules: &Rules) -> Duration {
        let began = std::time::Instant::now();
        let hangs = std::future::pending::<Result<(), _>>();
        let attempt = || "look up `a`".to_owned();
        let error = rules.wait(attempt, rules.limit, hangs).await.unwrap_err();
        assert!(error.may_pass() && error.is_about_reaching(), "{error}");
        began.elapsed()
    }

    #[tokio::test]
    async fn a_watched_storage_that_hangs_is_asked_once() {
        let rules = rules(Patience::Watched);
        assert!(waited(&rules).await >= TIMEOUT);
        assert!(waited(&rules).await < TIMEOUT);
        let items = stream::iter([Ok(1)]).boxed();
        let mut listing = rules.each("list `a`".to_owned(), rules.limit, items);
        assert!(listing.next().await.unwrap().is_err());
        assert!(listing.next().await.is_none());
    }

    #[tokio::test]
    async fn unattended_work_asks_again() {
        let rules = rules(Patience::Unattended);
        assert!(waited(&rules).await >= TIMEOUT);
        assert!(waited(&rules).await >= TIMEOUT);
        let config = LocalConfig::from_path("/nowhere");
        let timeout = config.timeout.duration();
        assert_eq!(config.waits(Patience::Watched), (timeout, Some(timeout)));
        assert_eq!(config.waits(Patience::Unattended), (timeout, Some(timeout * 6)));
    }

    #[tokio::test]
    async fn a_long_listing_is_not_a_silent_one() {
        let rules = rules(Patience::Watched);
        let slow = stream::unfold(0, |at| async move {
            tokio::time::sleep(TIMEOUT / 10).await;
            (at < 30).then_some((Ok(at), at + 1))
        });
        let all = rules.each("list `a`".to_owned(), rules.limit, slow.boxed());
        assert_eq!(all.filter(|item| std::future::ready(item.is_ok())).count().await, 30);
        // One that stops midway ends with an error: it is not the whole.
        let stops = stream::iter([Ok(1)]).chain(stream::pending());
        let mut all = rules.each("list `a`".to_owned(), rules.limit, stops.boxed());
        assert!(all.next().await.unwrap().is_ok());
        assert!(all.next().await.unwrap().is_err());
        assert!(all.next().await.is_none());
    }

    #[tokio::test]
    async fn a_missing_object_is_no_silence() {
        let folder = tempfile::tempdir().unwrap();
        let config = StorageConfig::Local(LocalConfig::from_path(folder.path()));
        let storage = config.open_as("disk", Patience::Watched, &Cancel::new()).await.unwrap();
        for _ in 0..2 {
            assert!(storage.stat("a").await.unwrap_err().is_not_found());
        }
    }
}
