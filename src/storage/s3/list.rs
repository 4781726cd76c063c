//! Listing a bucket to its end, page by page.

use std::sync::Arc;

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::{Bucket, time};
use crate::model::LARGEST_TOTAL;
use crate::storage::{Object, StorageError, named};

/// So many pages may be empty one after the other before the store is taken to be broken.
const MAX_EMPTY_PAGES: usize = 1_000;

/// So many folders beside the root are told.
const MOST_FOLDERS: usize = 5;

/// A listing that believes a store only what fits together: what is taken for the whole of it
/// decides what is deleted.
pub(super) struct Listing {
    bucket: Arc<Bucket>,
    shown: String,
    /// The prefix in the bucket.
    full: String,
    token: Option<String>,
    /// The key before.
    last: String,
    empty_pages: usize,
    done: bool,
}

impl Listing {
    pub(super) fn new(bucket: Arc<Bucket>, prefix: &str) -> Self {
        let full = bucket.full(prefix);
        Self {
            bucket,
            shown: prefix.to_owned(),
            full,
            token: None,
            last: String::new(),
            empty_pages: 0,
            done: false,
        }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<Object, StorageError>> {
        stream::try_unfold(self, |mut listing| async move {
            Ok(listing
                .next_page()
                .await?
                .map(|page| (stream::iter(page.into_iter().map(Ok)), listing)))
        })
        .try_flatten()
        .boxed()
    }

    async fn next_page(&mut self) -> Result<Option<Vec<Object>>, StorageError> {
        if self.done {
            return Ok(None);
        }
        let bucket = Arc::clone(&self.bucket);
        let page = page(&bucket, &self.shown, &self.full, self.token.clone(), None).await?;
        let mut objects = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let full = object.key().unwrap_or_default();
            let Some(key) =
                full.strip_prefix(bucket.prefix.as_str()).filter(|_| full.starts_with(&self.full))
            else {
                return Err(self.lie(&format!("it has {full:?}, which is not under the prefix")));
            };
            if full <= self.last.as_str() {
                return Err(self.lie(&format!("{full:?} comes after {:?}", self.last)));
            }
            full.clone_into(&mut self.last);
            // Consoles make such an object for an empty folder.
            if key.is_empty() || key.ends_with('/') {
                continue;
            }
            let object = listed(object, key.to_owned());
            objects.push(object.ok_or_else(|| self.lie(&format!("{full:?} has no size or time")))?);
        }
        self.empty_pages =
            if page.contents().is_empty() { self.empty_pages.saturating_add(1) } else { 0 };
        if page.is_truncated() == Some(true) {
            let next = page.next_continuation_token().map(ToOwned::to_owned);
            if next.is_none() || next == self.token || self.empty_pages > MAX_EMPTY_PAGES {
                return Err(self.lie("it goes on, but does not say where"));
            }
            self.token = next;
        } else {
            self.done = true;
        }
        Ok(Some(objects))
    }

    fn lie(&self, problem: &str) -> StorageError {
        self.bucket.failed(
            &format!("list {}", named(&self.shown)),
            format!("the listing cannot be trusted: {problem}"),
        )
    }
}

/// An object as a page tells of it; none when the page does not tell enough.
pub(super) fn listed(object: &aws_sdk_s3::types::Object, key: String) -> Option<Object> {
    let size = u64::try_from(object.size()?).ok().filter(|size| *size <= LARGEST_TOTAL)?;
    let modified = object.last_modified().and_then(time)?;
    Some(Object { key, size, modified, irregular: None })
}

/// One page of the listing of `prefix`, which messages call `shown`.
pub(super) async fn page(
    bucket: &Bucket,
    shown: &str,
    prefix: &str,
    token: Option<String>,
    limit: Option<i32>,
) -> Result<ListObjectsV2Output, StorageError> {
    tracing::debug!(bucket = bucket.name, prefix, "list");
    let request = bucket
        .client
        .list_objects_v2()
        .bucket(&bucket.name)
        .prefix(prefix)
        .set_continuation_token(token)
        .set_max_keys(limit)
        .customize()
        .interceptor(Whole);
    let answer = bucket.answer(Box::pin(request.send())).await;
    answer.map_err(|fault| fault.into_error(bucket, &format!("list {}", named(shown))))
}

/// The first folders of the bucket, without the one that is the root; none where they may not be
/// listed.
pub(super) async fn folders(bucket: &Bucket) -> Vec<String> {
    let request = bucket.client.list_objects_v2().bucket(&bucket.name).delimiter("/").max_keys(100);
    let page = match bucket.answer(Box::pin(request.send())).await {
        Ok(page) => page,
        Err(fault) => {
            tracing::debug!(bucket = bucket.name, "its folders are not listed: {fault:?}");
            return Vec::new();
        }
    };
    let names = page.common_prefixes().iter().filter_map(|one| one.prefix()?.strip_suffix('/'));
    names
        .filter(|name| !name.is_empty() && !bucket.prefix.starts_with(&format!("{name}/")))
        .filter(|name| !name.contains(char::is_control))
        .take(MOST_FOLDERS)
        .map(str::to_owned)
        .collect()
}

/// Refuses a page that was cut. The SDK reads what there is of it, and takes the end of the text
/// for the end of the page.
#[derive(Debug)]
struct Whole;

impl Intercept for Whole {
    fn name(&self) -> &'static str {
        "Whole"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let body = response.body().bytes().unwrap_or_default().trim_ascii_end();
        if response.status().is_success() && !body.ends_with(b"ListBucketResult>") {
            return Err("the page of the listing is not whole".into());
        }
        Ok(())
    }
}
