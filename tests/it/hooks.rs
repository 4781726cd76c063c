//! The operator's own programs around a run and around its sources: in their order, told what
//! happened, and what undoes is never left out.

use crate::support::daemon::until;
use crate::support::site::Site;

/// Each hook writes what it is told into `log`.
const CONFIGURATION: &str = r#"
[sources.first]
type = "command"
command = ["sh", "@/first.sh"]
before = ["sh", "@/hook.sh"]
after = ["sh", "@/hook.sh"]
on_failure = ["sh", "@/hook.sh"]
[sources.second]
type = "command"
command = ["sh", "@/second.sh"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["first", "second"]
storages = ["local"]
before = ["sh", "@/hook.sh"]
after = ["sh", "@/hook.sh", "one argument", "$HOME"]
on_failure = ["sh", "@/hook.sh"]
"#;

fn site() -> Site {
    let site = Site::new(CONFIGURATION);
    let log = site.path("log");
    let log = log.display();
    let said = "$HOLDFAST_HOOK${HOLDFAST_SOURCE:+ of $HOLDFAST_SOURCE}${HOLDFAST_OUTCOME:+: \
        $HOLDFAST_OUTCOME}";
    std::fs::write(
        site.path("hook.sh"),
        format!(
            "echo \"{said}\" >> {log}\n[ ! -e {}/fail-$HOLDFAST_HOOK-$HOLDFAST_SOURCE ]",
            site.dir.path().display()
        ),
    )
    .unwrap();
    for name in ["first", "second"] {
        std::fs::write(
            site.path(format!("{name}.sh")),
            format!("echo 'dump of {name}' >> {log}; echo data"),
        )
        .unwrap();
    }
    site
}

fn log(site: &Site) -> Vec<String> {
    std::fs::read_to_string(site.path("log"))
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn they_are_started_in_their_order_and_told_how_it_went() {
    let site = site();
    site.run(0);
    let expected = [
        "before",
        "before of first",
        "dump of first",
        "after of first: dumped",
        "dump of second",
        "after: committed",
    ];
    assert_eq!(log(&site), expected);
}

#[test]
fn arguments_are_handed_on_without_a_shell_and_the_facts_in_the_environment() {
    let site = site();
    let out = site.path("out");
    std::fs::write(
        site.path("hook.sh"),
        format!(
            "[ $HOLDFAST_HOOK != after ] || [ -n \"$HOLDFAST_SOURCE\" ] || printf '%s\\n' \
            \"$@\" \"$HOLDFAST_INSTANCE\" \"$HOLDFAST_STRATEGY\" \"$HOLDFAST_SNAPSHOT\" \"$(env | \
            grep -c SECRET)\" > {}",
            out.display()
        ),
    )
    .unwrap();
    let ran = site.backup(["--strategy", "daily", "--json"]).env("MY_SECRET", "x").expect(0).json();
    let told = std::fs::read_to_string(out).unwrap();
    let expected = ["one argument", "$HOME", "app", "daily", ran["id"].as_str().unwrap(), "0"];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected, "and nothing of our own environment");
}

#[test]
fn a_failing_before_fails_the_run_and_what_undoes_it_is_started_all_the_same() {
    let site = site();
    std::fs::write(site.path("fail-before-"), "").unwrap();
    let ran = site.run(1);
    assert_eq!(log(&site), ["before", "after: failed", "on_failure: failed"]);
    assert!(
        ran.json()["error"].as_str().unwrap().contains("the hook `before` of the strategy `daily`"),
        "{ran}"
    );
    assert!(site.folders().is_empty());
}

#[test]
fn a_source_that_fails_or_its_before_is_followed_by_its_hooks_and_those_of_the_run() {
    let expected = [
        "before",
        "before of first",
        "after of first: failed",
        "on_failure of first: failed",
        "after: failed",
        "on_failure: failed",
    ];
    for (file, content) in [("fail-before-first", ""), ("first.sh", "echo half; exit 7")] {
        let site = site();
        std::fs::write(site.path(file), content).unwrap();
        site.run(1);
        assert_eq!(log(&site), expected, "{file}");
        assert!(site.folders().is_empty());
    }
}

#[test]
fn a_failing_after_is_a_problem_of_a_committed_run() {
    for hook in ["fail-after-", "fail-after-first"] {
        let site = site();
        std::fs::write(site.path(hook), "").unwrap();
        let ran = site.run(3).json();
        assert_eq!(ran["completeness"], "whole", "what was dumped is as good as before");
        let warnings = ran["warnings"].to_string();
        assert!(warnings.contains("the hook `after`"), "{ran:#}");
        assert!(!warnings.contains("nothing was dumped"), "{ran:#}");
        assert_eq!(site.ids().len(), 1);
    }
}

#[test]
fn a_run_that_is_cancelled_is_unfrozen_too() {
    let site = site();
    let begun = site.path("begun");
    std::fs::write(site.path("first.sh"), format!("touch {}; sleep 1000", begun.display()))
        .unwrap();
    let running = site.backup(["--strategy", "daily"]).spawn();
    until("the dump has begun", || begun.exists());
    running.signal(rustix::process::Signal::TERM);
    running.wait().expect(1);
    let expected = [
        "before",
        "before of first",
        "after of first: cancelled",
        "on_failure of first: cancelled",
        "after: cancelled",
        "on_failure: cancelled",
    ];
    assert_eq!(log(&site), expected);
}

#[test]
fn a_dry_run_shows_them_and_starts_none() {
    let site = site();
    let plan = site.backup(["--strategy", "daily", "--dry-run"]).expect(0);
    assert!(plan.out().contains("before"), "{plan}");
    assert!(!plan.out().contains("one argument"), "arguments may hold a password: {plan}");
    assert!(log(&site).is_empty());
}

#[test]
fn an_empty_hook_is_refused() {
    let site = Site::new(&CONFIGURATION.replace("before = [\"sh\", \"@/hook.sh\"]", "before = []"));
    let refused = site.backup(["--strategy", "daily"]).expect(2);
    assert!(refused.err().contains("sources.first.before"), "{refused}");
    assert!(refused.err().contains("strategies.daily.before"), "{refused}");
}

#[test]
fn an_after_that_hangs_is_ended_with_the_run_when_that_has_had_its_grace() {
    let site = site();
    let configuration = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("stop_grace = \"1s\"\n{configuration}")).unwrap();
    let (begun, pid) = (site.path("begun"), site.path("pid"));
    std::fs::write(site.path("first.sh"), format!("touch {}; sleep 1000", begun.display()))
        .unwrap();
    let hook = format!(
        "[ $HOLDFAST_HOOK = before ] || {{ echo $$ > {}; exec sleep 1000; }}",
        pid.display()
    );
    std::fs::write(site.path("hook.sh"), hook).unwrap();
    let running = site.backup(["--strategy", "daily"]).spawn();
    until("the dump has begun", || begun.exists());
    running.signal(rustix::process::Signal::TERM);
    running.wait().expect(1);
    let pid = std::fs::read_to_string(pid).unwrap();
    until("the hook is gone", || !std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
}
