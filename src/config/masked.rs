//! A strategy as it is configured, to look at.

use serde_json::{Map, Value, json};

use super::{Hooks, Instance, SourceRules, Strategy};
use crate::model::{Digest, Name, without_credentials};

impl Instance {
    /// The strategy with all that it uses, in the shape of a configuration file that had nothing
    /// else, for the facts and for an operator to look at. Secrets are `***`. A string that
    /// variables were put into is shown as it was written: nobody can tell which variables are
    /// secret.
    pub fn masked(&self, strategy: &Strategy) -> Value {
        let mut masked = serde_json::to_value(self).unwrap_or_default();
        for (table, names, beside) in [
            ("sources", &strategy.sources, [json!(self.source_hooks), json!(self.source_rules)]),
            ("storages", &strategy.storages, [json!(self.storage_rules), Value::Null]),
        ] {
            let Some(all) = masked.get_mut(table) else { continue };
            let used = names.iter().filter_map(|name| {
                let mut used = all.get_mut(name.as_str())?.take();
                for own in beside.iter().filter_map(|beside| beside.get(name.as_str())) {
                    if let (Value::Object(keys), Value::Object(own)) = (&mut used, own) {
                        keys.extend(own.clone());
                    }
                }
                Some((name.to_string(), used))
            });
            let used: Map<String, Value> = used.collect();
            *all = used.into();
        }
        let mut own = serde_json::to_value(strategy).unwrap_or_default();
        // What is never started has no settings that are worth reading.
        let prunes =
            strategy.storages.iter().any(|name| self.rules(strategy, name).policy.is_some());
        let is_followed = strategy.schedule.is_some();
        if let Value::Object(keys) = &mut own {
            keys.retain(|key, _| match key.as_str() {
                "missed" | "retry" => is_followed,
                "max_delete_percent" => prunes,
                _ => true,
            });
        }
        if let Some(all) = masked.get_mut("strategies") {
            *all = json!({ strategy.name.as_str(): own });
        }
        drop_nulls(&mut masked);
        for (pointer, written) in &self.written {
            // What hides itself stays hidden: beside the variable there may be something that is
            // secret.
            if let Some(Value::String(value)) =
                masked.pointer_mut(pointer).filter(|value| *value != "***")
            {
                *value = without_credentials(written);
            }
        }
        masked
    }

    /// A digest of what decides what is taken of a source, for who compares snapshots; none where
    /// the strategy has no such source.
    pub fn rules_digest(&self, strategy: &Strategy, source: &Name) -> Option<Digest> {
        let mut own = self.masked(strategy).get_mut("sources")?.get_mut(source.as_str())?.take();
        let beside = Hooks::KEYS
            .iter()
            .chain(&SourceRules::KEYS)
            .chain(&["must_be_mount", "accept_warnings"]);
        for key in beside {
            own.as_object_mut()?.shift_remove(*key);
        }
        own.sort_all_objects();
        Some(Digest::of(own.to_string().as_bytes()))
    }
}

/// What is not set is left out, as in a file.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
