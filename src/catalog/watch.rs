//! What a scheduler has to remember of a strategy beyond its runs: since when it looks after it,
//! whether it called it stale, how often its runs ended how, and what the verifications found.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::{Catalog, CatalogError, parsed, word};
use crate::model::{Name, Outcome, VerificationOutcome};

/// A strategy as it is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Since when it is known to be stale, and was said to be; none while it is not.
    pub stale: Option<DateTime<Utc>>,
}

/// A verification that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationRecord {
    pub instance: Name,
    pub strategy: Name,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How it ended.
    pub outcome: VerificationOutcome,
    /// Copies of snapshots that were looked at.
    pub snapshots: u64,
    /// Bytes that were read and held against their digests.
    pub read_bytes: u64,
    /// What is wrong, in words.
    pub problem: Option<String>,
}

impl Catalog {
    /// Notes that the strategy is looked after from `now` on, unless it was before.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn watch(
        &self,
        instance: &Name,
        strategy: &Name,
        now: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, CatalogError> {
        if let Some(watched) = self.watched(instance, strategy).await? {
            return Ok(watched.since);
        }
        self.execute(
            sqlx::query(
                "INSERT OR IGNORE INTO watched (instance, strategy, since) VALUES (?, ?, ?)",
            )
            .bind(instance.as_str())
            .bind(strategy.as_str())
            .bind(now.to_rfc3339()),
        )
        .await?;
        Ok(now)
    }

    /// Since when the strategy is looked after; none when it never was.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn watched(
        &self,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Option<Watched>, CatalogError> {
        let query =
            sqlx::query("SELECT since, stale FROM watched WHERE instance = ? AND strategy = ?")
                .bind(instance.as_str())
                .bind(strategy.as_str());
        self.one(query, |row| {
            let stale: Option<String> = row.try_get("stale")?;
            let stale = stale.map(|_| parsed(row, "stale")).transpose()?;
            Ok(Watched { since: parsed(row, "since")?, stale })
        })
        .await
    }

    /// Notes since when a strategy is stale, or that it is not. One that was not looked after
    /// before is from `now` on.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn set_stale(
        &self,
        instance: &Name,
        strategy: &Name,
        stale: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        self.execute(
            sqlx::query(
                "INSERT INTO watched (instance, strategy, since, stale) VALUES \
            (?, ?, ?, ?) ON CONFLICT DO UPDATE SET stale = excluded.stale",
            )
            .bind(instance.as_str())
            .bind(strategy.as_str())
            .bind(now.to_rfc3339())
            .bind(stale.map(|stale| stale.to_rfc3339())),
        )
        .await
    }

    /// Notes that the storage at `address` was listed, if it is for the first time.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn note_listed(&self, address: &str, now: DateTime<Utc>) -> Result<(), CatalogError> {
        if self.first_listed(address).await?.is_some() {
            return Ok(());
        }
        self.execute(
            sqlx::query("INSERT OR IGNORE INTO listed (address, first) VALUES (?, ?)")
                .bind(address)
                .bind(now.to_rfc3339()),
        )
        .await
    }

    /// When the storage at `address` was listed for the first time; none when it never was.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn first_listed(&self, address: &str) -> Result<Option<DateTime<Utc>>, CatalogError> {
        let query = sqlx::query("SELECT first FROM listed WHERE address = ?").bind(address);
        self.one(query, |row| parsed(row, "first")).await
    }

    /// How many runs of the strategy ended how, since the catalog was made.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn tally(
        &self,
        instance: &Name,
        strategy: &Name,
    ) -> Result<BTreeMap<Outcome, u64>, CatalogError> {
        let query =
            sqlx::query("SELECT outcome, runs FROM tally WHERE instance = ? AND strategy = ?")
                .bind(instance.as_str())
                .bind(strategy.as_str());
        self.all(query, |row| {
            Ok((word(row, "outcome")?, row.try_get::<i64, _>("runs")?.unsigned_abs()))
        })
        .await
    }

    /// When the last run of the strategy began that need not be made up for. A run that was
    /// cancelled is, and one that failed for a reason that may pass while fewer than `attempts` in
    /// a row did so.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn last_concluded(
        &self,
        instance: &Name,
        strategy: &Name,
        attempts: u32,
    ) -> Result<Option<DateTime<Utc>>, CatalogError> {
        let mut connection = self.connection.lock().await;
        let rows = sqlx::query(
            "SELECT started, outcome = 'cancelled' AS cancelled, outcome = 'failed' AND \
             json_valid(report) \
             AND coalesce(json_extract(report, '$.may_pass'), 0) AS may_pass \
             FROM run WHERE instance = ? AND strategy = ? ORDER BY number DESC",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str())
        .fetch_all(&mut *connection)
        .await
        .map_err(self.failed("read"))?;
        let conclude = || -> Result<Option<DateTime<Utc>>, sqlx::Error> {
            let mut failed: Vec<DateTime<Utc>> = Vec::new();
            for row in &rows {
                if row.try_get::<bool, _>("cancelled")? {
                    continue;
                }
                if !row.try_get::<bool, _>("may_pass")? {
                    return parsed(row, "started").map(Some);
                }
                failed.push(parsed(row, "started")?);
                if failed.len() >= attempts as usize {
                    return Ok(failed.into_iter().next());
                }
            }
            Ok(None)
        };
        conclude().map_err(self.failed("read"))
    }

    /// How many runs of the strategy failed since the last that committed something, of those that
    /// are remembered.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn failures_in_a_row(
        &self,
        instance: &Name,
        strategy: &Name,
    ) -> Result<u64, CatalogError> {
        let mut connection = self.connection.lock().await;
        sqlx::query(
            "SELECT count(*) AS failures FROM run WHERE instance = ?1 AND strategy = ?2 AND \
             outcome = 'failed' AND number > coalesce(\
             (SELECT max(number) FROM run WHERE instance = ?1 AND strategy = ?2 AND outcome IN \
             ('success', 'problems')), 0)",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str())
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| Ok(row.try_get::<i64, _>("failures")?.unsigned_abs()))
        .map_err(self.failed("read"))
    }

    /// Records a verification that ended, and forgets all but the newest ones of the strategy.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn record_verification(
        &self,
        verification: &VerificationRecord,
    ) -> Result<(), CatalogError> {
        let mut connection = self.connection.lock().await;
        let write = async {
            sqlx::query(
                "INSERT INTO verification (instance, strategy, started, finished, outcome, \
                 snapshots, read_bytes, problem) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(verification.instance.as_str())
            .bind(verification.strategy.as_str())
            .bind(verification.started.to_rfc3339())
            .bind(verification.finished.to_rfc3339())
            .bind(verification.outcome.as_str())
            .bind(i64::try_from(verification.snapshots).unwrap_or(i64::MAX))
            .bind(i64::try_from(verification.read_bytes).unwrap_or(i64::MAX))
            .bind(&verification.problem)
            .execute(&mut *connection)
            .await?;
            sqlx::query(
                "DELETE FROM verification WHERE instance = ?1 AND strategy = ?2 AND number NOT IN \
                 (SELECT number FROM verification WHERE instance = ?1 AND strategy = ?2 ORDER BY \
                 number DESC LIMIT 100)",
            )
            .bind(verification.instance.as_str())
            .bind(verification.strategy.as_str())
            .execute(&mut *connection)
            .await
        };
        write.await.map(|_| ()).map_err(self.failed("write"))
    }

    /// The last verification of the strategy; the last that came to a verdict, where `concluded`.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn last_verification(
        &self,
        instance: &Name,
        strategy: &Name,
        concluded: bool,
    ) -> Result<Option<VerificationRecord>, CatalogError> {
        let query = sqlx::query(
            "SELECT started, finished, outcome, snapshots, read_bytes, problem FROM verification \
             WHERE instance = ? AND strategy = ? AND (NOT ? OR outcome != 'failed') ORDER BY \
             number DESC LIMIT 1",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str())
        .bind(concluded);
        self.one(query, |row| {
            Ok(VerificationRecord {
                instance: instance.clone(),
                strategy: strategy.clone(),
                started: parsed(row, "started")?,
                finished: parsed(row, "finished")?,
                outcome: word(row, "outcome")?,
                snapshots: row.try_get::<i64, _>("snapshots")?.unsigned_abs(),
                read_bytes: row.try_get::<i64, _>("read_bytes")?.unsigned_abs(),
                problem: row.try_get("problem")?,
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{REMEMBERED_RUNS, RunRecord};
    use crate::model::SnapshotId;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }

    async fn catalog() -> (tempfile::TempDir, Catalog) {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        (folder, catalog)
    }

    #[tokio::test]
    async fn since_when_a_strategy_is_looked_after_does_not_change_with_a_restart() {
        let (_folder, catalog) = catalog().await;
        let (shop, daily) = (name("shop"), name("daily"));
        assert_eq!(catalog.watched(&shop, &daily).await.unwrap(), None);
        assert_eq!(catalog.watch(&shop, &daily, at(5)).await.unwrap(), at(5));
        assert_eq!(catalog.watch(&shop, &daily, at(99)).await.unwrap(), at(5));
        catalog.set_stale(&shop, &daily, Some(at(7)), at(99)).await.unwrap();
        let watched = Watched { since: at(5), stale: Some(at(7)) };
        assert_eq!(catalog.watched(&shop, &daily).await.unwrap(), Some(watched));
        catalog.set_stale(&shop, &daily, None, at(99)).await.unwrap();
        assert_eq!(
            catalog.watched(&shop, &daily).await.unwrap(),
            Some(Watched { stale: None, ..watched })
        );
    }

    #[tokio::test]
    async fn years_of_runs_are_counted_and_only_the_newest_remembered_and_the_last_good_one() {
        let (_folder, catalog) = catalog().await;
        let (shop, daily) = (name("shop"), name("daily"));
        let runs = i64::try_from(REMEMBERED_RUNS).unwrap() + 50;
        for number in 0..runs {
            let outcome = if number == 3 { Outcome::Problems } else { Outcome::Failed };
            let run = RunRecord {
                id: SnapshotId::new(at(number), [0; 3]),
                instance: shop.clone(),
                strategy: daily.clone(),
                started: at(number),
                finished: at(number),
                outcome,
                plain_bytes: 0,
                stored_bytes: 0,
                report: String::new(),
            };
            catalog.record_run(&run).await.unwrap();
        }
        let tally = catalog.tally(&shop, &daily).await.unwrap();
        assert_eq!(
            tally,
            BTreeMap::from([(Outcome::Failed, runs as u64 - 1), (Outcome::Problems, 1)])
        );
        let good = catalog.last_run(&shop, &daily, true).await.unwrap().unwrap();
        assert_eq!(good.started, at(3), "however long ago it was");
        assert_eq!(catalog.failures_in_a_row(&shop, &daily).await.unwrap(), REMEMBERED_RUNS as u64);
        assert!(catalog.tally(&shop, &name("weekly")).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_run_that_was_cancelled_or_may_pass_concludes_nothing() {
        let (_folder, catalog) = catalog().await;
        let (shop, daily) = (name("shop"), name("daily"));
        for (number, outcome, report) in [
            (1, Outcome::Success, "{}"),
            (2, Outcome::Failed, "{\"may_pass\":false}"),
            (3, Outcome::Failed, "{\"may_pass\":true}"),
            (4, Outcome::Cancelled, "{\"may_pass\":false}"),
        ] {
            let run = RunRecord {
                id: SnapshotId::new(at(number), [0; 3]),
                instance: shop.clone(),
                strategy: daily.clone(),
                started: at(number),
                finished: at(number),
                outcome,
                plain_bytes: 0,
                stored_bytes: 0,
                report: report.to_owned(),
            };
            catalog.record_run(&run).await.unwrap();
        }
        assert_eq!(catalog.last_concluded(&shop, &daily, 2).await.unwrap(), Some(at(2)));
        assert_eq!(
            catalog.last_concluded(&shop, &daily, 1).await.unwrap(),
            Some(at(3)),
            "no attempt is left"
        );
        assert_eq!(catalog.last_concluded(&shop, &name("weekly"), 2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_last_verification_is_remembered() {
        let (_folder, catalog) = catalog().await;
        let record = |number, outcome| VerificationRecord {
            instance: name("shop"),
            strategy: name("daily"),
            started: at(number),
            finished: at(number + 1),
            outcome,
            snapshots: 5,
            read_bytes: 7,
            problem: (outcome == VerificationOutcome::Damaged).then(|| "a bit".to_owned()),
        };
        let (shop, daily) = (name("shop"), name("daily"));
        for number in 0..150 {
            catalog.record_verification(&record(number, VerificationOutcome::Sound)).await.unwrap();
        }
        catalog.record_verification(&record(150, VerificationOutcome::Damaged)).await.unwrap();
        let last = catalog.last_verification(&name("shop"), &name("daily"), false).await.unwrap();
        assert_eq!(last, Some(record(150, VerificationOutcome::Damaged)));
        catalog.record_verification(&record(151, VerificationOutcome::Failed)).await.unwrap();
        let last = |concluded| catalog.last_verification(&shop, &daily, concluded);
        assert_eq!(last(false).await.unwrap(), Some(record(151, VerificationOutcome::Failed)));
        assert_eq!(
            last(true).await.unwrap(),
            Some(record(150, VerificationOutcome::Damaged)),
            "damage is not forgotten over it"
        );
    }
}
