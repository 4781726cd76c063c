//! Retention by strategy and by storage, and configurations that only prune.

use super::{SMALL, bad, good};

/// Two storages and two strategies, of which one storage has rules of its own.
const RULES: &str = r#"
instance = "small"
[sources.files]
type = "directory"
path = "data"
[storages.here]
type = "local"
path = "../backups"
[storages.vault]
type = "s3"
bucket = "b"
retention = { keep_yearly = -1, keep_within = "${SPAN}" }
prune = false
max_delete_percent = 100
[strategies.daily]
sources = ["files"]
storages = ["here", "vault"]
retention = { keep_daily = 7 }
max_delete_percent = 20
[strategies.by-hand]
sources = ["files"]
storages = ["here", "vault"]
"#;

#[test]
fn a_storages_rules_go_before_those_of_the_strategy() {
    let instance = good("a.toml", RULES, &[("SPAN", "2d")]);
    let rules = |strategy: &str, storage: &str| {
        let strategy = instance.find_strategy(strategy).unwrap();
        let rules = instance.rules(strategy, &storage.parse().unwrap());
        (
            rules.policy.map(|policy| serde_json::to_string(policy).unwrap()),
            rules.prune,
            rules.max_delete_percent,
        )
    };
    let vault = Some(r#"{"keep_yearly":"unlimited","keep_within":"2d"}"#.to_owned());
    assert_eq!(rules("daily", "here"), (Some(r#"{"keep_daily":7}"#.to_owned()), true, 20));
    assert_eq!(rules("daily", "vault"), (vault.clone(), false, 100));
    assert_eq!(rules("by-hand", "here"), (None, true, 50));
    assert_eq!(rules("by-hand", "vault"), (vault, false, 100));
    assert_eq!(rules("daily", "gone"), (Some(r#"{"keep_daily":7}"#.to_owned()), true, 20));

    let masked = instance.masked(instance.find_strategy("daily").unwrap());
    let at = |pointer: &str| masked.pointer(pointer).map(ToString::to_string).unwrap_or_default();
    assert!(!at("/storages/here").contains("prune"), "what is not set is not shown");
    assert_eq!(at("/storages/vault/prune"), "false");
    assert_eq!(
        at("/storages/vault/retention"),
        r#"{"keep_yearly":"unlimited","keep_within":"2d"}"#
    );
    assert_eq!(at("/storages/vault/max_delete_percent"), "100");
    assert_eq!(at("/strategies/daily/max_delete_percent"), "20");
    let small = good("a.toml", SMALL, &[]);
    let masked = small.masked(small.find_strategy("daily").unwrap()).to_string();
    assert!(!masked.contains("max_delete_percent"), "a brake on nothing: {masked}");
}

#[test]
fn what_is_wrong_with_a_storages_rules_is_said_where_it_is() {
    for (from, to, expected) in [
        (
            "max_delete_percent = 100",
            "max_delete_percent = 0",
            "a.toml:14:22: storages.vault.max_delete_percent: Out of range: expected a number from \
             1 to 100",
        ),
        (
            "max_delete_percent = 20",
            "max_delete_percent = 101",
            "a.toml:19:22: strategies.daily.max_delete_percent: Out of range: expected a number \
             from 1 to 100",
        ),
        (
            "max_delete_percent = 20",
            "max_delete_percent = 300",
            "a.toml:19:22: strategies.daily.max_delete_percent: Out of range",
        ),
        (
            "max_delete_percent = 20",
            "max_delete_percent = \"50%\"",
            "strategies.daily.max_delete_percent: Expected an integer, found a string",
        ),
        ("max_delete_percent = 20", "max_delete_percent = 12.5", "found a number with a fraction"),
        (
            "prune = false",
            "prune = \"false\"",
            "a.toml:13:9: storages.vault.prune: Expected `true` or `false`, found a string\n  \
             hint: write it without quotes",
        ),
        (
            "prune = false",
            "prunes = false",
            "a.toml:13:1: storages.vault.prunes: Unknown key\n  hint: did you mean `prune`?",
        ),
        (
            "keep_yearly = -1",
            "keep_yearly = 0",
            "a.toml:12:29: storages.vault.retention.keep_yearly: `0` is not a count",
        ),
        ("keep_yearly = -1", "keep_jearly = 1", "hint: did you mean `keep_yearly`?"),
        (
            "{ keep_yearly = -1, keep_within = \"${SPAN}\" }",
            "{}",
            "a.toml:12:13: storages.vault.retention: Keeps nothing\n  hint: add a rule, such as \
             `keep_daily = 30`, or `keep_last = \"unlimited\"` to keep everything here",
        ),
        (
            "{ keep_yearly = -1, keep_within = \"${SPAN}\" }",
            "7",
            "a.toml:12:13: storages.vault.retention: Expected a table, found an integer",
        ),
        (
            "path = \"../backups\"",
            "path = \"../backups\"\nbucket = \"b\"",
            "storages.here.bucket: Unknown key",
        ),
    ] {
        let text = RULES.replacen(from, to, 1);
        assert_ne!(text, RULES, "{from}");
        let errors = bad("a.toml", &text, &[("SPAN", "2d")]);
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
    }
    let errors = bad("a.toml", RULES, &[("SPAN", "hunter2")]);
    assert!(
        errors.contains("storages.vault.retention.keep_within: `***` is not a period"),
        "{errors}"
    );
}

#[test]
fn a_strategy_without_sources_prunes_what_another_configuration_backs_up() {
    let text = SMALL
        .replacen("[sources.files]\ntype = \"directory\"\npath = \"data\"\n", "", 1)
        .replacen("sources = [\"files\"]\n", "retention = { keep_daily = 7 }\n", 1);
    let instance = good("a.toml", &text, &[]);
    let strategy = instance.find_strategy("daily").unwrap();
    let refused = strategy.check_runnable().unwrap_err().to_string();
    assert!(
        refused.starts_with("The strategy `daily` has no `sources` in this configuration"),
        "{refused}"
    );
    let masked = instance.masked(strategy);
    assert_eq!(masked.pointer("/strategies/daily/sources"), None);
    let advice = instance.advice(strategy);
    assert_eq!(advice.len(), 1, "{advice:#?}");
    assert!(advice[0].starts_with("There are no `sources`: this strategy prunes,"), "{advice:#?}");
    // The storage's own retention is one too.
    let of_storage = text.replacen("retention = { keep_daily = 7 }\n", "", 1).replacen(
        "path = \"../backups\"\n",
        "path = \"../backups\"\nretention = { keep_daily = 7 }\n",
        1,
    );
    good("a.toml", &of_storage, &[]);

    for (from, to, expected) in [
        (
            "retention = { keep_daily = 7 }\n",
            "",
            "a.toml:6:13: strategies.daily: Missing key `sources`\n  hint: list what is backed up; \
             or, to prune or drill what another configuration backs up, set `retention` or `drill`",
        ),
        (
            "retention =",
            "sources = []\nretention =",
            "a.toml:7:11: strategies.daily.sources: Expected at least 1 entry",
        ),
        (
            "retention =",
            "sources = [\"db\"]\nretention =",
            "There is no source `db`\n  hint: there is none",
        ),
        (
            "retention =",
            "schedule = \"@daily\"\nretention =",
            "a.toml:7:12: strategies.daily.schedule: Nothing can be run: the strategy has no \
             `sources`, so that it only prunes and drills\n  hint: list `sources`; or remove \
             `schedule`",
        ),
        (
            "[storages.here]",
            "[sources]\n[storages.here]",
            "a.toml:3:2: sources: Expected at least 1 entry",
        ),
    ] {
        let text = text.replacen(from, to, 1);
        let errors = bad("a.toml", &text, &[]);
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
    }
}

#[test]
fn advice_on_retention_is_about_each_storage() {
    let advice = |text: &str, strategy: &str| {
        let instance = good("a.toml", text, &[("SPAN", "2d")]);
        let all = instance.advice(instance.find_strategy(strategy).unwrap());
        all.into_iter().filter(|line| line.contains("retention")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(advice(RULES, "daily"), "");
    assert_eq!(
        advice(RULES, "by-hand"),
        "There is no `retention` for `here`: everything is kept there, until it is full"
    );
    // Another configuration prunes there, and says what is kept.
    let text =
        RULES.replacen("retention = { keep_yearly = -1, keep_within = \"${SPAN}\" }\n", "", 1);
    assert!(advice(&text, "by-hand").starts_with("There is no `retention` for `here`:"));
    let text = text.replacen("prune = false\n", "", 1);
    assert!(advice(&text, "by-hand").starts_with("There is no `retention`: everything is kept"));
    let text = RULES.replacen("[\"here\", \"vault\"]\nretention", "[\"vault\"]\nretention", 1);
    assert_eq!(
        advice(&text, "daily"),
        "Its `retention` holds nowhere: each of its storages has one of its own"
    );
}

#[test]
fn a_rule_that_keeps_nothing_on_the_schedule_is_refused_where_it_is_written() {
    let text = RULES.replacen(
        "storages = [\"here\", \"vault\"]\nretention = { keep_daily = 7 }",
        "schedule = \"30 1 * * *\"\ntimezone = \"Europe/Oslo\"\n\
         storages = [\"here\", \"vault\"]\n\
         retention = { keep_daily = 7, keep_within = \"12h\" }",
        1,
    );
    let expected = "a.toml:20:45: strategies.daily.retention.keep_within: `keep_within = 12h` \
        keeps nothing on the schedule `30 1 * * *`: there are 23h and more between two runs, so \
        only the newest snapshot is so young, which is kept anyway\n  hint: make it longer than \
        the time from one run to the next, or remove it";
    assert_eq!(bad("a.toml", &text, &[("SPAN", "2d")]), expected);
    // It is said together with what else is wrong.
    let errors = bad("a.toml", &text.replacen("instance", "instanze", 1), &[("SPAN", "2d")]);
    assert!(errors.contains(expected) && errors.contains("did you mean `instance`"), "{errors}");
    good("a.toml", &text.replacen("schedule", "active = false\nschedule", 1), &[("SPAN", "2d")]);

    // A storage's rules are for all strategies there; here one of them is run by hand.
    let text = text.replacen(", keep_within = \"12h\"", "", 1);
    good("a.toml", &text, &[("SPAN", "12h")]);
    let daily =
        text.replacen("[strategies.by-hand]", "[strategies.by-hand]\nschedule = \"@weekly\"", 1);
    let errors = bad("a.toml", &daily, &[("SPAN", "12h")]);
    let expected =
        "a.toml:12:47: storages.vault.retention.keep_within: `keep_within = 12h` keeps nothing";
    assert!(errors.starts_with(expected), "{errors}");
    let hourly =
        text.replacen("[strategies.by-hand]", "[strategies.by-hand]\nschedule = \"@hourly\"", 1);
    good("a.toml", &hourly, &[("SPAN", "12h")]);

    let instance =
        good("a.toml", &text.replacen("keep_daily", "keep_hourly", 1), &[("SPAN", "1d")]);
    let advice = instance.advice(instance.find_strategy("daily").unwrap()).join("\n");
    assert!(advice.contains("`keep_hourly = 7` keeps the last 7 of the schedule"), "{advice}");
    assert!(advice.contains("`keep_within = 1d` is just as long as"), "{advice}");
    let advice = instance.advice(instance.find_strategy("by-hand").unwrap()).join("\n");
    assert!(!advice.contains("keep_within"), "{advice}");
}

#[test]
fn a_lock_that_is_longer_than_what_is_kept_is_said() {
    let text = SMALL.replacen(
        "sources = ",
        "schedule = \"30 1 * * *\"\nretention = { keep_daily = 7, keep_yearly = 3 }\nsources = ",
        1,
    );
    let text = text.replacen(
        "type = \"local\"\npath = \"../backups\"\n",
        "type = \"s3\"\nbucket = \"b\"\nretain_for = \"LOCK\"\n",
        1,
    );
    for (lock, said) in [("30d", true), ("7d", false)] {
        let instance = good("a.toml", &text.replacen("LOCK", lock, 1), &[]);
        let advice = instance.advice(instance.find_strategy("daily").unwrap()).join("\n");
        let words = "`here` does not let a snapshot be deleted for 30d (`retain_for`), and \
            `retention` lets some go after 7d: those stay until the lock ends";
        assert_eq!(advice.contains(words), said, "{advice}");
        assert_eq!(advice.contains("retain_for"), said, "{advice}");
    }
}

#[test]
fn every_storage_has_the_same_rules_beside_its_own_settings() {
    let kinds = |schema: &serde_json::Value| -> Vec<Vec<String>> {
        let kinds = schema["oneOf"].as_array().unwrap().iter();
        kinds
            .map(|kind| kind["properties"].as_object().unwrap().keys().cloned().collect())
            .collect()
    };
    let own = kinds(schemars::schema_for!(crate::storage::StorageConfig).as_value());
    let with_rules = kinds(&crate::config::schema()["$defs"]["Storage"]);
    assert_eq!(own.len(), with_rules.len());
    for (own, with_rules) in own.iter().zip(with_rules) {
        for rule in ["retention", "prune", "max_delete_percent"] {
            assert!(!own.iter().any(|key| key == rule), "{own:?}");
            assert!(with_rules.iter().any(|key| key == rule), "{with_rules:?}");
        }
    }
}

#[test]
fn the_brake_is_for_more_than_one_and_more_than_so_many_percent() {
    for (percent, going, all, refused) in [
        (50, 0, 0, false),
        (50, 1, 1, false),
        (50, 1, 2, false),
        (50, 2, 4, false),
        (50, 3, 5, true),
        // Of few, two soon are a large part.
        (50, 2, 3, false),
        (1, 2, 9, false),
        (50, 8, 9, true),
        (10, 2, 10, true),
        (1, 1, 1_000, false),
        (1, 10, 1_000, false),
        (1, 11, 1_000, true),
        (33, 33, 99, true),
        (34, 33, 99, false),
        (100, 99, 100, false),
        (100, 100, 100, false),
        (99, usize::MAX, usize::MAX, true),
    ] {
        let rules = crate::config::Rules { policy: None, prune: true, max_delete_percent: percent };
        assert_eq!(rules.is_too_much(going, all), refused, "{going} of {all} at {percent} %");
    }
}
