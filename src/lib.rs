//! Scheduled backups of applications: their databases and their files together, by named
//! strategies, to local or S3 storage, and back.
//!
//! The rooms, lowest layer first. A room imports only lower layers, and the rooms of one layer do
//! not import each other; `tests/it/layers.rs` holds that.
//!
//! | Layer | Room | Knows |
//! |---|---|---|
//! | 0 | [`model`] | names, ids, the manifest, digests, secrets, time |
//! | 1 | [`source`] | systems that bytes come from and go back to |
//! | 1 | [`pipeline`] | blocks, compression, encryption, digests, and the inverse |
//! | 1 | [`storage`] | named objects at rest |
//! | 1 | [`retention`] | the policy of what is kept |
//! | 1 | [`schedule`] | cron lines, time zones, the next fire |
//! | 1 | [`catalog`] | the local index of runs and snapshots |
//! | 1 | [`report`] | what happens in a run, for whoever shows it or is told |
//! | 2 | [`config`] | the configuration file, validated |
//! | 3 | [`engine`] | run, verify, restore, drill, prune; the locks |
//! | 4 | [`daemon`] | running every strategy on time |
//! | 5 | [`cli`] | the commands; the only room that prints |

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
