//! Scheduled backups of applications: their databases and their files together, by named
//! strategies, to local or S3 storage, and back.
//!
//! The rooms, lowest layer first. A room imports only lower layers, and the rooms of one layer do
//! not import each other; `tests/it/layers.rs` holds that.
//!
//! | Layer | Room | Knows |
//! |---|---|---|
//! | 0 | [`model`] | names, ids, the manifest, digests, secrets, time |
//! | 1 | [`archive`] | tarballs and the index of what is in them |
//! | 2 | [`source`] | systems that bytes come from and go back to |
//! | 2 | [`pipeline`] | blocks, compression, encryption, digests, and the inverse |
//! | 2 | [`storage`] | named objects at rest |
//! | 2 | [`retention`] | the policy of what is kept |
//! | 2 | [`schedule`] | cron lines, time zones, the next fire |
//! | 2 | [`catalog`] | the local index of runs and snapshots |
//! | 2 | [`report`] | what happens in a run, for whoever shows it or is told |
//! | 3 | [`config`] | the configuration file, validated |
//! | 4 | [`engine`] | run, verify, restore, drill, prune; the locks |
//! | 5 | [`daemon`] | running every strategy on time |
//! | 6 | [`cli`] | the commands; the only room that prints |

pub mod archive;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod model;
pub mod pipeline;
pub mod report;
pub mod retention;
pub mod schedule;
pub mod source;
pub mod storage;
