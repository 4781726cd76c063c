//! What was read from the storages: their manifests and marks, so that a listing need not read them
//! again.

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _};

use super::{Catalog, CatalogError, parsed};
use crate::model::{Name, SnapshotId, SnapshotRef};

/// The largest manifest that is held in memory together with all others, in bytes.
pub const LARGEST_BULK: u64 = 1 << 20;

/// A manifest as it was read from a storage, with what tells whether it still is the same object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedManifest {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// Size of the object, in bytes.
    pub size: u64,
    /// When the storage says it was written.
    pub modified: DateTime<Utc>,
    pub body: Vec<u8>,
}

/// A mark as it was read from a storage, with what tells whether it still is the same object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedMark {
    pub key: String,
    /// Size of the object, in bytes.
    pub size: u64,
    /// When the storage says it was written.
    pub modified: DateTime<Utc>,
    pub body: Vec<u8>,
}

impl Catalog {
    /// The manifests that were read from the storage at `address` and were there when it was last
    /// listed. Those of more than [`LARGEST_BULK`] come without a body.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn manifests(&self, address: &str) -> Result<Vec<CachedManifest>, CatalogError> {
        let query = sqlx::query(
            "SELECT instance, strategy, id, size, modified, CASE WHEN length(body) <= ? THEN body \
             ELSE x'' END AS body FROM manifest WHERE address = ? AND gone IS NULL",
        )
        .bind(i64::try_from(LARGEST_BULK).unwrap_or(i64::MAX))
        .bind(address);
        self.all(query, cached_manifest).await
    }

    /// Takes in manifests of the storage at `address`, and notes which are `gone` from it, all or
    /// nothing. What is gone stays known, until [`Catalog::forget`] or until it is seen again:
    /// nobody has said yet why it is gone.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn update_manifests(
        &self,
        address: &str,
        added: &[CachedManifest],
        gone: &[SnapshotRef],
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        if added.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection.lock().await;
        let write = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            for SnapshotRef { instance, strategy, id } in gone {
                sqlx::query(
                    "UPDATE manifest SET gone = ? WHERE address = ? AND instance = ? AND strategy \
                     = ? AND id = ?",
                )
                .bind(now.to_rfc3339())
                .bind(address)
                .bind(instance.as_str())
                .bind(strategy.as_str())
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
            }
            for manifest in added {
                sqlx::query(
                    "INSERT OR REPLACE INTO manifest (address, instance, strategy, id, size, \
                     modified, body) \
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(address)
                .bind(manifest.instance.as_str())
                .bind(manifest.strategy.as_str())
                .bind(manifest.id.as_str())
                .bind(i64::try_from(manifest.size).unwrap_or(i64::MAX))
                .bind(manifest.modified.to_rfc3339())
                .bind(manifest.body.as_slice())
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await
        };
        write.await.map_err(self.failed("write"))
    }

    /// The manifests of the strategy that were in the storage at `address` once, are not there any
    /// more, and were not forgotten; oldest first.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn gone(
        &self,
        address: &str,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Vec<CachedManifest>, CatalogError> {
        let query = sqlx::query(
            "SELECT instance, strategy, id, size, modified, body FROM manifest \
             WHERE address = ? AND instance = ? AND strategy = ? AND gone IS NOT NULL ORDER BY id",
        )
        .bind(address)
        .bind(instance.as_str())
        .bind(strategy.as_str());
        self.all(query, cached_manifest).await
    }

    /// Forgets a snapshot in the storage at `address`: that it is gone is explained.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn forget(
        &self,
        address: &str,
        instance: &Name,
        strategy: &Name,
        id: &SnapshotId,
    ) -> Result<(), CatalogError> {
        self.execute(
            sqlx::query(
                "DELETE FROM manifest WHERE address = ? AND instance = ? AND strategy = ? \
                AND id = ?",
            )
            .bind(address)
            .bind(instance.as_str())
            .bind(strategy.as_str())
            .bind(id.as_str()),
        )
        .await
    }

    /// The marks that were read from the storage at `address`.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn marks(&self, address: &str) -> Result<Vec<CachedMark>, CatalogError> {
        let query = sqlx::query("SELECT key, size, modified, body FROM mark WHERE address = ?")
            .bind(address);
        self.all(query, |row| {
            Ok(CachedMark {
                key: row.try_get("key")?,
                size: row.try_get::<i64, _>("size")?.unsigned_abs(),
                modified: parsed(row, "modified")?,
                body: row.try_get("body")?,
            })
        })
        .await
    }

    /// Takes in and takes out marks of the storage at `address`, all or nothing.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn update_marks(
        &self,
        address: &str,
        added: &[CachedMark],
        removed: &[String],
    ) -> Result<(), CatalogError> {
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection.lock().await;
        let write = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            for key in removed {
                sqlx::query("DELETE FROM mark WHERE address = ? AND key = ?")
                    .bind(address)
                    .bind(key)
                    .execute(&mut *transaction)
                    .await?;
            }
            for mark in added {
                sqlx::query(
                    "INSERT OR REPLACE INTO mark (address, key, size, modified, body) \
                    VALUES (?, ?, ?, ?, ?)",
                )
                .bind(address)
                .bind(&mark.key)
                .bind(i64::try_from(mark.size).unwrap_or(i64::MAX))
                .bind(mark.modified.to_rfc3339())
                .bind(mark.body.as_slice())
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await
        };
        write.await.map_err(self.failed("write"))
    }

    /// Forgets every manifest and mark, so that the next listing reads them anew.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn clear(&self) -> Result<(), CatalogError> {
        let mut connection = self.connection.lock().await;
        sqlx::raw_sql("DELETE FROM manifest; DELETE FROM mark")
            .execute(&mut *connection)
            .await
            .map(|_| ())
            .map_err(self.failed("write"))
    }

    /// The manifests of the strategy that were in the storage at `address` when it was last listed,
    /// oldest first.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn manifests_of(
        &self,
        address: &str,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Vec<CachedManifest>, CatalogError> {
        let query = sqlx::query(
            "SELECT instance, strategy, id, size, modified, body FROM manifest \
             WHERE address = ? AND instance = ? AND strategy = ? AND gone IS NULL ORDER BY id",
        )
        .bind(address)
        .bind(instance.as_str())
        .bind(strategy.as_str());
        self.all(query, cached_manifest).await
    }
}

/// A row of the manifests.
fn cached_manifest(row: &SqliteRow) -> Result<CachedManifest, sqlx::Error> {
    Ok(CachedManifest {
        instance: parsed(row, "instance")?,
        strategy: parsed(row, "strategy")?,
        id: parsed(row, "id")?,
        size: row.try_get::<i64, _>("size")?.unsigned_abs(),
        modified: parsed(row, "modified")?,
        body: row.try_get("body")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn id(salt: u8) -> SnapshotId {
        SnapshotId::new(DateTime::UNIX_EPOCH, [0, 0, salt])
    }

    fn manifest(salt: u8) -> CachedManifest {
        CachedManifest {
            instance: name("ella"),
            strategy: name("daily"),
            id: id(salt),
            size: 3,
            modified: DateTime::UNIX_EPOCH,
            body: vec![1, 2, salt],
        }
    }

    #[tokio::test]
    async fn manifests_are_kept_by_storage_and_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        let now = DateTime::UNIX_EPOCH;
        catalog.update_manifests("/a", &[manifest(1), manifest(2)], &[], now).await.unwrap();
        catalog.update_manifests("/b", &[manifest(3)], &[], now).await.unwrap();
        catalog
            .update_manifests(
                "/a",
                &[],
                &[SnapshotRef { instance: name("ella"), strategy: name("daily"), id: id(1) }],
                now,
            )
            .await
            .unwrap();
        drop(catalog);
        let catalog = Catalog::open(folder.path()).await.unwrap();
        assert_eq!(catalog.manifests("/a").await.unwrap(), [manifest(2)]);
        assert_eq!(catalog.manifests("/b").await.unwrap(), [manifest(3)]);
        catalog.clear().await.unwrap();
        assert!(catalog.manifests("/b").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_gone_stays_known_until_it_is_explained_or_seen_again() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        let (instance, strategy) = (name("ella"), name("daily"));
        let place = |salt| SnapshotRef {
            instance: instance.clone(),
            strategy: strategy.clone(),
            id: id(salt),
        };
        let now = DateTime::UNIX_EPOCH;
        catalog
            .update_manifests("/a", &[manifest(1), manifest(2), manifest(3)], &[], now)
            .await
            .unwrap();
        assert!(catalog.gone("/a", &instance, &strategy).await.unwrap().is_empty());
        catalog.update_manifests("/a", &[], &[place(1), place(2)], now).await.unwrap();
        assert_eq!(catalog.manifests("/a").await.unwrap(), [manifest(3)]);
        assert_eq!(
            catalog.gone("/a", &instance, &strategy).await.unwrap(),
            [manifest(1), manifest(2)]
        );
        assert!(catalog.gone("/b", &instance, &strategy).await.unwrap().is_empty());
        assert!(catalog.gone("/a", &instance, &name("weekly")).await.unwrap().is_empty());
        catalog.forget("/a", &instance, &strategy, &id(1)).await.unwrap();
        catalog.update_manifests("/a", &[manifest(2)], &[], now).await.unwrap();
        assert!(catalog.gone("/a", &instance, &strategy).await.unwrap().is_empty());
        assert_eq!(catalog.manifests("/a").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn marks_are_kept_by_storage() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        let mark = |key: &str| CachedMark {
            key: key.to_owned(),
            size: 1,
            modified: DateTime::UNIX_EPOCH,
            body: vec![1],
        };
        catalog.update_marks("/a", &[mark("x"), mark("y")], &[]).await.unwrap();
        catalog.update_marks("/a", &[mark("z")], &["x".to_owned()]).await.unwrap();
        assert_eq!(catalog.marks("/a").await.unwrap(), [mark("y"), mark("z")]);
        assert!(catalog.marks("/b").await.unwrap().is_empty());
    }
}
