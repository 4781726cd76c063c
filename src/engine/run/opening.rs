//! The beginning of a run: each storage is opened, locked, swept of what dead runs left, and given
//! our heartbeat.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::catalog::RunRecord;
use crate::engine::context::{OpenStorage, not_twice};
use crate::engine::error::{EngineError, chain};
use crate::engine::run::{Run, RunMember};
use crate::engine::snapshots::present::differ;
use crate::engine::write::heartbeat::Heartbeat;
use crate::engine::write::outputs::Member;
use crate::engine::write::{leftovers, writer};
use crate::model::{Cancel, Name, RUN_KEY};
use crate::pipeline::Throttle;
use crate::report::{RunReport, StorageReport};
use crate::storage::{Storage, StorageError, StorageErrorKind};

/// Room that must be left on a storage beyond what the last snapshot took.
const SPARE_BYTES: u64 = 16 << 20;

impl Run<'_> {
    /// Opens and locks each storage, collects what dead runs left there, and leaves our heartbeat.
    /// A storage that fails is out of the run; a living writer in any of them ends it.
    pub(super) async fn open_storages(
        &mut self,
        node: &str,
        heartbeat: &Heartbeat,
        last: Option<&RunRecord>,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        for name in &self.strategy.storages {
            self.engine.progress.begin(format!("opening {name}"), None);
            let config = self.instance.storages.get(name).ok_or_else(|| {
                EngineError::Internal(format!("The storage `{name}` is not in the configuration"))
            })?;
            let open = match OpenStorage::open(name, config, cancel).await {
                Ok(open) => open,
                Err(error) => {
                    let (code, error) = (error.code(), chain(&error));
                    tracing::error!(storage = %name, code = code.as_str(), "{error}");
                    self.unopened.push(StorageReport {
                        name: name.clone(),
                        address: String::new(),
                        committed: false,
                        error: Some(error),
                        code: Some(code),
                        warnings: Vec::new(),
                        notes: Vec::new(),
                        pruned: None,
                    });
                    continue;
                }
            };
            let storage = Arc::clone(&open.storage);
            let upload_rate = self.instance.upload_rate.map(Throttle::new);
            let mut member = RunMember {
                member: Member::new(open, upload_rate),
                reached: false,
                attempted: false,
                committed: false,
                warnings: Vec::new(),
                notes: Vec::new(),
                pruned: None,
                _lock: None,
            };
            let prepared = self.prepare(&mut member, storage.as_ref(), node, heartbeat, last).await;
            match prepared {
                Ok(()) => {}
                Err(error) if error.is_busy() => {
                    not_twice(
                        &member.member.open,
                        self.members.iter().map(|place| &place.member.open),
                    )
                    .await?;
                    return Err(EngineError::Locked {
                        strategy: self.strategy.name.clone(),
                        holder: writer::holder(&error),
                    });
                }
                Err(error) => member.member.fail(error),
            }
            self.members.push(member);
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
        }
        if self.members.iter().any(|member| member.member.is_well()) {
            Ok(())
        } else {
            Err(EngineError::NoStorage(
                "Each of them failed before the first source was read".to_owned(),
            ))
        }
    }

    async fn prepare(
        &self,
        member: &mut RunMember,
        storage: &dyn Storage,
        node: &str,
        heartbeat: &Heartbeat,
        last: Option<&RunRecord>,
    ) -> Result<(), StorageError> {
        let folder = self.strategy_folder();
        member._lock = storage.lock(folder.trim_end_matches('/')).await?;
        let leftovers = writer::look(storage, &folder, node, &self.id).await?;
        member.reached = true;
        let (host, told) = (self.engine.clock.now(), leftovers.now);
        // A file system mostly has the clock of its host.
        if storage.local_path().is_none() && differ(told, host) {
            member.warn(format!(
                "The clock of this host says {}, and `{}` says {}: set the clock of this host. The \
                 snapshot is dated by it, and `latest` may mean another",
                host.to_rfc3339(),
                storage.address(),
                told.to_rfc3339()
            ));
        }
        // Only once nobody else is known to write; a leftover that cannot be deleted is in nobody's
        // way.
        match leftovers::sweep(storage, &folder, &leftovers, member._lock.is_some()).await {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!(storage = %member.member.open.name, "collected what {count} \
                    unfinished run(s) left");
            }
            // Credentials that may only write are a normal case. Then others prune, and others
            // sweep.
            Err(error) if error.is_denied_or_locked() => {
                tracing::info!(storage = %member.member.open.name, "not permitted to collect what \
                    an unfinished run left");
            }
            Err(error) => {
                member.note(format!("What an unfinished run left could not be collected: {error}"));
            }
        }
        if leftovers.snapshots == 0
            && last.is_some_and(|last| has_committed(last, &member.member.open.name))
        {
            let warning = "The last run committed a snapshot there, and now there is none of this \
                strategy: was its disk not mounted, or was all of it deleted?";
            member.warn(warning.to_owned());
        }
        if let (Some(free), Some(last)) =
            (storage.free_bytes().await?, last.map(|last| last.stored_bytes))
        {
            let needed = last.saturating_add(SPARE_BYTES);
            if free < needed {
                return Err(StorageError::new(
                    StorageErrorKind::Full,
                    storage.address(),
                    "begin a run",
                    format!(
                        "{} are free, and the last snapshot took {}. Free some space, or move the \
                         storage",
                        crate::model::ByteSize(free),
                        crate::model::ByteSize(last)
                    ),
                ));
            }
        }
        writer::enter(storage, &folder, heartbeat, &self.id).await
    }

    /// Renews the heartbeat in every storage until aborted.
    pub(super) fn beat(&self, heartbeat: Heartbeat) -> AbortOnDropHandle<()> {
        let members: Vec<Arc<Member>> =
            self.members.iter().map(|member| Arc::clone(&member.member)).collect();
        let key = format!("{}{RUN_KEY}", self.folder());
        let clock = self.engine.clock.clone();
        // Each storage for itself: one that hangs must not let the heartbeat in the others grow
        // old.
        let beats = members.into_iter().map(move |member| {
            let open = member.open.clone();
            writer::beat(open, key.clone(), clock.clone(), heartbeat.clone(), move || {
                member.is_well()
            })
        });
        let beats = futures::future::join_all(beats);
        // A run that is left must not look alive.
        AbortOnDropHandle::new(tokio::spawn(async move {
            beats.await;
        }))
    }
}

/// Whether a recorded run committed to the storage of that name.
fn has_committed(run: &RunRecord, storage: &Name) -> bool {
    serde_json::from_str::<RunReport>(&run.report)
        .is_ok_and(|run| run.storages.iter().any(|one| one.name == *storage && one.committed))
}
