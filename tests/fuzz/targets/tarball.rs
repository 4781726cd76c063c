//! Any bytes are a tarball or an error: no panic, no endless loop, and nothing outside of the
//! target is touched.
#![no_main]

mod support;

use holdfast::source::directory::DirectoryRestorer;
use holdfast::source::{RestoreJob, RestoreOptions, Restorer, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let target = Target::Folder(support::place());
    let options = RestoreOptions::default();
    let (cx, artifact) = (&support::context(), &support::artifact());
    let job = RestoreJob { cx, artifact, target: &target, options: &options };
    let _ = DirectoryRestorer.restore(job, &mut &*bytes);
    support::clear();
});
