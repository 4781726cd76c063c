//! What goes where, by the request and the manifest. Nothing is touched, nothing is read.

use std::num::NonZeroU32;

use super::{Destination, Missing, PlannedArtifact, RestorePlan, RestoreRequest, Work};
use crate::engine::context::OpenStorage;
use crate::engine::error::EngineError;
use crate::engine::read::by_hand::restore_artifact;
use crate::engine::read::databases::Chosen;
use crate::model::{ArtifactKind, DatabaseUrl, Facts, Manifest, Name};
use crate::source::{Target, restorer};

/// Refuses several artifacts for one database.
fn ensure_one_each(url: &DatabaseUrl, plan: &RestorePlan) -> Result<(), EngineError> {
    let artifacts = &plan.artifacts;
    for (number, first) in artifacts.iter().enumerate() {
        let Some(second) =
            artifacts.iter().skip(number + 1).find(|other| other.place == first.place)
        else {
            continue;
        };
        let problem = if first.source == second.source && url.names_database() {
            format!(
                "`--into` names one database, and the source `{}` has several: choose one with \
                 `--database`, or leave the database out of the address, so that each goes to the \
                 database of its own name",
                first.source
            )
        } else if first.source == second.source {
            format!("`{}` and `{}` would go to the same database", first.name, second.name)
        } else {
            format!(
                "`--into` takes one database, and the snapshot has `{}` and `{}`: choose one with \
                 `--source`",
                first.source, second.source
            )
        };
        return Err(EngineError::Request(problem));
    }
    Ok(())
}

pub(super) fn make_plan(
    storage: &OpenStorage,
    manifest: &Manifest,
    facts: Option<&Facts>,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    let present: Vec<&Name> =
        manifest.artifacts.iter().filter_map(|artifact| artifact.source.as_ref()).collect();
    for wanted in &request.sources {
        if !present.contains(&wanted) {
            let mut names: Vec<String> = present.iter().map(|name| format!("`{name}`")).collect();
            names.dedup();
            return Err(EngineError::Request(format!(
                "The snapshot has no source `{wanted}`; it has {}",
                names.join(", ")
            )));
        }
    }
    let mut plan = RestorePlan {
        instance: manifest.instance.clone(),
        strategy: manifest.strategy.clone(),
        id: manifest.id.clone(),
        storage: storage.name.clone(),
        passed_over: Vec::new(),
        artifacts: Vec::new(),
        left_out: Vec::new(),
        missing: Missing::default(),
        fetched_bytes: 0,
    };
    let some_files = !request.options.paths.is_empty();
    let chosen = Chosen::new(facts, &request.databases)?;
    match (chosen.renamed(), &request.destination) {
        (Some(name), Destination::Database(url)) if url.names_database() => {
            return Err(EngineError::Request(format!(
                "`--into` and the new name of `{name}` both say which database to restore to: \
                 leave one of them out"
            )));
        }
        (Some(name), Destination::Folder(_)) => {
            return Err(EngineError::Request(format!(
                "A new name of `{name}` is for `--into`: files in a folder are named as the \
                 artifacts are"
            )));
        }
        _ => {}
    }
    for artifact in &manifest.artifacts {
        let Some(source) = &artifact.source else { continue };
        if !(request.sources.is_empty() || request.sources.contains(source))
            || restorer(artifact.kind).is_none()
        {
            continue;
        }
        if some_files && !artifact.kind.is_files() {
            if request.sources.contains(source) {
                return Err(EngineError::Request(format!(
                    "`--path` is for folders of files, and the source `{source}` is none: leave \
                     `--path` or this `--source` out"
                )));
            }
            plan.left_out
                .push(format!("`{}` is no folder of files, which `--path` is for", artifact.name));
            continue;
        }
        let restore = restore_artifact(&manifest.id, artifact, facts);
        if !chosen.has(restore.of.as_deref()) {
            plan.left_out.push(format!("`{}` is none of the databases chosen", artifact.name));
            continue;
        }
        let target = match &request.destination {
            // A folder of files is restored to a folder for itself.
            Destination::Folder(folder) => Target::Folder(match artifact.number() {
                number if artifact.kind.is_files() && number > NonZeroU32::MIN => {
                    folder.join(format!("{source}.{number}"))
                }
                _ => folder.join(source.as_str()),
            }),
            Destination::Database(url) => match artifact.kind {
                kind if kind.is_database() => Target::Database(match restore.of.as_deref() {
                    Some(of) if !url.names_database() => url.with_database(chosen.new_name(of)),
                    _ => url.clone(),
                }),
                ArtifactKind::PgGlobals => {
                    plan.left_out.push(format!(
                        "`{}` (roles of the whole server): restore it with `--to`, look at it, and \
                         feed it to `psql`",
                        artifact.name
                    ));
                    continue;
                }
                _ if request.sources.contains(source) => {
                    return Err(EngineError::Request(format!(
                        "The source `{source}` is not a database: restore it with `--to DIR`"
                    )));
                }
                _ => {
                    plan.left_out.push(format!(
                        "`{}` is not a database: restore it with `--to DIR`",
                        artifact.name
                    ));
                    continue;
                }
            },
            Destination::Commands(commands) => match commands
                .iter()
                .find(|(name, _)| name == source)
            {
                Some((_, command)) if artifact.kind == ArtifactKind::Stream => {
                    Target::Command(Box::new(command.clone()))
                }
                _ => {
                    plan.left_out
                        .push(format!("`{}`: its source has no `restore_command`", artifact.name));
                    continue;
                }
            },
        };
        let place = match &target {
            Target::Folder(folder) => folder.display().to_string(),
            Target::Database(url) => url.masked(),
            Target::Command(config) => config
                .restore_command
                .as_ref()
                .and_then(|command| command.first())
                .cloned()
                .unwrap_or_default(),
        };
        plan.artifacts.push(PlannedArtifact {
            name: artifact.name.clone(),
            source: source.clone(),
            of: restore.of.clone(),
            place,
            plain_bytes: restore.plain_bytes,
            preview: None,
            work: Work { artifact: artifact.clone(), restore, target },
        });
    }
    if let Destination::Database(url) = &request.destination {
        ensure_one_each(url, &plan)?;
    }
    if let (true, [first, second, ..]) = (some_files, plan.artifacts.as_slice()) {
        return Err(EngineError::Request(format!(
            "`--path` is counted from one folder, and the snapshot has `{}` and `{}`: choose one \
             with `--source`",
            first.source, second.source
        )));
    }
    if plan.artifacts.is_empty() {
        return Err(EngineError::Request(format!(
            "There is nothing to restore. {}",
            plan.left_out.join(". ")
        )));
    }
    Ok(plan)
}
