//! Where a configuration is looked for, and folders of several files.

use std::fs;
use std::path::Path;

use super::{SMALL, env};
use crate::config::{ConfigErrors, Locations};

fn load(
    folder: &Path,
    config: Option<&Path>,
    environment: &[(&str, &str)],
) -> Result<Vec<String>, ConfigErrors> {
    let locations =
        Locations { file: folder.join("backup.toml"), folder: folder.join("strategies") };
    let settings = locations.load(config, env(environment))?;
    Ok(settings.instances.iter().map(|instance| instance.name.to_string()).collect())
}

#[test]
fn the_configuration_is_looked_for_where_it_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write =
        |name: &str, instance: &str| fs::write(at(name), SMALL.replace("small", instance)).unwrap();
    let names = |config: Option<&str>, variable: &str| {
        let config = config.map(at);
        load(folder.path(), config.as_deref(), &[("BACKUP_CONFIG", variable)])
            .unwrap_or_else(|errors| panic!("{errors}"))
    };
    let wrong = |config: Option<&str>| {
        let config = config.map(at);
        load(folder.path(), config.as_deref(), &[]).unwrap_err().to_string()
    };
    assert!(wrong(None).contains("There is no configuration here, nor in"));
    fs::create_dir(at("strategies")).unwrap();
    assert!(wrong(None).ends_with("strategies: There is no `*.toml` in this folder"));
    write("strategies/b.toml", "second");
    write("strategies/a.toml", "first");
    write("strategies/.hidden.toml", "hidden");
    write("strategies/a.toml.bak", "old");
    assert_eq!(names(None, ""), ["first", "second"]);
    write("backup.toml", "default");
    assert_eq!(names(None, ""), ["default"]);
    write("other.toml", "other");
    assert_eq!(names(None, at("other.toml").to_str().unwrap()), ["other"]);
    assert_eq!(names(Some("strategies"), at("other.toml").to_str().unwrap()), ["first", "second"]);
    assert!(wrong(Some("missing.toml")).contains("missing.toml: Could not read it: No such file"));
    fs::write(at("latin.toml"), b"instance = \"\xe9\"").unwrap();
    assert!(wrong(Some("latin.toml")).ends_with("latin.toml: Not UTF-8, which TOML must be"));

    write("strategies/c.toml", "first");
    fs::write(at("strategies/daemon.toml"), "listen = \"8484\"\nmax_concurent = 2\n").unwrap();
    write("strategies/broken.toml", "Broken");
    let errors = wrong(Some("strategies"));
    for expected in [
        "c.toml: instance: `first` is described by `",
        "broken.toml:2:12: instance: `Broken` is not a name",
        "daemon.toml:1:10: listen: `8484` is not an address and a port",
        "daemon.toml:2:1: max_concurent: Unknown key\n  hint: did you mean `max_concurrent`?",
    ] {
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
    }
}

#[test]
fn the_settings_of_the_scheduler_stand_in_the_only_file_or_in_that_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let load = || crate::config::load(Some(folder.path()), env(&[]));
    let daemon = || load().unwrap_or_else(|errors| panic!("{errors}")).daemon;
    let listen = "listen = \"127.0.0.1:8484\"\nlisten_hosts = [\"b.example.org\"]\n\
                  max_concurrent = 3\n";
    let expected = crate::config::Daemon {
        max_concurrent: 3,
        listen: Some("127.0.0.1:8484".parse().unwrap()),
        listen_hosts: Some(vec!["b.example.org".parse().unwrap()]),
    };
    write("one.toml", &format!("{listen}{}", SMALL.replace("small", "one")));
    assert_eq!(daemon(), expected);
    write("two.toml", &SMALL.replace("small", "two"));
    let errors = load().err().unwrap().to_string();
    for key in ["listen", "listen_hosts", "max_concurrent"] {
        assert!(
            errors.contains(&format!("one.toml: {key}: One scheduler looks after every file")),
            "{errors}"
        );
    }
    assert!(errors.contains("`daemon.toml`"), "{errors}");
    write("one.toml", &SMALL.replace("small", "one"));
    assert_eq!(daemon(), crate::config::Daemon::default());
    write("daemon.toml", listen);
    assert_eq!(daemon(), expected);
    assert_eq!(load().unwrap_or_else(|errors| panic!("{errors}")).instances.len(), 2);
}

#[test]
fn strategies_of_the_same_name_are_told_apart_by_their_instance() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let text = SMALL
            .replace("small", name)
            .replace("strategies.daily", &format!("strategies.daily-{name}"));
        let daily = text.split("[strategies").nth(1).unwrap().split_once(']').unwrap().1.to_owned();
        fs::write(
            folder.path().join(format!("{name}.toml")),
            format!("{text}[strategies.both]{daily}"),
        )
        .unwrap();
    }
    let settings = crate::config::load(Some(folder.path()), env(&[]))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let find = |name: &str, instance: Option<&str>| {
        settings
            .find_strategy(name, instance)
            .map(|(instance, _)| instance.name.to_string())
            .map_err(|error| error.to_string())
    };
    assert_eq!(find("daily-two", None).as_deref(), Ok("two"));
    assert_eq!(find("both", Some("one")).as_deref(), Ok("one"));
    assert!(
        find("both", None)
            .unwrap_err()
            .contains("several instances: `one`, `two`. Say which with `--instance`")
    );
    assert_eq!(
        find("daily-tow", None),
        Err("There is no strategy `daily-tow`: did you mean `daily-two`?".to_owned())
    );
    assert_eq!(
        find("both", Some("three")),
        Err("There is no instance `three`: expected one of `one`, `two`".to_owned())
    );
    assert!(find("daily-one", Some("two")).is_err());
}
