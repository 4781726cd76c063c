//! Sizes and times that come from outside: from a document, a listing or a file system. Any number
//! may stand there, so they are added up and converted here, where nothing wraps or panics.

use std::time::SystemTime;

use chrono::{DateTime, Utc};

/// The largest number of bytes that a document or a listing may state, alone or in sum: 8 PiB.
/// JSON readers hold numbers up to here exactly.
pub const LARGEST_TOTAL: u64 = 1 << 53;

/// The most values of a JSON document that is read as a whole, about: one of two bytes takes a
/// hundred once it is read. Facts of 140,000 tables have as many.
pub(super) const MOST_VALUES: u64 = 1_000_000;

/// About how many values begin or end in a part of a JSON document: what is in strings counts too.
pub(super) fn values_in(json: &[u8]) -> u64 {
    json.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count() as u64
}

/// The sum of `sizes`; none when it is more than [`LARGEST_TOTAL`].
pub fn checked_total(sizes: impl IntoIterator<Item = u64>) -> Option<u64> {
    sizes.into_iter().try_fold(0_u64, u64::checked_add).filter(|total| *total <= LARGEST_TOTAL)
}

/// The sum of `sizes`, `u64::MAX` when it is more: for reports and for the room that is needed, of
/// sizes that were each checked where they came in.
pub fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// The time of a file; none where the calendar does not have it. (The conversion of `chrono`
/// panics.)
pub fn utc(time: SystemTime) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).ok()?, since.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let seconds = 0_i64.checked_sub_unsigned(before.as_secs())?;
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanos => (seconds.checked_sub(1)?, 1_000_000_000_u32.checked_sub(nanos)?),
            }
        }
    };
    DateTime::from_timestamp(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::sealed::seal;
    use crate::model::{Digest, Facts, Manifest, Name, Remarks, SnapshotId};

    /// Sizes near every border that arithmetic has.
    fn extreme() -> impl Strategy<Value = u64> {
        let borders = [0, 1 << 31, 1 << 32, 1 << 53, 1 << 62, 1 << 63, u64::MAX];
        (prop::sample::select(borders.to_vec()), 0_u64..3, any::<bool>()).prop_map(
            |(border, more, down)| {
                if down { border.saturating_sub(more) } else { border.saturating_add(more) }
            },
        )
    }

    proptest! {
        #[test]
        fn documents_with_extreme_sizes_are_refused(
            sizes in prop::collection::vec(extreme(), 1..4),
        ) {
            let id: SnapshotId = "20261121T013000Z-7f3a9c".parse().unwrap();
            let (instance, strategy): (Name, Name) = ("a".parse().unwrap(), "d".parse().unwrap());
            let fits = sizes.iter().map(|size| u128::from(*size)).sum::<u128>()
                <= u128::from(LARGEST_TOTAL);
            let digest = Digest::of(b"").to_string();
            for stored in [true, false] {
                let artifacts: Vec<_> = sizes.iter().map(|size| json!({
                    "name": "s.out", "source": "s", "kind": "stream",
                    "codec": { "compression": "none", "encryption": "none" },
                    "compressed_bytes": if stored { 0 } else { *size },
                    "objects": [{
                        "key": "s.out", "size": if stored { *size } else { 0 }, "digest": digest,
                    }],
                })).collect();
                let manifest = json!({
                    "format": 1, "requires": [], "instance": "a", "strategy": "d", "id": id,
                    "started": "2026-11-21T01:30:00Z", "finished": "2026-11-21T01:30:00Z",
                    "program": { "name": "x", "version": "1" }, "completeness": "whole",
                    "storage": { "name": "l", "remote_check": "size" }, "artifacts": artifacts,
                });
                let read = Manifest::from_bytes(
                    &seal("manifest", &manifest), &instance, &strategy, &id,
                );
                prop_assert_eq!(read.is_ok(), fits, "{:?}", read.err());
            }
            let facts = json!({
                "format": 1, "instance": "a", "strategy": "d", "id": id, "configuration": null,
                "artifacts": sizes.iter().map(|size| json!({
                    "name": "s.out", "plain_bytes": size, "plain_digest": digest,
                })).collect::<Vec<_>>(),
                "sources": [],
                "warnings": { "kept": [], "omitted": sizes[0], "missing": sizes[0] },
                "notes": { "kept": [], "omitted": sizes[0] },
            });
            let read = Facts::from_reader(facts.to_string().as_bytes());
            prop_assert_eq!(read.is_ok(), fits, "{:?}", read.err());
            if let Ok(facts) = read {
                let mut remarks = facts.remarks.clone();
                remarks.missing("one more");
                remarks.extend(None, facts.remarks);
                prop_assert!(remarks.warnings.missing() > 0 && remarks.warnings.count() > 0);
            }
        }

        #[test]
        fn remarks_of_any_count_are_added_up(omitted in extreme(), missing in extreme()) {
            let mut remarks: Remarks = serde_json::from_value(json!({
                "warnings": { "kept": [{ "reason": "x" }], "omitted": omitted, "missing": missing },
                "notes": { "kept": [{ "reason": "x" }], "omitted": omitted },
            })).unwrap();
            remarks.extend(None, remarks.clone());
            remarks.missing("x");
            remarks.note("x");
            prop_assert!(remarks.warnings.count() > omitted.saturating_sub(1));
            prop_assert!(remarks.warnings.missing() > missing.saturating_sub(1));
            prop_assert!(remarks.notes.count() > omitted.saturating_sub(1));
        }

        #[test]
        fn a_total_is_exact_or_refused(sizes in prop::collection::vec(extreme(), 0..6)) {
            let exact: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
            let fits = (exact <= u128::from(LARGEST_TOTAL)).then_some(exact);
            prop_assert_eq!(checked_total(sizes.clone()).map(u128::from), fits);
            prop_assert_eq!(u128::from(total(sizes)), exact.min(u128::from(u64::MAX)));
        }

        #[test]
        fn any_time_of_a_file_is_converted_or_none(
            seconds in extreme(), nanos in 0_u32..1_000_000_000, before in any::<bool>(),
        ) {
            let since = Duration::new(seconds, nanos);
            let time = if before {
                SystemTime::UNIX_EPOCH.checked_sub(since)
            } else {
                SystemTime::UNIX_EPOCH.checked_add(since)
            };
            if let Some((time, converted)) = time.and_then(|time| Some((time, utc(time)?))) {
                prop_assert_eq!(SystemTime::from(converted), time);
            }
        }
    }

    #[test]
    fn times_beyond_the_calendar_are_none() {
        let far = Duration::from_secs(10_000_000_000_000);
        assert_eq!(utc(SystemTime::UNIX_EPOCH + far), None);
        assert_eq!(utc(SystemTime::UNIX_EPOCH - far), None);
        let half = SystemTime::UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(utc(half).map(|time| time.timestamp_millis()), Some(-500));
    }
}
