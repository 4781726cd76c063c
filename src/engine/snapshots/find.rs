//! Which snapshot a person means by `latest`, an id, or a part of one.

use std::collections::BTreeSet;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};

use crate::engine::error::EngineError;
use crate::engine::snapshots::list::{Listing, Snapshot};
use crate::model::{Completeness, Name, SnapshotId};

/// The snapshot that `which` means, as each storage that has it has it, in the order of the
/// storages. `which` is `latest`, or an id or the beginning of one, or the end of one (the six
/// digits after the dash). `latest` is of one strategy, and with `at` it is the newest begun at or
/// before it; whole ones go before partial ones, and one of the future, or one that is suspect, is
/// never meant.
///
/// # Errors
/// [`EngineError::NotFound`] when there is none, [`EngineError::Request`] when several are meant.
pub fn find(
    listing: &Listing,
    which: &str,
    at: Option<DateTime<Utc>>,
) -> Result<Vec<Snapshot>, EngineError> {
    let hint = || {
        let unlisted: Vec<String> = listing
            .unlisted
            .iter()
            .map(|(name, error)| format!("`{name}` could not be listed: {error}"))
            .collect();
        if unlisted.is_empty() { String::new() } else { format!(". {}", unlisted.join(". ")) }
    };
    if which == "latest" {
        let strategies: BTreeSet<(&Name, &Name)> =
            listing.snapshots.iter().map(|one| (&one.instance, &one.strategy)).collect();
        if strategies.len() > 1 {
            let names = strategies.iter().map(|(of, name)| format!("`{name}` of `{of}`"));
            return Err(EngineError::Request(format!(
                "Which strategy's latest? There are {}: choose with `--strategy`, and with \
                 `--instance` where needed",
                names.collect::<Vec<_>>().join(", ")
            )));
        }
        let before = |snapshot: &&Snapshot| {
            !snapshot.is_future && at.is_none_or(|at| snapshot.id.time() <= at)
        };
        let good = |snapshot: &&Snapshot| before(snapshot) && !snapshot.is_suspect;
        let rank =
            |snapshot: &&Snapshot| {
                snapshot.manifest.as_ref().ok().map(|manifest| {
                    (manifest.completeness == Completeness::Whole, snapshot.id.clone())
                })
            };
        let newest = listing
            .snapshots
            .iter()
            .filter(good)
            .filter(|one| one.manifest.is_ok())
            .max_by_key(rank);
        let unreadable = || {
            let mut all = listing
                .snapshots
                .iter()
                .filter(before)
                .filter_map(|one| Some((one, one.manifest.as_ref().err()?)));
            all.next_back().map(|(one, error)| {
                format!(". `{}` in `{}` cannot be read: {error}", one.id, one.storage)
            })
        };
        let newest = newest.ok_or_else(|| {
            let when =
                at.map(|at| format!(" at or before {}", at.to_rfc3339())).unwrap_or_default();
            let unreadable = unreadable();
            let usable = if unreadable.is_some() { " that can be read" } else { "" };
            let unreadable = unreadable.unwrap_or_default();
            let future =
                future_of(&listing.snapshots).map(|words| format!(". {words}")).unwrap_or_default();
            let suspects = suspects_of(listing.snapshots.iter().filter(before));
            let suspects = suspects.map(|words| format!(". {words}")).unwrap_or_default();
            EngineError::NotFound(format!(
                "There is no snapshot{usable}{when}{unreadable}{suspects}{future}{}",
                hint()
            ))
        })?;
        let newer = |one: &&Snapshot| before(one) && one.id > newest.id;
        if let Some(words) = suspects_of(listing.snapshots.iter().filter(newer)) {
            tracing::warn!("{words}");
        }
        if let Some(words) = future_of(&listing.snapshots) {
            tracing::warn!("{words}");
        }
        let newer: BTreeSet<&SnapshotId> = listing
            .snapshots
            .iter()
            .filter(good)
            .map(|one| &one.id)
            .filter(|id| *id > &newest.id)
            .collect();
        if !newer.is_empty() {
            let newer: Vec<&str> = newer.into_iter().map(SnapshotId::as_str).collect();
            tracing::warn!(taken = %newest.id, newer = newer.join(", "), "newer snapshots are \
                partial or cannot be read, and are passed over");
        }
        return Ok(copies(listing, newest));
    }
    let meant: Vec<&Snapshot> = listing
        .snapshots
        .iter()
        .filter(|snapshot| {
            let id = snapshot.id.as_str();
            id.starts_with(which)
                || id.rsplit('-').next().is_some_and(|salt| salt.starts_with(which))
        })
        .collect();
    let distinct: BTreeSet<(&Name, &Name, &SnapshotId)> = meant
        .iter()
        .map(|snapshot| (&snapshot.instance, &snapshot.strategy, &snapshot.id))
        .collect();
    match (distinct.len(), meant.first()) {
        (1, Some(snapshot)) => Ok(copies(listing, snapshot)),
        (0, _) | (_, None) => Err(EngineError::NotFound(format!(
            "There is no snapshot `{which}`{}. `backup list` shows which there are",
            hint()
        ))),
        (count, _) => {
            let some: Vec<String> = distinct
                .iter()
                .take(5)
                .map(|(instance, strategy, id)| format!("{instance}/{strategy}/{id}"))
                .collect();
            let more = if count > some.len() { ", ..." } else { "" };
            Err(EngineError::Request(format!(
                "`{which}` could be {count} snapshots: {}{more}. Give more of the id",
                some.join(", ")
            )))
        }
    }
}

/// That suspect ones of the snapshots are passed over, if there are any.
pub(in crate::engine) fn suspects_of<'s>(
    snapshots: impl Iterator<Item = &'s Snapshot>,
) -> Option<String> {
    let suspects = snapshots.filter(|snapshot| snapshot.is_suspect);
    let ids: BTreeSet<&str> = suspects.map(|snapshot| snapshot.id.as_str()).collect();
    let last = ids.last()?;
    let all: Vec<&str> = ids.iter().copied().collect();
    Some(format!(
        "Passed over, as much less is in them than in the last good snapshot: {}. Name one by its \
         id to use it; `backup release {last} --reason TEXT` accepts the last",
        all.join(", ")
    ))
}

/// That snapshots of the future are passed over, if there are any.
pub(in crate::engine) fn future_of(snapshots: &[Snapshot]) -> Option<String> {
    let ids: BTreeSet<&str> = snapshots
        .iter()
        .filter(|snapshot| snapshot.is_future)
        .map(|snapshot| snapshot.id.as_str())
        .collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    (!ids.is_empty()).then(|| {
        format!(
            "Passed over, as they are dated in the future by a clock that was wrong: {}. Name one by \
             its id to use it",
            ids.join(", ")
        )
    })
}

pub(in crate::engine) fn copies(listing: &Listing, of: &Snapshot) -> Vec<Snapshot> {
    listing
        .snapshots
        .iter()
        .filter(|snapshot| {
            (&snapshot.instance, &snapshot.strategy, &snapshot.id)
                == (&of.instance, &of.strategy, &of.id)
        })
        .cloned()
        .collect()
}

/// An instant as `--at` takes it: RFC 3339, or `2026-11-21`, `2026-11-21 01:30`,
/// `2026-11-21T01:30:00` in UTC. A day alone means its end.
///
/// # Errors
/// When it is none of these.
pub fn parse_at(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    for form in ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return Ok(time.and_utc());
        }
    }
    let end_of_day = NaiveTime::from_hms_opt(23, 59, 59).unwrap_or_default();
    NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .map(|day| day.and_time(end_of_day).and_utc())
        .map_err(|_| {
            format!(
                "`{text}` is not a time: expected a form like `2026-11-21`, `2026-11-21 01:30` \
            (UTC) or RFC 3339"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::snapshots::list::BadManifest;
    use crate::model::{Manifest, Name, SnapshotId};

    fn snapshot(storage: &str, id: &str, completeness: Option<Completeness>) -> Snapshot {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let id: SnapshotId = id.parse().unwrap();
        let manifest = completeness.map(|completeness| Manifest {
            format: 1,
            requires: Vec::new(),
            instance: name("ella"),
            strategy: name("daily"),
            started: id.time(),
            finished: id.time(),
            next_due: None,
            id: id.clone(),
            program: crate::model::Program { name: String::new(), version: String::new() },
            completeness,
            storage: crate::model::StorageNote {
                name: name(storage),
                remote_check: crate::model::RemoteCheck::Size,
            },
            artifacts: Vec::new(),
        });
        Snapshot {
            storage: name(storage),
            instance: name("ella"),
            strategy: name("daily"),
            id,
            manifest: manifest.ok_or_else(|| BadManifest::damaged("damaged".to_owned())),
            flaws: Vec::new(),
            listed_bytes: 0,
            is_future: false,
            is_suspect: false,
            damage: None,
        }
    }

    fn listing() -> Listing {
        use Completeness::{Partial, Whole};
        let snapshots = vec![
            snapshot("local", "20261119T013000Z-aaaaaa", Some(Whole)),
            snapshot("local", "20261120T013000Z-abcdef", Some(Whole)),
            snapshot("offsite", "20261120T013000Z-abcdef", Some(Whole)),
            snapshot("local", "20261121T013000Z-bbbbbb", Some(Partial)),
            snapshot("local", "20261122T013000Z-cccccc", None),
        ];
        Listing { snapshots, ..Listing::default() }
    }

    fn found(which: &str, at: Option<&str>) -> Result<Vec<String>, String> {
        let at = at.map(|at| parse_at(at).unwrap());
        let found = find(&listing(), which, at).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|snapshot| format!("{}:{}", snapshot.storage, snapshot.id)).collect())
    }

    #[test]
    fn latest_is_the_newest_whole_one_with_all_its_copies() {
        let newest = ["local:20261120T013000Z-abcdef", "offsite:20261120T013000Z-abcdef"];
        assert_eq!(found("latest", None).unwrap(), newest);
        assert_eq!(found("latest", Some("2026-11-19")).unwrap(), ["local:20261119T013000Z-aaaaaa"]);
        assert!(found("latest", Some("2026-11-18")).is_err());
    }

    #[test]
    fn an_id_may_be_shortened_from_either_end_while_it_is_unambiguous() {
        assert_eq!(found("20261119", None).unwrap(), ["local:20261119T013000Z-aaaaaa"]);
        assert_eq!(found("bbb", None).unwrap(), ["local:20261121T013000Z-bbbbbb"]);
        assert!(found("a", None).unwrap_err().contains("could be 2 snapshots"));
        assert!(found("ffff", None).unwrap_err().contains("There is no snapshot"));
    }

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        for (text, expected) in [
            ("2026-11-21", "2026-11-21T23:59:59+00:00"),
            ("2026-11-21 01:30", "2026-11-21T01:30:00+00:00"),
            ("2026-11-21T01:30:00+01:00", "2026-11-21T00:30:00+00:00"),
        ] {
            assert_eq!(parse_at(text).unwrap().to_rfc3339(), expected);
        }
        assert!(parse_at("yesterday").is_err());
    }
}
