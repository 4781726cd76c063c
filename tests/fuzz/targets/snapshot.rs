//! Any bytes are a tarball and its index, or an error: no panic, no endless loop, nothing outside
//! of the target is touched, and no more is written than the index says. A restore of all, of a
//! part, over what is there, and what would be done, as the first byte says.
#![no_main]

mod support;

use std::io::{Cursor, Error, Read};
use std::ops::Range;

use holdfast::archive::index::IndexReader;
use holdfast::archive::{Pattern, write_folder};
use holdfast::source::directory::DirectoryRestorer;
use holdfast::source::{RestoreJob, RestoreOptions, Restorer, Streams, Target};
use libfuzzer_sys::fuzz_target;

/// A snapshot's streams: a tarball in which every header has the right sum, so that what it says is
/// read.
struct Snapshot<'a> {
    index: &'a [u8],
    tar: Vec<u8>,
}

impl Snapshot<'_> {
    fn split(bytes: &[u8]) -> Option<(u8, Snapshot<'_>)> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let [flags, length @ ..] = *head;
        let length = usize::from(u16::from_le_bytes([length[0],
            length[1]])) | usize::from(length[2]) << 16;
        let (index, tar) = rest.split_at_checked(length)?;
        let mut tar = tar.to_vec();
        for header in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        Some((flags, Snapshot { index, tar }))
    }

    /// The bytes of files in the index; none where it cannot be read.
    fn promised(&self) -> Option<u64> {
        let mut index = IndexReader::new(self.index).ok()?;
        while index.next_entry().ok()?.is_some() {}
        index.footer().map(|footer| footer.bytes)
    }
}

impl Streams for Snapshot<'_> {
    fn whole(&self) -> std::io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.tar.as_slice()))
    }

    fn parts(&self, ranges: Vec<Range<u64>>) -> std::io::Result<Box<dyn Read + Send + '_>> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for range in ranges {
            assert!(range.start >= last && range.start < range.end, "ranges ascend and do not \
                overlap");
            last = range.end;
            let at = |offset: u64| usize::try_from(offset).map_err(Error::other);
            let part = self.tar.get(at(range.start)?..at(range.end)?);
            let part = part.ok_or_else(|| Error::other("the stream has no such part"))?;
            bytes.extend_from_slice(part);
        }
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn index(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(Some(Box::new(self.index)))
    }

    fn missing(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(None)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, snapshot)) = Snapshot::split(bytes) else { return };
    let (place, context, artifact) = (support::place(), support::context(), support::artifact());
    let pattern = |text: &str| Pattern::new(text).expect("a pattern");
    let options = RestoreOptions {
        overwrite: flags & 1 != 0,
        delete: flags & 3 == 3,
        paths: if flags & 4 == 0 { Vec::new() } else { vec![pattern("a*")] },
        ..RestoreOptions::default()
    };
    if options.overwrite {
        std::fs::create_dir_all(place.join("a/b")).expect("a folder");
        std::fs::write(place.join("a/1"), "before").expect("a file");
        std::os::unix::fs::symlink("../outside", place.join("b")).expect("a link");
    }
    let target = Target::Folder(place.clone());
    let (cx, artifact, target, options) = (&context, &artifact, &target, &options);
    let job = RestoreJob { cx, artifact, target, options };
    if flags & 8 != 0 {
        let _ = DirectoryRestorer.preview(job, &snapshot);
    }
    if flags & 16 != 0 {
        let _ = write_folder(&snapshot, b"a", &mut std::io::sink(), &context.cancel);
    }
    let restored = DirectoryRestorer.restore_from(job, &snapshot);
    if let Some(files) = restored.ok().and_then(|restored| restored.files) {
        assert!(snapshot.promised().is_some_and(|promised| files.bytes <= promised), "more than \
            the index says");
    }
    support::clear();
});
