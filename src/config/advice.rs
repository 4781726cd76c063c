//! What works and is rarely meant, in words for an operator.

use std::collections::BTreeSet;

use super::{Instance, Strategy, on_schedule};
use crate::model::Name;
use crate::source::SourceConfig;
use crate::storage::StorageConfig;
use crate::storage::s3::S3Config;

impl Instance {
    /// What an operator should think about, one sentence each: it works, but rarely is what was
    /// meant.
    pub fn advice(&self, strategy: &Strategy) -> Vec<String> {
        let mut advice = Vec::new();
        let is_folder =
            |name: &&Name| matches!(self.sources.get(*name), Some(SourceConfig::Directory(_)));
        if let Some(first) = strategy.sources.iter().position(|name| is_folder(&name))
            && let Some(late) = strategy.sources.iter().skip(first).find(|name| !is_folder(name))
            && let Some(folder) = strategy.sources.get(first)
        {
            advice.push(format!(
                "`{folder}` is taken before `{late}`: list databases first and directories last, \
                 or a row may name a file that came too late for the snapshot"
            ));
        }
        let runs = strategy.check_runnable().is_ok();
        let local = |name: &Name| matches!(self.storages.get(name), Some(StorageConfig::Local(_)));
        if runs && strategy.storages.iter().all(local) {
            advice.push(
                "Every storage of this strategy is on this machine: if it is lost, so are the \
                 backups. Add a storage elsewhere"
                    .to_owned(),
            );
        }
        for name in &strategy.storages {
            if let Some(StorageConfig::S3(config)) = self.storages.get(name)
                && let Some(class) = config.unknown_class()
            {
                advice.push(format!(
                    "`{name}` has the `storage_class` `{class}`, which AWS does not have: a store \
                     that has none of that name refuses every object"
                ));
            }
        }
        self.advise_on_retention(strategy, &mut advice);
        if runs && strategy.schedule.is_none() && strategy.active {
            advice.push(
                "There is no `schedule`: this strategy runs when it is started by hand".to_owned(),
            );
        }
        advice
    }

    /// The same of the instance as a whole.
    pub fn general_advice(&self) -> Vec<String> {
        let mut advice = self.notes.clone();
        for (kind, names, used) in [
            (
                "source",
                self.sources.keys().collect::<Vec<_>>(),
                self.strategies.values().flat_map(|all| &all.sources).collect::<Vec<_>>(),
            ),
            (
                "storage",
                self.storages.keys().collect(),
                self.strategies.values().flat_map(|all| &all.storages).collect(),
            ),
        ] {
            for name in names.into_iter().filter(|name| !used.contains(name)) {
                advice.push(format!("The {kind} `{name}` is not in any strategy"));
            }
        }
        advice
    }

    fn advise_on_retention(&self, strategy: &Strategy, advice: &mut Vec<String>) {
        // Where another configuration prunes, that one says what is kept.
        let here = || strategy.storages.iter().filter(|name| self.rules(strategy, name).prune);
        let without: Vec<&str> = here()
            .filter(|name| self.rules(strategy, name).policy.is_none())
            .map(Name::as_str)
            .collect();
        if without.len() == strategy.storages.len() {
            advice.push(
                "There is no `retention`: everything is kept, until a storage is full".to_owned(),
            );
        } else if !without.is_empty() {
            advice.push(format!(
                "There is no `retention` for `{}`: everything is kept there, until it is full",
                without.join("`, `")
            ));
        }
        let own = |name: &Name| {
            self.storage_rules.get(name).is_some_and(|rules| rules.retention.is_some())
        };
        if strategy.retention.is_some() && strategy.storages.iter().all(own) {
            advice.push(
                "Its `retention` holds nowhere: each of its storages has one of its own".to_owned(),
            );
        }
        if let Some(schedule) = strategy.schedule.as_ref().filter(|_| strategy.active) {
            let policies =
                strategy.storages.iter().filter_map(|name| self.rules(strategy, name).policy);
            let odd = policies.flat_map(|policy| on_schedule::odd(policy, schedule));
            advice.extend(odd.collect::<BTreeSet<_>>());
            for name in here() {
                let Some(StorageConfig::S3(S3Config { retain_for: Some(lock), .. })) =
                    self.storages.get(name)
                else {
                    continue;
                };
                let policy = self.rules(strategy, name).policy;
                if let Some(age) =
                    policy.and_then(|policy| on_schedule::first_goes(policy, schedule))
                    && age < *lock
                {
                    advice.push(format!(
                        "`{name}` does not let a snapshot be deleted for {lock} (`retain_for`), \
                         and `retention` lets some go after {age}: those stay until the lock ends"
                    ));
                }
            }
        }
        if !strategy.sources.is_empty() {
            return;
        }
        match here().count() {
            0 => advice.push(
                "There are no `sources` and `prune = false` on every storage: this strategy is for \
                 listing, verifying and restoring only".to_owned(),
            ),
            _ => advice.push(
                "There are no `sources`: this strategy prunes, lists, verifies and restores what \
                 another configuration backs up".to_owned(),
            ),
        }
    }
}
