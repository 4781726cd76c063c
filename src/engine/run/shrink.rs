//! Whether the sources have much less than in the last good snapshot. What disappears from a system
//! is backed up as well as what is there, and retention would then delete the snapshots that have
//! it.

use crate::engine::context::OpenStorage;
use crate::engine::error::chain;
use crate::engine::read::fetch::read_facts;
use crate::engine::run::{Run, RunMember};
use crate::engine::snapshots::list::{Listing, Selection, Snapshot, list};
use crate::model::{
    Artifact, ArtifactKind, ByteSize, Facts, Manifest, Mark, Name, Note, Says, SnapshotId,
    SnapshotRef, Suspector, total,
};
use crate::report::{RunReport, SourceReport};

/// Counts below this are not compared.
const FEW: u64 = 20;
/// Sizes below this are not compared.
const SMALL_BYTES: u64 = 1 << 20;

impl Run<'_> {
    /// Counts what each source has, compares it with the last good snapshot, and says what is much
    /// less.
    pub(super) async fn compare(&mut self, facts: &Facts, artifacts: &[Artifact]) {
        for report in &mut self.reports {
            (report.entries, report.rows) = counts(facts, &report.name);
            report.content_bytes = facts.content_bytes_of(&report.name);
        }
        let listing = self.listing().await;
        for doubt in listing.doubts() {
            self.remarks.note(format!("The sources are not compared with all snapshots: {doubt}"));
        }
        let mut good = listing.snapshots;
        good.retain(|one| !one.is_future && !one.is_suspect);
        good.reverse();
        let remembered = self.remembered().await;
        let mut suspect = false;
        for report in &self.reports {
            let now = Sizes {
                packed: packed(artifacts.iter(), &report.name),
                counted: Some(Counted::of(report)),
            };
            let percent = self.instance.max_shrink_percent(&report.name);
            // A partial one too: at least what it has was there, and where every snapshot is
            // partial there would be nothing to compare with.
            let newest = self.baseline(report, &good).await;
            let known = remembered.as_ref().and_then(|run| of_run(run, report));
            let known =
                known.filter(|(id, _)| newest.as_ref().is_none_or(|(newest, _)| newest != id));
            for (id, then) in newest.into_iter().chain(known) {
                let mut fallen = nothing_left(&report.kind, &then, &now);
                if self.instance.may_be_empty(&report.name) {
                    fallen.clear();
                }
                if fallen.is_empty() && then.has_other_rules(&now) {
                    let note = format!(
                        "Its rules have changed since `{id}`, so the comparison with earlier \
                         snapshots begins anew"
                    );
                    let note = Note { source: Some(report.name.to_string()), ..Note::from(note) };
                    self.remarks.note(note);
                    continue;
                }
                if fallen.is_empty() {
                    fallen = much_less(&report.kind, &then, &now, percent);
                }
                if fallen.is_empty() {
                    continue;
                }
                suspect = true;
                let reason = format!(
                    "{} since `{id}` of {} (`max_shrink_percent` is {percent})",
                    fallen.join(", "),
                    id.time().format("%Y-%m-%d %H:%M UTC")
                );
                let note = Note { source: Some(report.name.to_string()), ..Note::from(reason) };
                tracing::warn!(source = %report.name, "{}", note.reason);
                self.remarks.warn(note);
                break;
            }
        }
        if suspect {
            self.suspect = true;
            self.remarks.warn(format!(
                "The snapshot is suspect: it is kept, but is not `latest`, and nothing of the \
                 strategy is pruned. When it is as it should be, `backup release {} --reason TEXT`",
                self.id
            ));
        }
    }

    /// What is put beside the snapshot before its manifest, where it is suspect.
    pub(super) fn suspicion(&self) -> Option<Mark> {
        let of = SnapshotRef {
            instance: self.instance.name.clone(),
            strategy: self.strategy.name.clone(),
            id: self.id.clone(),
        };
        let reason = "It has much less than the last good snapshot, by its run".to_owned();
        let says = Says::Suspect { reason, by: Suspector::Run };
        let made = self.engine.clock.now_seconds();
        self.suspect.then(|| Mark::new(of, self.id.clone(), made, says))
    }

    /// The last good run that is remembered, where a storage that may have its snapshot is away.
    async fn remembered(&self) -> Option<RunReport> {
        let is_here = |place: &RunMember| place.reached && place.member.is_well();
        if self.unopened.is_empty() && self.members.iter().all(is_here) {
            return None;
        }
        let catalog = self.engine.catalog().await?;
        let last = catalog.last_good_run(&self.instance.name, &self.strategy.name).await;
        let last = last.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        serde_json::from_str(&last?.report).ok()
    }

    /// The snapshots of the strategy in the storages that take part in the run.
    async fn listing(&self) -> Listing {
        let open: Vec<OpenStorage> = self
            .members
            .iter()
            .filter(|place| place.reached && place.member.is_well())
            .map(|place| place.member.open.clone())
            .collect();
        let selection = Selection {
            instance: Some(self.instance.name.clone()),
            strategy: Some(self.strategy.name.clone()),
        };
        list(self.engine, &open, &selection).await
    }

    /// The first of `good` that has the source, and what it has of it.
    async fn baseline(
        &self,
        report: &SourceReport,
        good: &[Snapshot],
    ) -> Option<(SnapshotId, Sizes)> {
        let kind = main_kind(&report.kind)?;
        let has_it = |manifest: &Manifest| {
            let mut of_it = manifest.artifacts.iter();
            of_it.any(|one| one.source.as_ref() == Some(&report.name) && one.kind == kind)
        };
        let snapshot = good.iter().find(|one| one.manifest.as_ref().is_ok_and(has_it))?;
        let manifest = snapshot.manifest.as_ref().ok()?;
        let record = match self.engine.catalog().await {
            Some(catalog) => {
                let (instance, strategy) = (&self.instance.name, &self.strategy.name);
                catalog.run(instance, strategy, &manifest.id).await.unwrap_or_else(|error| {
                    tracing::warn!("{error}");
                    None
                })
            }
            None => None,
        };
        let then = record.and_then(|run| serde_json::from_str::<RunReport>(&run.report).ok());
        let sources = then.into_iter().flat_map(|then| then.sources);
        let counted = sources
            .filter(|source| source.name == report.name && source.kind == report.kind)
            .map(|source| Counted::of(&source))
            .next();
        let counted = match counted {
            Some(counted) if report.kind == "command" || counted.entries.is_some() => Some(counted),
            lost => self.by_facts(snapshot, manifest, &report.name).await.or(lost),
        };
        let packed = packed(manifest.artifacts.iter(), &report.name);
        Some((manifest.id.clone(), Sizes { packed, counted }))
    }

    /// What a snapshot has of a source by its facts, where these are not encrypted.
    async fn by_facts(
        &self,
        snapshot: &Snapshot,
        manifest: &Manifest,
        source: &Name,
    ) -> Option<Counted> {
        let mut open = self.members.iter().map(|place| &place.member.open);
        let open = open.find(|open| open.name == snapshot.storage)?;
        let facts = match read_facts(self.engine, open, manifest, &[]).await {
            Ok(facts) => facts?,
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                return None;
            }
        };
        let (entries, rows) = counts(&facts, source);
        let bytes = total(facts.artifacts_of(source).map(|artifact| artifact.plain_bytes));
        let content = facts.content_bytes_of(source);
        Some(Counted { entries, rows, bytes, content, rules: None })
    }
}

/// What a run took of the source of `report`.
fn of_run(run: &RunReport, report: &SourceReport) -> Option<(SnapshotId, Sizes)> {
    let same = |one: &&SourceReport| one.name == report.name && one.kind == report.kind;
    let then = run.sources.iter().find(same)?;
    // What was stored of it stands in no manifest that is at hand.
    let packed = Packed { bytes: 0, codecs: Vec::new() };
    Some((run.id.clone(), Sizes { counted: Some(Counted::of(then)), packed }))
}

/// What can be counted of a source, and the rows of all its tables.
fn counts(facts: &Facts, source: &Name) -> (Option<u64>, Option<u64>) {
    let count = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    let tables = || facts.tables_of(source).map(|tables| tables.len() as u64);
    let entries = facts.entries_of(source).map(count).or_else(tables);
    (entries, facts.rows_of(source).map(count))
}

/// The kind of the artifacts that have what a source of this `type` has.
fn main_kind(source: &str) -> Option<ArtifactKind> {
    Some(match source {
        "postgres" => ArtifactKind::PgDump,
        "sqlite" => ArtifactKind::Sqlite,
        "directory" => ArtifactKind::Tar,
        "command" => ArtifactKind::Stream,
        _ => return None,
    })
}

/// What one snapshot has of a source.
#[derive(Debug, Clone, PartialEq)]
struct Sizes {
    /// By the record of its run, or its facts; none where neither can be read.
    counted: Option<Counted>,
    /// By its manifest.
    packed: Packed,
}

#[derive(Debug, Clone, PartialEq)]
struct Counted {
    entries: Option<u64>,
    rows: Option<u64>,
    bytes: u64,
    /// Without what a tarball needs beside the content of its files.
    content: Option<u64>,
    rules: Option<crate::model::Digest>,
}

/// Bytes after compression, which say something beside others of the same codec only.
#[derive(Debug, Clone, PartialEq)]
struct Packed {
    bytes: u64,
    codecs: Vec<String>,
}

impl Counted {
    fn of(report: &SourceReport) -> Self {
        Self {
            entries: report.entries,
            rows: report.rows,
            bytes: report.plain_bytes,
            content: report.content_bytes,
            rules: report.rules_digest,
        }
    }
}

impl Sizes {
    /// Whether both were taken by rules that are known, and these differ.
    fn has_other_rules(&self, other: &Self) -> bool {
        let rules = |sizes: &Self| sizes.counted.as_ref().and_then(|one| one.rules);
        rules(self).zip(rules(other)).is_some_and(|(one, other)| one != other)
    }
}

fn packed<'a>(artifacts: impl Iterator<Item = &'a Artifact>, source: &Name) -> Packed {
    let of_it: Vec<&Artifact> =
        artifacts.filter(|one| one.source.as_ref() == Some(source) && one.kind.is_main()).collect();
    let mut codecs: Vec<String> = of_it.iter().map(|one| one.codec.suffix()).collect();
    codecs.dedup();
    Packed { bytes: total(of_it.iter().map(|one| one.compressed_bytes)), codecs }
}

/// The word for what is counted of a source of this `type`.
fn noun(source: &str) -> &'static str {
    if source == "directory" { "files" } else { "tables" }
}

/// What is said when nothing is left where there was something.
fn nothing_left(source: &str, then: &Sizes, now: &Sizes) -> Vec<String> {
    let Some(counted) = &now.counted else { return Vec::new() };
    let fell = |what: &str, then: Option<u64>, now: Option<u64>| {
        let then = then.filter(|then| *then > 0 && now == Some(0))?;
        Some(format!("{then} -> 0 {what}"))
    };
    let is_empty = match source {
        "command" => counted.bytes == 0,
        "directory" => counted.entries == Some(0),
        _ => counted.entries == Some(0) || counted.rows == Some(0),
    };
    if !is_empty {
        return Vec::new();
    }
    let known = then.counted.as_ref().map(|then| match source {
        "command" => fell("bytes", Some(then.bytes), Some(counted.bytes)).into_iter().collect(),
        _ => [
            fell(noun(source), then.entries, counted.entries),
            fell("rows", then.rows, counted.rows),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>(),
    });
    // Of an older record nothing was counted but bytes.
    let is_known =
        source == "command" || then.counted.as_ref().is_some_and(|one| one.entries.is_some());
    if let Some(known) = known.filter(|_| is_known) {
        return known;
    }
    let (before, after) = (&then.packed, &now.packed);
    // The same emptiness is packed into about as many bytes each time; of nothing at all, into
    // exactly as many.
    let most = if source == "command" { after.bytes } else { after.bytes.saturating_mul(3) / 2 };
    if before.codecs == after.codecs && before.bytes > most {
        return vec![format!("nothing is left in it, of {} compressed", ByteSize(before.bytes))];
    }
    Vec::new()
}

/// What is said of each measure that fell by more than so many percent.
fn much_less(source: &str, then: &Sizes, now: &Sizes, percent: u8) -> Vec<String> {
    let is_less = |then: u64, now: u64, least: u64| {
        let allowed = u128::from(100_u8.saturating_sub(percent));
        then >= least && u128::from(now) * 100 < u128::from(then) * allowed
    };
    let bytes = |then: u64, now: u64, what: &str| {
        let words = || format!("{} -> {}{what}", ByteSize(then), ByteSize(now));
        is_less(then, now, SMALL_BYTES).then(words)
    };
    let count = |what: &str, counts: Option<(u64, u64)>| {
        let (then, now) = counts.filter(|(then, now)| is_less(*then, *now, FEW))?;
        Some(format!("{then} -> {now} {what}"))
    };
    let fallen = match (&then.counted, &now.counted) {
        (Some(then), Some(now)) => [
            count(noun(source), then.entries.zip(now.entries)),
            count("rows", then.rows.zip(now.rows)),
            match then.content.zip(now.content) {
                Some((then, now)) => bytes(then, now, ""),
                None => bytes(then.bytes, now.bytes, ""),
            },
        ],
        _ if then.packed.codecs == now.packed.codecs => {
            [bytes(then.packed.bytes, now.packed.bytes, " compressed"), None, None]
        }
        _ => [None, None, None],
    };
    fallen.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::{Counted, Packed, Sizes, much_less, nothing_left};
    use crate::model::Digest;

    fn sizes(entries: Option<u64>, rows: Option<u64>, bytes: u64, packed: u64) -> Sizes {
        Sizes {
            counted: Some(Counted { entries, rows, bytes, content: None, rules: None }),
            packed: Packed { bytes: packed, codecs: vec![".zst".to_owned()] },
        }
    }

    fn lost(sizes: Sizes) -> Sizes {
        Sizes { counted: None, ..sizes }
    }

    #[test]
    fn nothing_counts_whatever_is_known_of_before() {
        let full = || sizes(Some(3), Some(5), 40, 1_000);
        let none = sizes(Some(0), Some(0), 0, 100);
        for source in ["directory", "command", "sqlite", "postgres"] {
            assert!(!nothing_left(source, &full(), &none).is_empty(), "{source}");
            assert!(!nothing_left(source, &lost(full()), &none).is_empty(), "{source}");
            assert!(nothing_left(source, &full(), &full()).is_empty(), "{source}");
            assert!(nothing_left(source, &none, &none).is_empty(), "{source}");
            assert!(nothing_left(source, &lost(none.clone()), &none).is_empty(), "{source}");
        }
        // Bytes alone say nothing of what a folder has; of an older record there are no others.
        let old = sizes(None, None, 3_000, 1_000);
        assert!(!nothing_left("directory", &old, &none).is_empty());
        // Tables that lost their rows.
        assert!(!nothing_left("postgres", &full(), &sizes(Some(3), Some(0), 30, 900)).is_empty());
        assert!(nothing_left("postgres", &full(), &sizes(Some(3), None, 30, 900)).is_empty());
        let other = Packed { codecs: vec![".gz".to_owned()], ..full().packed };
        let other = Sizes { packed: other, counted: None };
        assert!(nothing_left("directory", &other, &none).is_empty(), "another codec");
    }

    #[test]
    fn each_measure_counts_by_itself_from_a_size_on() {
        let mib = 1 << 20;
        let full = sizes(Some(20), Some(20), mib, mib);
        for (now, fallen) in [
            (sizes(Some(10), Some(10), mib / 2, 0), 0),
            (sizes(Some(9), Some(20), mib, mib), 1),
            (sizes(Some(20), Some(9), mib, mib), 1),
            (sizes(Some(20), None, mib / 2 - 1, mib), 1),
            (sizes(Some(9), Some(9), 1, 1), 3),
            (sizes(None, None, mib, 1), 0),
        ] {
            assert_eq!(much_less("postgres", &full, &now, 50).len(), fallen, "{now:?}");
            assert!(much_less("postgres", &full, &now, 100).is_empty(), "{now:?}");
        }
        let small = sizes(Some(19), Some(19), mib - 1, mib - 1);
        let one = sizes(Some(1), Some(1), 1, 1);
        assert!(much_less("directory", &small, &one, 50).is_empty());
        assert_eq!(much_less("directory", &lost(full), &one, 50).len(), 1);
        assert!(much_less("directory", &lost(small), &one, 50).is_empty());
        let huge = sizes(Some(u64::MAX), Some(u64::MAX), u64::MAX, u64::MAX);
        assert_eq!(much_less("directory", &huge, &one, 99).len(), 3);
        assert!(much_less("directory", &one, &huge, 1).is_empty());
    }

    #[test]
    fn rules_differ_where_both_are_known() {
        let with = |rules: Option<&str>| {
            let mut sizes = sizes(None, None, 0, 0);
            sizes.counted.as_mut().unwrap().rules = rules.map(|rules| Digest::of(rules.as_bytes()));
            sizes
        };
        for (one, other, differ) in [
            (Some("a"), Some("b"), true),
            (Some("a"), Some("a"), false),
            (None, Some("a"), false),
            (Some("a"), None, false),
        ] {
            assert_eq!(with(one).has_other_rules(&with(other)), differ);
        }
        assert!(!lost(with(Some("a"))).has_other_rules(&with(Some("b"))));
    }
}
