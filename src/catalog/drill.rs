//! The drills of this machine, each with its evidence.

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _};

use super::{Catalog, CatalogError, parsed, word};
use crate::model::{Name, SnapshotId, Verdict};

/// How many drills of a strategy are remembered, besides the last that passed and the last that
/// failed.
const REMEMBERED_DRILLS: i64 = 200;

const COLUMNS: &str =
    "SELECT id, instance, strategy, snapshot, started, finished, verdict, report FROM drill";

/// A drill as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillRecord {
    /// The drill's own id.
    pub id: SnapshotId,
    pub instance: Name,
    pub strategy: Name,
    /// The snapshot, where there was one.
    pub snapshot: Option<SnapshotId>,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How it judged the snapshot.
    pub verdict: Verdict,
    /// The whole report, as JSON.
    pub report: String,
}

fn record(row: &SqliteRow) -> Result<DrillRecord, sqlx::Error> {
    let snapshot: Option<String> = row.try_get("snapshot")?;
    Ok(DrillRecord {
        id: parsed(row, "id")?,
        instance: parsed(row, "instance")?,
        strategy: parsed(row, "strategy")?,
        snapshot: snapshot.map(|_| parsed(row, "snapshot")).transpose()?,
        started: parsed(row, "started")?,
        finished: parsed(row, "finished")?,
        verdict: word(row, "verdict")?,
        report: row.try_get("report")?,
    })
}

impl Catalog {
    /// Records a drill that ended, and forgets the oldest ones of the strategy.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn record_drill(&self, drill: &DrillRecord) -> Result<(), CatalogError> {
        let mut connection = self.connection.lock().await;
        let write = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query(
                "INSERT INTO drill (id, instance, strategy, snapshot, started, finished, verdict, \
                 report) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(drill.id.as_str())
            .bind(drill.instance.as_str())
            .bind(drill.strategy.as_str())
            .bind(drill.snapshot.as_ref().map(SnapshotId::as_str))
            .bind(drill.started.to_rfc3339())
            .bind(drill.finished.to_rfc3339())
            .bind(drill.verdict.as_str())
            .bind(&drill.report)
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "DELETE FROM drill WHERE instance = ?1 AND strategy = ?2 \
                 AND number <= (SELECT number FROM drill WHERE instance = ?1 AND strategy = ?2 \
                 ORDER BY number DESC LIMIT 1 OFFSET ?3) \
                 AND number NOT IN (SELECT max(number) FROM drill WHERE instance = ?1 AND strategy \
                 = ?2 GROUP BY verdict)",
            )
            .bind(drill.instance.as_str())
            .bind(drill.strategy.as_str())
            .bind(REMEMBERED_DRILLS)
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await
        };
        write.await.map_err(self.failed("write"))
    }

    /// The last drill of the strategy that came to one of `verdicts`; any drill when there are
    /// none.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn last_drill(
        &self,
        instance: &Name,
        strategy: &Name,
        verdicts: &[Verdict],
    ) -> Result<Option<DrillRecord>, CatalogError> {
        let sql = format!(
            "{COLUMNS} WHERE instance = ? AND strategy = ? AND (? OR verdict IN (SELECT value FROM \
             json_each(?))) ORDER BY number DESC LIMIT 1"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(instance.as_str())
            .bind(strategy.as_str())
            .bind(verdicts.is_empty())
            .bind(serde_json::json!(verdicts).to_string());
        self.one(query, record).await
    }

    /// The drills of an instance, the newest first.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn drills(&self, instance: &Name) -> Result<Vec<DrillRecord>, CatalogError> {
        let sql = format!("{COLUMNS} WHERE instance = ? ORDER BY number DESC");
        self.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(instance.as_str()), record).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_drills_are_remembered_and_the_last_that_passed_however_old() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        let (shop, daily): (Name, Name) = ("shop".parse().unwrap(), "daily".parse().unwrap());
        let drill = |number: u32, verdict: Verdict| {
            let at = DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(i64::from(number));
            DrillRecord {
                id: SnapshotId::new(at, [0, (number >> 8) as u8, number as u8]),
                instance: shop.clone(),
                strategy: daily.clone(),
                snapshot: (verdict != Verdict::Inconclusive)
                    .then(|| SnapshotId::new(DateTime::UNIX_EPOCH, [0; 3])),
                started: at,
                finished: at,
                verdict,
                report: "{}".to_owned(),
            }
        };
        catalog.record_drill(&drill(0, Verdict::Passed)).await.unwrap();
        for number in 1..250 {
            catalog.record_drill(&drill(number, Verdict::Inconclusive)).await.unwrap();
        }
        assert_eq!(
            catalog.last_drill(&shop, &daily, &[Verdict::Passed]).await.unwrap(),
            Some(drill(0, Verdict::Passed))
        );
        assert_eq!(
            catalog.last_drill(&shop, &daily, &[]).await.unwrap(),
            Some(drill(249, Verdict::Inconclusive))
        );
        assert_eq!(catalog.last_drill(&shop, &daily, &[Verdict::Failed]).await.unwrap(), None);
        assert_eq!(catalog.last_drill(&shop, &shop, &[]).await.unwrap(), None);
        assert_eq!(catalog.drills(&shop).await.unwrap().len(), 201);
    }
}
