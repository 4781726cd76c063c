//! The examples for containers and for plain hosts: valid by the schemas of those who read them,
//! and consistent in themselves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::model::Span;
use serde_json::Value;

use crate::support::container::{mounts, texts, user, yaml};
use crate::support::{age_key, backup, repository, sh, temp, variable};

const VARIANTS: [&str; 3] = ["local", "s3", "non-root"];
/// Those that Holdfast backs up with.
const MANIFESTS: [&str; 2] = ["sidecar", "cronjob"];

fn examples() -> PathBuf {
    repository().join("examples")
}

fn compose(variant: &str) -> Value {
    yaml(&examples().join("compose").join(variant).join("compose.yaml")).remove(0)
}

fn manifest(name: &str) -> Vec<Value> {
    yaml(&examples().join("kubernetes").join(format!("{name}.yaml")))
}

/// The pod of a manifest.
fn pod(documents: &[Value]) -> &Value {
    let pods = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    documents.iter().find_map(|document| pods.iter().find_map(|at| document.pointer(at))).unwrap()
}

/// The container of Holdfast in a manifest.
fn container(documents: &[Value]) -> &Value {
    let containers = pod(documents)["containers"].as_array().unwrap();
    containers
        .iter()
        .find(|container| container["image"].as_str().unwrap().contains("/backup:"))
        .unwrap()
}

fn kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap()
}

/// Each example by its name, with its configuration.
fn configurations() -> Vec<(String, String)> {
    let read = |path: String| std::fs::read_to_string(examples().join(path)).unwrap();
    let mut all: Vec<(String, String)> = Vec::new();
    for variant in VARIANTS {
        all.push((variant.to_owned(), read(format!("compose/{variant}/config/backup.toml"))));
    }
    for name in MANIFESTS {
        let text =
            kind(&manifest(name), "ConfigMap")["data"]["backup.toml"].as_str().unwrap().to_owned();
        all.push((name.to_owned(), text));
    }
    all.push(("systemd".to_owned(), read("systemd/backup.toml".to_owned())));
    all
}

fn configuration(name: &str) -> toml::Table {
    configurations().into_iter().find(|(known, _)| known == name).unwrap().1.parse().unwrap()
}

#[test]
fn every_compose_file_is_valid_by_the_compose_specification() {
    let files: Vec<String> =
        VARIANTS.map(|variant| format!("examples/compose/{variant}/compose.yaml")).into();
    let check = format!(
        r#""$1" -m check_jsonschema --builtin-schema vendor.compose-spec {}"#,
        files.join(" ")
    );
    sh(&repository(), &check, &[variable("HOLDFAST_TEST_PYTHON").as_ref()]);
    // No other compose file lies about unchecked, and the judge does judge.
    let all = sh(
        &repository(),
        "find examples -name 'compose*.y*ml' -o -name 'docker-compose*' | wc -l",
        &[],
    );
    assert_eq!(all.trim(), VARIANTS.len().to_string());
    let folder = temp();
    std::fs::write(
        folder.path().join("compose.yaml"),
        "services: { a: { image: b, red_only: true } }\n",
    )
    .unwrap();
    let refused = r#"! "$1" -m check_jsonschema --builtin-schema vendor.compose-spec compose.yaml"#;
    assert!(
        sh(folder.path(), refused, &[variable("HOLDFAST_TEST_PYTHON").as_ref()])
            .contains("red_only")
    );
}

#[test]
fn every_manifest_is_valid_by_the_schemas_of_kubernetes() {
    let python = variable("HOLDFAST_TEST_PYTHON");
    let check =
        r#""$1" -m kubernetes_validate --strict -k "$2" sidecar.yaml cronjob.yaml restore.yaml"#;
    for version in ["1.29.0", "1.37.0"] {
        sh(&examples().join("kubernetes"), check, &[python.as_ref(), version.as_ref()]);
    }
    let all = sh(&examples().join("kubernetes"), "ls | grep -cv README.md", &[]);
    assert_eq!(all.trim(), "3", "and there is no other");
    let folder = temp();
    let text = std::fs::read_to_string(examples().join("kubernetes/sidecar.yaml")).unwrap();
    std::fs::write(folder.path().join("a.yaml"), text.replace("livenessProbe", "livelinessProbe"))
        .unwrap();
    sh(folder.path(), r#"! "$1" -m kubernetes_validate --strict a.yaml"#, &[python.as_ref()]);
}

#[test]
fn the_units_of_systemd_are_verified_by_it() {
    let folder = temp();
    let script = r#"
        cp "$1"/* . && sed -i "s|/usr/local/bin/backup|$2|" *.service
        mv backup@.service backup@daily.service && mv backup@.timer backup@daily.timer
        said=$(systemd-analyze verify --man=no ./holdfast.service ./backup@daily.service ./backup@daily.timer 2>&1) || { echo "$said"; exit 1; }
        echo "$said" | grep -v '^$' || true"#;
    let program = env!("CARGO_BIN_EXE_backup");
    let said =
        sh(folder.path(), script, &[examples().join("systemd").as_os_str(), program.as_ref()]);
    assert_eq!(said.trim(), "");
}

#[test]
fn every_configuration_is_understood() {
    let folder = temp();
    sh(folder.path(), "mkdir -p secrets/shop", &[]);
    for name in ["db-password", "s3-key-id", "s3-key"] {
        for place in ["secrets", "secrets/shop"] {
            std::fs::write(folder.path().join(place).join(name), "s3cret").unwrap();
        }
    }
    let (_, recipient) = age_key(folder.path(), "key.txt");
    let secrets = folder.path().join("secrets");
    for (name, text) in configurations() {
        let file = folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, text.replace("/run/secrets", secrets.to_str().unwrap())).unwrap();
        let listed = backup(["strategies", "--json", "--config"])
            .arg(&file)
            .env("AGE_RECIPIENT", &recipient)
            .env("S3_ENDPOINT", "https://s3.example.org")
            .env("S3_REGION", "eu-north-1")
            .env("S3_BUCKET", "shop-backups")
            .expect(0);
        assert!(listed.out().contains("daily") && !listed.out().contains("s3cret"), "{listed}");
    }
}

/// The path of everything that a configuration names on this machine: (path, whether it is
/// written).
fn named(configuration: &toml::Table) -> Vec<(String, bool)> {
    let mut all = vec![(configuration["state_dir"].as_str().unwrap().to_owned(), true)];
    for (table, written) in [("sources", false), ("storages", true)] {
        for entry in configuration[table].as_table().unwrap().values() {
            for (key, value) in entry.as_table().unwrap() {
                if key == "path" {
                    all.push((value.as_str().unwrap().to_owned(), written));
                } else if key.ends_with("_file") {
                    all.push((value.as_str().unwrap().to_owned(), false));
                }
            }
        }
    }
    all
}

/// What is written is mounted for writing, what is only read is mounted read-only.
fn is_mounted(mounts: &[(String, bool)], configuration: &toml::Table, example: &str) {
    assert!(
        mounts.iter().any(|(target, read_only)| target == "/etc/backup" && *read_only),
        "{example}: the configuration"
    );
    for (path, written) in named(configuration) {
        let under = |target: &str| Path::new(&path).starts_with(target);
        let mount = mounts.iter().find(|(target, _)| under(target));
        let (_, read_only) =
            mount.unwrap_or_else(|| panic!("{example}: nothing is mounted at `{path}`"));
        assert_eq!(*read_only, !written, "{example}: `{path}`");
    }
}

#[test]
fn what_a_configuration_names_is_mounted_and_only_what_is_written_can_be() {
    for variant in VARIANTS {
        let compose = compose(variant);
        let service = &compose["services"]["backups"];
        let mounts: Vec<_> = mounts(&compose, service)
            .into_iter()
            .map(|mount| (mount.target, mount.read_only))
            .collect();
        is_mounted(&mounts, &configuration(variant), variant);
        for name in texts(&service["secrets"]) {
            assert!(compose["secrets"][name]["file"].is_string(), "{variant}: {name}");
        }
        // Volumes of the project go with `docker compose down --volumes`: backups are none.
        for mount in super::support::container::mounts(&compose, service)
            .iter()
            .filter(|mount| mount.target == "/backups")
        {
            assert!(mount.source.starts_with("./"), "{variant}");
        }
    }
    for name in MANIFESTS {
        let documents = manifest(name);
        let list = container(&documents)["volumeMounts"].as_array().unwrap();
        let mounts: Vec<_> = list
            .iter()
            .map(|mount| {
                (mount["mountPath"].as_str().unwrap().to_owned(), mount["readOnly"] == true)
            })
            .collect();
        let configuration = configuration(name);
        is_mounted(&mounts, &configuration, name);
        let volumes = pod(&documents)["volumes"].as_array().unwrap();
        for mount in list {
            assert!(
                volumes.iter().any(|volume| volume["name"] == mount["name"]),
                "{name}: {mount}"
            );
            assert!(
                mount.get("subPath").is_none(),
                "{name}: what is mounted by `subPath` never changes"
            );
        }
        let secret = &kind(&documents, "Secret")["stringData"];
        for (path, _) in named(&configuration)
            .into_iter()
            .filter(|(path, _)| path.starts_with("/run/secrets/shop/"))
        {
            assert!(
                secret.get(path.rsplit('/').next().unwrap()).is_some(),
                "{name}: `{path}` is no key of the Secret"
            );
        }
    }
}

#[test]
fn the_services_have_no_power_that_they_do_not_need() {
    for variant in VARIANTS {
        let compose = compose(variant);
        for name in ["backups", "restore"] {
            let service = &compose["services"][name];
            assert_eq!(service["read_only"], true, "{variant}");
            assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{variant}");
            assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{variant}");
            assert!(
                service.get("privileged").is_none() && service.get("ports").is_none(),
                "{variant}"
            );
        }
        let capabilities = texts(&compose["services"]["backups"]["cap_add"]);
        let root = user(&compose["services"]["backups"]).0 == 0;
        assert_eq!(root, variant != "non-root");
        assert_eq!(capabilities, if root { vec!["DAC_READ_SEARCH"] } else { vec![] }, "{variant}");
        assert_eq!(
            texts(&compose["services"]["restore"]["cap_add"]).is_empty(),
            !root,
            "{variant}"
        );
        // It is run by hand only.
        assert_eq!(texts(&compose["services"]["restore"]["profiles"]), ["restore"]);
    }
    // What the Pod Security Standard `restricted` asks for, and a root that cannot be written to.
    for name in ["sidecar", "cronjob", "restore"] {
        let documents = manifest(name);
        let pod = pod(&documents);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert!(pod["securityContext"]["runAsUser"].as_u64().unwrap() > 0);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"], serde_json::json!({ "drop": ["ALL"] }), "{name}");
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume.get("hostPath").is_none(), "{name}: {volume}");
        }
    }
    for unit in ["holdfast.service", "backup@.service"] {
        let text = std::fs::read_to_string(examples().join("systemd").join(unit)).unwrap();
        for line in [
            "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
            "AmbientCapabilities=CAP_DAC_READ_SEARCH",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "User=holdfast",
        ] {
            assert!(text.lines().any(|other| other == line), "{unit}: {line}");
        }
    }
}

#[test]
fn no_secret_is_in_an_environment() {
    let says = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["PASSWORD", "SECRET", "TOKEN", "KEY"].iter().any(|word| name.contains(word))
    };
    for variant in VARIANTS {
        for (service, settings) in compose(variant)["services"].as_object().unwrap() {
            for (name, value) in settings["environment"].as_object().into_iter().flatten() {
                let file =
                    name.ends_with("_FILE") && value.as_str().unwrap().starts_with("/run/secrets/");
                assert!(!says(name) || file, "{variant}: {service}: {name}");
            }
        }
    }
    for name in ["sidecar", "cronjob", "restore"] {
        for container in pod(&manifest(name))["containers"].as_array().unwrap() {
            assert!(container.get("envFrom").is_none());
            for variable in container["env"].as_array().into_iter().flatten() {
                assert!(
                    !says(variable["name"].as_str().unwrap()) && variable["value"].is_string(),
                    "{name}: {variable}"
                );
            }
        }
    }
    for (name, text) in configurations() {
        let configuration: toml::Table = text.parse().unwrap();
        for table in ["sources", "storages"] {
            for key in configuration[table]
                .as_table()
                .unwrap()
                .values()
                .flat_map(|entry| entry.as_table().unwrap().keys())
            {
                assert!(!says(key) || key.ends_with("_file"), "{name}: {key}");
            }
        }
    }
}

#[test]
fn who_stops_it_waits_longer_than_a_run_may_take_to_end() {
    let seconds = |text: &str| text.parse::<Span>().unwrap().duration();
    // What holds unless it is set.
    let grace = |name: &str| {
        let configuration = configuration(name);
        configuration
            .get("stop_grace")
            .map_or(Duration::from_secs(60), |grace| seconds(grace.as_str().unwrap()))
    };
    for variant in VARIANTS {
        let compose = compose(variant);
        let patience =
            seconds(compose["services"]["backups"]["stop_grace_period"].as_str().unwrap());
        assert!(patience > grace(variant), "{variant}");
    }
    for name in MANIFESTS {
        let patience = pod(&manifest(name))["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(Duration::from_secs(patience) > grace(name), "{name}");
    }
    for unit in ["holdfast.service", "backup@.service"] {
        let text = std::fs::read_to_string(examples().join("systemd").join(unit)).unwrap();
        let patience = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
        assert!(Duration::from_secs(patience.parse().unwrap()) > grace("systemd"), "{unit}");
    }
}

#[test]
fn health_is_the_status_of_the_backups_and_never_takes_the_application_away() {
    for variant in VARIANTS {
        let compose = compose(variant);
        assert_eq!(
            texts(&compose["services"]["backups"]["healthcheck"]["test"]),
            ["CMD", "backup", "status"]
        );
        for (name, service) in compose["services"].as_object().unwrap() {
            let depends = service["depends_on"].to_string();
            assert!(!depends.contains("backups"), "{variant}: {name} waits for the backups");
        }
    }
    let image = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert!(image.contains(r#"CMD ["backup", "status"]"#));
    let documents = manifest("sidecar");
    let sidecar = container(&documents);
    assert!(
        sidecar.get("readinessProbe").is_none(),
        "a late backup would take the pod out of its Service"
    );
    let listen = configuration("sidecar")["listen"].as_str().unwrap().to_owned();
    let port = sidecar["ports"][0]["containerPort"].to_string();
    assert!(listen.ends_with(&format!(":{port}")), "{listen}");
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(
            sidecar[probe]["httpGet"]["path"], "/healthz",
            "late backups are no reason to restart it"
        );
    }
}

/// What the README of the compose examples says to do in the folder of a variant before containers
/// are started.
fn preparation(variant: &str) -> Vec<String> {
    let text = std::fs::read_to_string(examples().join("compose/README.md")).unwrap();
    let (_, text) = text.split_once(&format!("\nIn `{variant}`")).unwrap();
    let (_, text) = text.split_once("```sh\n").unwrap();
    let (block, _) = text.split_once("```").unwrap();
    let lines = block.lines().filter(|line| !line.starts_with("docker "));
    lines.map(|line| line.replace("sudo ", "")).collect()
}

#[test]
fn after_the_commands_of_the_readme_everything_that_is_mounted_from_the_host_is_there() {
    for variant in VARIANTS {
        let folder = temp();
        let mut commands = vec![r#"cp -r "$1"/. ."#.to_owned()];
        if variant == "s3" {
            commands.extend(preparation("local"));
        }
        commands.extend(preparation(variant));
        sh(
            folder.path(),
            &commands.join("\n"),
            &[examples().join("compose").join(variant).as_os_str()],
        );
        let compose = compose(variant);
        let services = compose["services"].as_object().unwrap().values();
        for mount in services.flat_map(|service| mounts(&compose, service)) {
            assert!(
                !mount.source.starts_with('.') || folder.path().join(&mount.source).exists(),
                "{variant}: {mount:?}"
            );
        }
        let modes = sh(
            folder.path(),
            "stat -c '%n %a' secrets secrets/db-password backups; cat secrets/db-password | wc -c",
            &[],
        );
        assert_eq!(modes, "secrets 700\nsecrets/db-password 600\nbackups 700\n49\n", "{variant}");
        if variant == "s3" {
            let given = std::fs::read_to_string(folder.path().join(".env")).unwrap();
            for name in compose["services"]["backups"]["environment"].as_object().unwrap().keys() {
                assert!(given.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}");
            }
        }
    }
}

#[test]
fn every_command_of_the_program_in_the_readmes_exists() {
    let mut count = 0;
    for folder in ["compose", "kubernetes", "systemd"] {
        for command in crate::examples::commands(&examples().join(folder).join("README.md")) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let run = command.starts_with("docker compose run");
            // What follows the service `restore` are its arguments.
            let Some(at) =
                words.iter().position(|word| *word == if run { "restore" } else { "backup" })
            else {
                continue;
            };
            crate::examples::is_understood(&command, &words[if run { at } else { at + 1 }..]);
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn identity_is_the_name_of_the_instance_and_of_nothing_else() {
    let instances: BTreeSet<String> = configurations()
        .iter()
        .map(|(name, _)| configuration(name)["instance"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        instances,
        BTreeSet::from(["shop".to_owned()]),
        "written out in every configuration"
    );
    for variant in VARIANTS {
        for (name, service) in compose(variant)["services"].as_object().unwrap() {
            assert!(
                service.get("hostname").is_none() && service.get("container_name").is_none(),
                "{variant}: {name}"
            );
        }
    }
}
