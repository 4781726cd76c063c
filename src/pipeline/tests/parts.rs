//! Ranges of a stream come back as they are in it, and little more than the blocks that they lie in
//! is fetched.
#![expect(
    clippy::single_range_in_vec_init,
    reason = "a list of ranges is what is meant, also when it has one"
)]

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

use super::{algorithms, encode, key, sample, settings, stored};
use crate::model::{Artifact, ArtifactKind, Compression};
use crate::pipeline::{
    Algorithm, BlockList, BlockSpan, DecodeError, Encoded, Identity, Recipient, parts,
};

/// A stored stream that knows what was asked of it.
struct Store {
    artifact: Artifact,
    blocks: String,
    objects: Vec<Vec<u8>>,
    /// Bytes of each request.
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Store {
    fn new(
        algorithm: Algorithm,
        recipients: Vec<Recipient>,
        block_bytes: usize,
        max: Option<u64>,
        plain: &[u8],
    ) -> Self {
        let mut settings = settings(algorithm, recipients, 2, block_bytes);
        settings.max_object_bytes = max;
        let (encoded, objects) = encode(settings, plain);
        Self {
            artifact: artifact(&encoded),
            blocks: list(&encoded),
            objects,
            asked: Arc::default(),
        }
    }

    fn spans(&self) -> impl Iterator<Item = io::Result<BlockSpan>> + Send + use<> {
        let list = io::Cursor::new(self.blocks.clone());
        BlockList::new(list, self.artifact.codec.compression, self.artifact.compressed_bytes)
    }

    fn open(
        &self,
        identities: &[Identity],
        ranges: &[Range<u64>],
    ) -> Result<Box<dyn Read + Send>, DecodeError> {
        let objects = self.objects.clone();
        let asked = Arc::clone(&self.asked);
        asked.lock().unwrap().clear();
        let keys: Vec<String> =
            self.artifact.objects.iter().map(|object| object.key.clone()).collect();
        let fetch = move |object: &crate::model::StoredObject, range: Range<u64>| {
            assert!(range.start < range.end && range.end <= object.size, "{range:?}");
            asked.lock().unwrap().push(range.end - range.start);
            let bytes = &objects[keys.iter().position(|key| *key == object.key).unwrap()];
            let bytes = bytes
                .get(range.start as usize..(range.end as usize).min(bytes.len()))
                .unwrap_or_default();
            Ok(Box::new(io::Cursor::new(bytes.to_vec())) as Box<dyn Read + Send>)
        };
        parts(&self.artifact, Box::new(self.spans()), Box::new(fetch), identities, ranges.to_vec())
    }

    fn read(&self, identities: &[Identity], ranges: &[Range<u64>]) -> Result<Vec<u8>, DecodeError> {
        let mut bytes = Vec::new();
        self.open(identities, ranges)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn error(&self, identities: &[Identity], ranges: &[Range<u64>]) -> String {
        self.read(identities, ranges).unwrap_err().to_string()
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

fn artifact(encoded: &Encoded) -> Artifact {
    Artifact {
        name: "files.tar".to_owned(),
        source: None,
        kind: ArtifactKind::Tar,
        codec: encoded.codec,
        compressed_bytes: encoded.compressed_bytes,
        objects: stored(encoded),
    }
}

fn list(encoded: &Encoded) -> String {
    let mut list = "{\"format\":1,\"type\":\"holdfast-blocks\",\"block_bytes\":1}\n".to_owned();
    for block in &encoded.blocks {
        list.push_str(&format!("{}\n", serde_json::to_string(block).unwrap()));
    }
    list.push_str(&format!(
        "{{\"end\":true,\"blocks\":{},\"plain_bytes\":{},\"compressed_bytes\":{}}}\n",
        encoded.blocks.len(),
        encoded.plain_bytes,
        encoded.compressed_bytes
    ));
    list
}

fn slices(plain: &[u8], ranges: &[Range<u64>]) -> Vec<u8> {
    ranges
        .iter()
        .flat_map(|range| plain[range.start as usize..range.end as usize].to_vec())
        .collect()
}

/// Compressed bytes of the blocks that `ranges` touch.
fn touched(spans: impl Iterator<Item = io::Result<BlockSpan>>, ranges: &[Range<u64>]) -> u64 {
    let touches = |span: &BlockSpan| {
        ranges.iter().any(|range| {
            range.start < span.plain.end && span.plain.start < range.end && !range.is_empty()
        })
    };
    let spans = spans.map(Result::unwrap).filter(touches);
    spans.map(|span| span.compressed.end - span.compressed.start).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_slices_of_the_plain_stream(
        algorithm in algorithms(),
        size in prop_oneof![1_usize..300_000, Just(65_536_usize), Just(131_072), Just(262_144)],
        block_bytes in prop_oneof![Just(1_024_usize), Just(65_536), 200_usize..9_000],
        encrypted in any::<bool>(),
        max in prop_oneof![Just(None), (500_u64..70_000).prop_map(Some), Just(Some(65_552))],
        cuts in proptest::collection::vec(any::<u32>(), 0..14),
        seed in any::<u64>(),
    ) {
        let (identity, recipient) = key();
        let plain = sample(size, seed);
        let recipients = if encrypted { vec![recipient] } else { Vec::new() };
        let store = Store::new(algorithm, recipients, block_bytes, max, &plain);
        let mut cuts: Vec<u64> = cuts.into_iter().map(|cut| u64::from(cut) % (size as u64 + 1))
            .collect();
        cuts.sort_unstable();
        let ranges: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();

        let found = store.read(std::slice::from_ref(&identity), &ranges);
        prop_assert_eq!(found.unwrap(), slices(&plain, &ranges));
        let fetched: u64 = store.asked().iter().sum();
        let gaps = ranges.len() as u64 * (256 << 10);
        let chunks = if encrypted { 2 * 65_552 * ranges.len() as u64 + 1_024 } else { 0 };
        let tags = touched(store.spans(), &ranges) / 4_096;
        prop_assert!(fetched <= touched(store.spans(), &ranges) + tags + gaps + chunks);
    }
}

#[test]
fn far_apart_ranges_fetch_their_own_blocks_only_and_near_ones_are_fetched_together() {
    let (identity, recipient) = key();
    let plain = sample(64 << 20, 7);
    for (algorithm, encrypted) in [
        (Algorithm::Zstd, false),
        (Algorithm::Zstd, true),
        (Algorithm::Gzip, true),
        (Algorithm::None, false),
    ] {
        let recipients = if encrypted { vec![recipient.clone()] } else { Vec::new() };
        let store = Store::new(algorithm, recipients, 1 << 20, Some(9_000_000), &plain);
        let extra = u64::from(encrypted);
        let read = |ranges: &[Range<u64>]| {
            assert_eq!(
                store.read(std::slice::from_ref(&identity), ranges).unwrap(),
                slices(&plain, ranges)
            );
            let asked = store.asked();
            (asked.len() as u64, asked.iter().sum::<u64>())
        };
        let (requests, bytes) = read(&[33_000_000..33_000_100]);
        assert!(requests <= 2 + extra && bytes < (1 << 20) + 200_000, "{requests} {bytes}");
        // The same block again and again, and its neighbour.
        let (requests, bytes) =
            read(&[33_000_000..33_000_001, 33_000_010..33_000_011, 34_000_000..34_000_500]);
        assert!(requests <= 2 + extra && bytes < (2 << 20) + 200_000, "{requests} {bytes}");
        // Far apart.
        let (requests, bytes) = read(&[10..20, 33_000_000..33_000_010, (64 << 20) - 1..64 << 20]);
        assert!(requests <= 6 + extra && bytes < (3 << 20) + 600_000, "{requests} {bytes}");
        // All of it.
        let (requests, _) = read(&[0..64 << 20]);
        assert!(requests <= 9 + extra, "one an object: {requests}");
    }
}

#[test]
fn damage_in_a_block_is_seen_by_who_reads_it_and_by_nobody_else() {
    let (identity, recipient) = key();
    let plain = sample(4 << 20, 3);
    for (algorithm, encrypted) in
        [(Algorithm::Zstd, false), (Algorithm::Gzip, false), (Algorithm::Zstd, true)]
    {
        let recipients = if encrypted { vec![recipient.clone()] } else { Vec::new() };
        let mut store = Store::new(algorithm, recipients, 256 << 10, None, &plain);
        let spans: Vec<BlockSpan> = store.spans().map(Result::unwrap).collect();
        let damaged = &spans[8];
        // In an encrypted stream this is somewhere in the block too: the header moves it by some
        // hundred bytes.
        store.objects[0][damaged.compressed.start as usize + 20_000] ^= 1;
        let error = store.error(
            std::slice::from_ref(&identity),
            &[damaged.plain.start..damaged.plain.start + 1],
        );
        assert!(error.contains("damaged"), "{error}");
        for sound in [&spans[2], &spans[14]] {
            let range = sound.plain.start..sound.plain.end;
            let found =
                store.read(std::slice::from_ref(&identity), std::slice::from_ref(&range)).unwrap();
            assert_eq!(found, slices(&plain, &[range]));
        }
        // What is sound comes before the error, and nothing after it.
        let mut reader =
            store.open(std::slice::from_ref(&identity), &[0..10, damaged.plain.clone()]).unwrap();
        let mut first = [0; 10];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(first, plain[..10]);
        assert!(reader.read(&mut first).is_err());
        assert!(reader.read(&mut first).is_err(), "it stays an error");
    }
}

#[test]
fn a_cut_object_and_a_list_of_another_stream_are_errors() {
    let plain = sample(2 << 20, 5);
    let mut store = Store::new(Algorithm::Zstd, Vec::new(), 256 << 10, None, &plain);
    let other = Store::new(Algorithm::Zstd, Vec::new(), 100_000, None, &plain);
    let length = store.objects[0].len();
    store.objects[0].truncate(length / 2);
    assert!(store.error(&[], &[2_000_000..2_000_001]).contains("is cut"));
    // The sizes fit, the places do not.
    let mut store = Store::new(Algorithm::Zstd, Vec::new(), 256 << 10, None, &plain);
    store.blocks = other.blocks.replace(
        &other.artifact.compressed_bytes.to_string(),
        &store.artifact.compressed_bytes.to_string(),
    );
    assert!(store.error(&[], &[1_000_000..1_000_001]).contains("damaged"));
    store.artifact.compressed_bytes += 1;
    assert!(store.error(&[], &[0..1]).contains("do not fit each other"));
}

#[test]
fn a_block_of_another_length_than_listed_is_damage() {
    let plain = sample(500_000, 9);
    for algorithm in [Algorithm::Zstd, Algorithm::Gzip, Algorithm::None] {
        let mut store = Store::new(algorithm, Vec::new(), 100_000, None, &plain);
        for (from, to) in
            [("\"plain\":100000,", "\"plain\":100001,"), ("\"plain\":100000,", "\"plain\":99999,")]
        {
            let sound = store.blocks.clone();
            store.blocks = sound.replace(from, to);
            let error = store.error(&[], &[10..11]);
            assert!(error.contains("The block of bytes 0 to "), "{error}");
            store.blocks = sound;
        }
    }
}

#[test]
fn only_a_key_of_its_own_opens_it_and_ranges_must_ascend_and_end_in_it() {
    let (identity, recipient) = key();
    let (other, _) = key();
    let plain = sample(300_000, 1);
    let store = Store::new(Algorithm::Zstd, vec![recipient], 65_536, None, &plain);
    assert!(matches!(store.read(&[other], &[0..1]), Err(DecodeError::Locked(_))));
    let identities = [identity];
    assert!(store.error(&identities, &[5..6, 1..2]).contains("after byte 6"));
    assert!(
        store
            .error(&identities, &[0..10, 299_999..300_001])
            .contains("wanted of a stream that has 300000")
    );
    assert_eq!(store.read(&identities, &[7..7]).unwrap(), b"");
    assert!(store.asked().is_empty(), "nothing is asked for when nothing is wanted");
}

#[test]
fn damaged_headers_and_sizes_of_encrypted_streams_are_errors() {
    let (identity, recipient) = key();
    let identities = [identity];
    let plain = sample(300_000, 1);
    let mut store = Store::new(Algorithm::None, vec![recipient], 65_536, None, &plain);
    assert_eq!(store.artifact.codec.compression, Compression::None);
    // The header ends elsewhere than the manifest's sizes say: an error, or the true bytes all the
    // same.
    for by in [-200_i64, -1, 1, 50] {
        let sound = (store.artifact.clone(), store.blocks.clone());
        store.artifact.compressed_bytes =
            store.artifact.compressed_bytes.checked_add_signed(by).unwrap();
        store.blocks = sound.1.replace(
            "\"compressed_bytes\":300000",
            &format!("\"compressed_bytes\":{}", store.artifact.compressed_bytes),
        );
        if let Ok(found) = store.read(&identities, &[70_000..70_010]) {
            assert_eq!(found, plain[70_000..70_010], "{by}");
        }
        (store.artifact, store.blocks) = sound;
    }
    store.artifact.compressed_bytes = u64::MAX;
    assert!(store.error(&identities, &[0..1]).contains("do not fit"));
    store.artifact.compressed_bytes = 1;
    assert!(store.error(&identities, &[0..1]).contains("do not fit"));
}
