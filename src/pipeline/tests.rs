//! What the encoder writes, the decoder and the ordinary tools read back; what was damaged, nobody
//! takes for whole.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

use super::{
    Algorithm, CompressionConfig, DecodeError, EncodeSettings, Encoded, Encoder, Expected,
    Identity, ObjectSink, Recipient, Verified, decoder,
};
use crate::model::{Cancel, Codec, Digest, StoredObject};

mod faults;
mod memory;
mod parts;

/// Keeps the objects.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Vec<u8>>>>);

impl Memory {
    fn objects(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

impl ObjectSink for Memory {
    fn begin(&mut self, index: u32) -> io::Result<()> {
        let mut objects = self.0.lock().unwrap();
        assert_eq!(objects.len(), index as usize);
        objects.push(Vec::new());
        Ok(())
    }
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        assert!(!chunk.is_empty());
        self.0.lock().unwrap().last_mut().unwrap().extend_from_slice(&chunk);
        Ok(())
    }
}

/// A sink made of a function.
struct Call<F>(F);

impl<F: FnMut(Bytes) -> io::Result<()> + Send> ObjectSink for Call<F> {
    fn begin(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        (self.0)(chunk)
    }
}

fn settings(
    algorithm: Algorithm,
    recipients: Vec<Recipient>,
    threads: usize,
    block_bytes: usize,
) -> EncodeSettings {
    EncodeSettings {
        compression: CompressionConfig::new(algorithm, None).unwrap(),
        recipients,
        threads,
        block_bytes,
        max_object_bytes: None,
        read_rate: None,
        cancel: Cancel::new(),
    }
}

fn key() -> (Identity, Recipient) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    (Identity(identity), Recipient(recipient))
}

fn encode(settings: EncodeSettings, plain: &[u8]) -> (Encoded, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let mut encoder = Encoder::new(settings, Box::new(memory.clone())).unwrap();
    encoder.write_all(plain).unwrap();
    assert_eq!(encoder.plain_bytes(), plain.len() as u64);
    let (encoded, _sink) = encoder.finish().unwrap();
    (encoded, memory.objects())
}

fn stored(encoded: &Encoded) -> Vec<StoredObject> {
    let objects = encoded.objects.iter().zip(1..);
    objects
        .map(|(object, n)| StoredObject {
            key: format!("x.{n:04}"),
            size: object.size,
            digest: object.digest,
        })
        .collect()
}

fn expected(plain: &[u8]) -> Option<Expected> {
    Some(Expected { plain_bytes: plain.len() as u64, plain_digest: Digest::of(plain) })
}

/// What comes out before the end or the error.
fn decode(
    stored: Vec<u8>,
    objects: Option<&[StoredObject]>,
    codec: Codec,
    identities: &[Identity],
    expected: Option<Expected>,
) -> (Vec<u8>, Result<(), DecodeError>) {
    let bytes = io::Cursor::new(stored);
    let inner: Box<dyn Read + Send> = match objects {
        Some(objects) => Box::new(Verified::new(bytes, objects)),
        None => Box::new(bytes),
    };
    let mut plain = Vec::new();
    let result = decoder(inner, codec, identities, expected)
        .and_then(|mut reader| reader.read_to_end(&mut plain).map(|_| ()).map_err(DecodeError::Io));
    (plain, result)
}

/// Text-like bytes that compress by about half, the same for the same seed.
fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 33) % 5_000;
        if word.is_multiple_of(7) {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            bytes.extend_from_slice(format!("{word} row ").as_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    prop_oneof![Just(Algorithm::Zstd), Just(Algorithm::Gzip), Just(Algorithm::None)]
}

/// Sizes around the edges of blocks (1 KiB and 64 KiB), of age's chunks (64 KiB), and of objects.
fn sizes() -> impl Strategy<Value = usize> {
    let edges = [0_usize, 1024, 2048, 65_536, 131_072, 65_536 - 200, 131_072 - 200, 200_000];
    (proptest::sample::select(edges.to_vec()), 0_usize..5)
        .prop_map(|(edge, near)| (edge + near).saturating_sub(2))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(
        algorithm in algorithms(),
        size in sizes(),
        block_bytes in prop_oneof![Just(1024_usize), Just(65_536), 1_usize..3_000],
        threads in 1_usize..5,
        recipients in 0_usize..3,
        max_object_bytes in prop_oneof![Just(None), (500_u64..70_000)
            .prop_map(Some), Just(Some(65_536))],
        seed in any::<u64>(),
        random in any::<bool>(),
    ) {
        let block_bytes = block_bytes.max(size / 200).max(1);
        let keys: Vec<_> = (0..recipients).map(|_| key()).collect();
        let plain = if random { sample(size, seed) } else { vec![seed as u8; size] };
        let mut settings = settings(algorithm, keys.iter().map(|(_, recipient)| recipient.clone())
            .collect(), threads, block_bytes);
        settings.max_object_bytes = max_object_bytes;
        let (encoded, objects) = encode(settings, &plain);

        prop_assert_eq!(encoded.plain_bytes, plain.len() as u64);
        prop_assert_eq!(encoded.plain_digest, Digest::of(&plain));
        prop_assert_eq!(encoded.objects.len(), objects.len());
        prop_assert!(!objects.is_empty());
        for (object, bytes) in encoded.objects.iter().zip(&objects) {
            prop_assert_eq!(object.size, bytes.len() as u64);
            prop_assert_eq!(object.digest, Digest::of(bytes));
            prop_assert!(max_object_bytes.is_none_or(|max| object.size <= max));
        }
        if let Some(max) = max_object_bytes {
            let full = objects.iter().rev().skip(1).all(|bytes| bytes.len() as u64 == max);
            prop_assert!(full, "only the last object is shorter");
        }
        for (block, number) in encoded.blocks.iter().zip(0_u64..) {
            prop_assert_eq!(block.plain, number * block_bytes as u64);
        }
        if recipients == 0 {
            prop_assert_eq!(objects.concat().len() as u64, encoded.compressed_bytes);
        }
        for identity in 0..recipients.max(1) {
            let identities: Vec<_> = keys.iter().skip(identity).take(1)
                .map(|(identity, _)| identity.clone()).collect();
            let (back, result) =
                decode(objects.concat(), Some(&stored(&encoded)), encoded.codec, &identities,
                    expected(&plain));
            prop_assert!(result.is_ok(), "{result:?}");
            prop_assert!(back == plain);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn bytes_from_anywhere_are_an_error_and_never_a_panic(
        algorithm in prop_oneof![Just(Algorithm::Zstd), Just(Algorithm::Gzip)],
        encrypted in any::<bool>(),
        start in proptest::sample::select(vec![
            &b""[..],
            b"\x28\xb5\x2f\xfd",
            b"\x50\x2a\x4d\x18",
            b"\x1f\x8b\x08\x00",
            b"\x1f\x8b\x08\x1f",
            b"age-encryption.org/v1\n-> X25519 ",
            b"age-encryption.org/v1\n---",
        ]),
        rest in proptest::collection::vec(any::<u8>(), 1..400),
    ) {
        let codec = CompressionConfig::new(algorithm, None).unwrap().codec(encrypted);
        let identities = if encrypted { vec![key().0] } else { Vec::new() };
        let (_, result) = decode([start, &rest].concat(), None, codec, &identities,
            expected(b"what was backed up"));
        prop_assert!(result.is_err());
    }
}

#[test]
fn a_block_decodes_by_itself_from_where_the_list_of_blocks_says() {
    let plain = sample(100_000, 1);
    for algorithm in [Algorithm::Zstd, Algorithm::Gzip, Algorithm::None] {
        let (encoded, objects) = encode(settings(algorithm, Vec::new(), 2, 30_000), &plain);
        let second = encoded.blocks[1];
        let third = encoded.blocks[2];
        let part = objects.concat()[second.compressed as usize..third.compressed as usize].to_vec();
        let (back, result) = decode(part, None, encoded.codec, &[], None);
        assert!(result.is_ok());
        assert!(back == plain[second.plain as usize..third.plain as usize]);
    }
}

fn each_codec() -> Vec<(Algorithm, Option<(Identity, Recipient)>)> {
    let algorithms = [Algorithm::Zstd, Algorithm::Gzip, Algorithm::None];
    algorithms
        .into_iter()
        .flat_map(|algorithm| [(algorithm, None), (algorithm, Some(key()))])
        .collect()
}

/// A small stream of several blocks and objects, with its parts.
fn small(
    algorithm: Algorithm,
    key: Option<&(Identity, Recipient)>,
) -> (Vec<u8>, Encoded, Vec<u8>, Vec<Identity>) {
    let plain = sample(400, 3);
    let mut settings =
        settings(algorithm, key.iter().map(|(_, recipient)| recipient.clone()).collect(), 2, 250);
    settings.max_object_bytes = Some(200);
    let (encoded, objects) = encode(settings, &plain);
    assert!(objects.len() > 1);
    (plain, encoded, objects.concat(), key.iter().map(|(identity, _)| identity.clone()).collect())
}

#[test]
fn every_flipped_bit_is_found_and_never_yields_the_whole() {
    for (algorithm, key) in each_codec() {
        let (plain, encoded, bytes, identities) = small(algorithm, key.as_ref());
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let (back, result) = decode(
                damaged.clone(),
                Some(&stored(&encoded)),
                encoded.codec,
                &identities,
                expected(&plain),
            );
            assert!(result.is_err() && back.len() < plain.len(), "{algorithm:?} bit {at}");
            // Without the manifest and the facts, by the codec alone. Some bits of a gzip header
            // mean nothing.
            if identities.is_empty() && algorithm == Algorithm::None {
                continue;
            }
            let (back, result) = decode(damaged, None, encoded.codec, &identities, None);
            assert!(back.len() < plain.len() || result.is_ok(), "{algorithm:?} bit {at}");
            assert!(result.is_err() || back == plain, "{algorithm:?} bit {at}");
            assert!(
                result.is_err() || identities.is_empty(),
                "encryption finds every flip: bit {at}"
            );
        }
    }
}

#[test]
fn every_cut_and_every_addition_is_found_and_never_yields_the_whole() {
    for (algorithm, key) in each_codec() {
        let (plain, encoded, bytes, identities) = small(algorithm, key.as_ref());
        for len in 0..bytes.len() {
            let cut = bytes[..len].to_vec();
            for (objects, expected) in [(Some(stored(&encoded)), None), (None, expected(&plain))] {
                let (back, result) =
                    decode(cut.clone(), objects.as_deref(), encoded.codec, &identities, expected);
                // A cut within the table at the end takes nothing from the plain bytes; with
                // nothing but them to go by that may pass.
                let (found, passes) = (result.is_err(), objects.is_none() && back == plain);
                assert!(
                    (found && back.len() < plain.len()) || passes,
                    "{algorithm:?} cut at {len}"
                );
            }
        }
        for more in [&b"\0"[..], b"garbage", &bytes] {
            let longer = [&bytes, more].concat();
            for (objects, expected) in [(Some(stored(&encoded)), None), (None, expected(&plain))] {
                let (back, result) = decode(
                    longer.clone(),
                    objects.as_deref(),
                    encoded.codec,
                    &identities,
                    expected,
                );
                assert!(result.is_err() && back.len() < plain.len(), "{algorithm:?} and {more:?}");
            }
        }
    }
}

#[test]
fn as_many_recipients_as_are_taken_can_be_read_again() {
    let (identity, recipient) = key();
    let mut recipients = vec![key().1; 127];
    recipients.push(recipient);
    let (encoded, objects) =
        encode(settings(Algorithm::Zstd, recipients.clone(), 1, 100), b"for many");
    let (back, result) =
        decode(objects.concat(), None, encoded.codec, &[identity], expected(b"for many"));
    assert!(result.is_ok() && back == b"for many", "{result:?}");
    recipients.push(key().1);
    assert!(
        Encoder::new(settings(Algorithm::Zstd, recipients, 1, 100), Box::new(Memory::default()))
            .is_err()
    );
}

#[test]
fn the_reason_is_said_in_words() {
    let (identity, recipient) = key();
    let plain = sample(1000, 5);
    let (encoded, objects) = encode(settings(Algorithm::Zstd, vec![recipient], 1, 400), &plain);
    let bytes = objects.concat();
    let say = |bytes: Vec<u8>, objects: Option<&[StoredObject]>, identities: &[Identity]| {
        decode(bytes, objects, encoded.codec, identities, None)
            .1
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let (stranger, _) = key();
    assert_eq!(
        say(bytes.clone(), None, &[stranger]),
        "It is encrypted, and no identity that was given opens it: pass the file of one of its \
         recipients"
    );
    assert!(say(bytes.clone(), None, &[]).contains("no identity was given"));
    let cut = say(
        bytes[..bytes.len() - 1].to_vec(),
        Some(&stored(&encoded)),
        std::slice::from_ref(&identity),
    );
    assert!(cut.contains("`x.0001` is cut"), "{cut}");
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let damaged = say(flipped.clone(), Some(&stored(&encoded)), std::slice::from_ref(&identity));
    assert!(damaged.contains("`x.0001` is damaged: its digest is sha256:"), "{damaged}");
    let damaged = say(flipped, None, std::slice::from_ref(&identity));
    assert!(damaged.starts_with("The encrypted stream is damaged or cut"), "{damaged}");
    assert!(
        say(b"not age at all".to_vec(), None, &[identity])
            .contains("header of the encrypted stream")
    );
}

#[test]
fn a_hostile_stream_does_not_take_memory() {
    // A frame that asks for a window of 1 GiB.
    let mut encoder = zstd::stream::raw::Encoder::new(1).unwrap();
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(30)).unwrap();
    let mut frame = vec![0; 1000];
    let mut output = zstd::stream::raw::OutBuffer::around(&mut frame[..]);
    let mut input = zstd::stream::raw::InBuffer::around(b"small");
    zstd::stream::raw::Operation::run(&mut encoder, &mut input, &mut output).unwrap();
    zstd::stream::raw::Operation::finish(&mut encoder, &mut output, true).unwrap();
    let len = output.pos();
    frame.truncate(len);
    let codec = CompressionConfig::default().codec(false);
    let (_, result) = decode(frame, None, codec, &[], None);
    assert!(result.is_err_and(|error| error.to_string().contains("memory")));

    let mut header = b"age-encryption.org/v1\n".to_vec();
    for _ in 0..200_000 {
        header.extend_from_slice(b"-> grease abc\n\n");
    }
    let (_, result) =
        decode(header, None, CompressionConfig::default().codec(true), &[key().0], None);
    assert!(result.is_err_and(|error| error.to_string().contains("more than 16384 bytes")));
}

/// Runs an ordinary tool.
#[expect(clippy::disallowed_methods, reason = "the judge is a program of its own")]
fn tool(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}` is needed by the tests: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A tool that ends early says why itself.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn ordinary_tools_read_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let identity_file = folder.path().join("key.txt");
    let made = tool("age-keygen", &["-o", identity_file.to_str().unwrap()], b"");
    assert!(made.is_empty());
    let identities =
        Identity::parse_file(&std::fs::read_to_string(&identity_file).unwrap()).unwrap();
    let recipient: Recipient =
        String::from_utf8(tool("age-keygen", &["-y", identity_file.to_str().unwrap()], b""))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
    for size in [0, 1, 65_536, 1_000_000, 3 << 20] {
        let plain = sample(size, 7);
        for algorithm in [Algorithm::Zstd, Algorithm::Gzip, Algorithm::None] {
            for recipients in [vec![], vec![key().1, recipient.clone()]] {
                let mut settings = settings(algorithm, recipients.clone(), 2, 1 << 20);
                settings.max_object_bytes = Some(300_000);
                let (encoded, objects) = encode(settings, &plain);
                let mut bytes = objects.concat();
                if !recipients.is_empty() {
                    bytes = tool("age", &["-d", "-i", identity_file.to_str().unwrap()], &bytes);
                    assert_eq!(bytes.len() as u64, encoded.compressed_bytes);
                }
                match algorithm {
                    Algorithm::Zstd => {
                        let file = folder.path().join("x.zst");
                        std::fs::write(&file, &bytes).unwrap();
                        let list = tool("zstd", &["-lv", file.to_str().unwrap()], b"");
                        let list = String::from_utf8_lossy(&list).into_owned();
                        let frames = size.div_ceil(1 << 20).max(1);
                        assert!(
                            list.contains(&format!("# Zstandard Frames: {frames}\n")),
                            "{list}"
                        );
                        assert!(list.contains("# Skippable Frames: 1\n"), "{list}");
                        assert!(list.contains("Check: XXH64"), "{list}");
                        assert!(
                            list.contains(&format!("({size} B)")),
                            "the size is known before: {list}"
                        );
                        bytes = tool("zstd", &["-dc"], &bytes);
                    }
                    Algorithm::Gzip => bytes = tool("gzip", &["-dc"], &bytes),
                    Algorithm::None => {}
                }
                assert!(bytes == plain, "{algorithm:?} {size}");
            }
        }
        // And what the tools write is read here, in one frame or many.
        let codec = |algorithm| CompressionConfig::new(algorithm, None).unwrap().codec(true);
        for (program, args, algorithm) in
            [("zstd", &["-c", "-9"][..], Algorithm::Zstd), ("gzip", &["-c"], Algorithm::Gzip)]
        {
            let packed = tool(program, args, &plain);
            let locked = tool("age", &["-r", &recipient.to_string()], &packed);
            let (back, result) =
                decode(locked, None, codec(algorithm), &identities, expected(&plain));
            assert!(result.is_ok_and(|()| back == plain), "{program} {size}");
        }
    }
}

#[test]
fn the_seek_table_is_that_of_the_seekable_format() {
    let plain = sample(10_000, 9);
    let (encoded, objects) = encode(settings(Algorithm::Zstd, Vec::new(), 3, 4_000), &plain);
    let bytes = objects.concat();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let end = bytes.len();
    assert_eq!(number(end - 4), 0x8F92_EAB1);
    assert_eq!(bytes[end - 5], 0);
    let frames = number(end - 9) as usize;
    assert_eq!(frames, 3);
    let table = end - 9 - 8 * frames - 8;
    assert_eq!((number(table), number(table + 4) as usize), (0x184D_2A5E, 8 * frames + 9));
    let mut at = 0;
    for (frame, plain) in (0..frames).zip([4_000, 4_000, 2_000]) {
        assert_eq!(encoded.blocks[frame].compressed, u64::from(at));
        assert_eq!(number(table + 8 + 8 * frame + 4), plain);
        at += number(table + 8 + 8 * frame);
    }
    assert_eq!(at as usize, table);
}

#[test]
fn the_configuration_reads_as_documented_and_refuses_the_rest_in_words() {
    let read = |text: &str| {
        toml::from_str::<CompressionConfig>(text).map_err(|error| error.message().to_owned())
    };
    let level = |text| read(text).map(|config| (config.algorithm(), config.level()));
    assert_eq!(level(""), Ok((Algorithm::Zstd, Some(3))));
    assert_eq!(level("algorithm = 'gzip'"), Ok((Algorithm::Gzip, Some(6))));
    assert_eq!(level("algorithm = 'none'"), Ok((Algorithm::None, None)));
    assert_eq!(level("level = 19"), Ok((Algorithm::Zstd, Some(19))));
    for (text, words) in [
        ("level = 0", "`level = 0` is not a level of `zstd`: expected 1 to 19"),
        (
            "algorithm = 'gzip'\nlevel = 10",
            "`level = 10` is not a level of `gzip`: expected 1 to 9",
        ),
        ("algorithm = 'none'\nlevel = 1", "has no level"),
        ("algorithm = 'lz4'", "unknown variant `lz4`"),
        ("levle = 3", "unknown field `levle`"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let schema = serde_json::to_value(schemars::schema_for!(CompressionConfig)).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    assert!(
        schema["properties"]["level"]["description"]
            .as_str()
            .is_some_and(|text| text.contains("default 3"))
    );
}
