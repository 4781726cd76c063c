//! Any bytes are an index or an error: no panic, no endless loop, and what was read is what the
//! footer counts.
#![no_main]

use holdfast::archive::index::IndexReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut index) = IndexReader::new(bytes) else { return };
    let mut entries = 0;
    while let Ok(Some(_)) = index.next_entry() {
        entries += 1;
    }
    if let Some(footer) = index.footer() {
        assert_eq!(footer.entries, entries);
    }
});
