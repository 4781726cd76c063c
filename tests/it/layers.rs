//! The rooms of `src` and what each may use. The tables are those of `src/lib.rs`; a name in the
//! wrong room is shown with its file and line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::support::repository;

/// Each room's layer. A room imports rooms of lower layers only.
const LAYERS: &[(&str, u32)] = &[
    ("model", 0),
    ("archive", 1),
    ("source", 2),
    ("pipeline", 2),
    ("storage", 2),
    ("retention", 2),
    ("schedule", 2),
    ("catalog", 2),
    ("report", 2),
    ("config", 3),
    ("engine", 4),
    ("daemon", 5),
    ("cli", 6),
];

/// Rooms whose files import the room's `mod.rs` and these siblings, but not one another.
const SIBLINGS: &[(&str, &[&str])] =
    &[("source", &["place", "process", "scratch", "under_way"]), ("storage", &[])];

/// What each external thing may be used by: one door each. A door is a module, with all that is in
/// it.
const DOORS: &[(&str, &[&str], &str)] = &[
    (
        "sqlx",
        &["catalog", "source::postgres", "source::sqlite"],
        "SQL is for the catalog and the SQL sources",
    ),
    ("whoami", &["source::postgres"], "who we run as counts only where a server asks for a user"),
    ("aws_sdk_s3", &["storage::s3"], "S3 is spoken in one place"),
    ("aws_config", &["storage::s3"], "S3 is spoken in one place"),
    ("age", &["pipeline"], "encryption is the pipeline's"),
    ("zstd", &["pipeline"], "compression is the pipeline's"),
    ("flate2", &["pipeline"], "compression is the pipeline's"),
    (
        "tar",
        &["archive", "engine::exchange"],
        "tarballs are the archive's, and what a snapshot travels in",
    ),
    ("tokio_cron_scheduler", &["daemon"], "the timer is the daemon's"),
    ("croner", &["schedule"], "cron lines are read in one place"),
    ("reqwest", &["report::notify"], "messages are sent from one place"),
    ("lettre", &["report::notify"], "messages are sent from one place"),
    (
        "toml",
        &["config", "engine::drill"],
        "the configuration is read in one place; a drill only looks whether a file parses",
    ),
    ("clap", &["cli"], "the command line is the cli's"),
    ("clap_complete", &["cli"], "the command line is the cli's"),
    ("anyhow", &["cli"], "errors below the cli are typed"),
    (
        "std::process::Command",
        &["source::process"],
        "children are started where they are drained, killed and reaped",
    ),
    (
        "tokio::process",
        &["source::process"],
        "children are started where they are drained, killed and reaped",
    ),
    ("std::env", &["config"], "the environment is read once"),
    ("std::time::SystemTime::now", &["model::clock"], "tests say what time it is"),
    ("SystemTime::now", &["model::clock"], "tests say what time it is"),
    ("chrono::Utc::now", &["model::clock"], "tests say what time it is"),
    ("Utc::now", &["model::clock"], "tests say what time it is"),
    (
        "chrono::Local",
        &["model::clock"],
        "tests say what time it is, and the zone is the strategy's",
    ),
    (
        "Clock::system",
        // The last one has no engine: it dates the mark of an unfinished restore.
        &["engine::context", "cli::setup", "source::directory::restore::marker"],
        "tests say what time it is",
    ),
    ("std::fs", FILES, "files are touched where their faults have a meaning"),
    ("tokio::fs", &["engine::context"], "files are read and written on threads that may block"),
    ("axum", &["daemon::http"], "HTTP is served in one place"),
    ("hyper", &["daemon::http", "storage::s3"], "HTTP is served in one place, and spoken in one"),
    (
        "hyper_util",
        &["daemon::http", "storage::s3"],
        "HTTP is served in one place, and spoken in one",
    ),
    ("tokio::net", &["daemon::http"], "only the status page listens"),
    ("println!", &["cli"], "only the cli prints"),
    ("print!", &["cli"], "only the cli prints"),
    ("eprintln!", &["cli"], "only the cli prints"),
    ("eprint!", &["cli"], "only the cli prints"),
    ("std::io::stdout", &["cli"], "only the cli prints"),
    ("std::io::stderr", &["cli"], "only the cli prints"),
];

/// Modules that touch files themselves; all others go through these or through `storage`.
const FILES: &[&str] = &[
    // The folder of the database.
    "catalog",
    // Stdout as a file, without the buffer of the standard handle.
    "cli::dump",
    // Which signals the caller ignores.
    "cli::signals",
    // The configuration, and files that hold secrets.
    "config",
    // Restored files are looked at.
    "engine::drill::checks",
    // The export, and the folder that it is staged in.
    "engine::exchange",
    // The threads of this process, to lower their priority.
    "engine::run",
    // The state folder and its locks.
    "engine::state",
    // The id of this start of the machine.
    "engine::write::heartbeat",
    // How files are opened that may be something else.
    "model::files",
    // Systems that are backed up and restored, and scratch space.
    "source",
    // Snapshots, and files that hold credentials.
    "storage",
];

/// Levels inside `engine`, as in `src/engine/mod.rs`. A file imports its own room and lower levels.
const ENGINE_LEVELS: &[(&str, u32)] = &[
    ("error", 0),
    ("state", 1),
    ("context", 2),
    ("snapshots", 3),
    ("read", 4),
    ("write", 4),
    ("prune", 5),
    ("run", 6),
    ("exchange", 7),
    ("verbs", 7),
    ("drill", 8),
];

/// Circles of files that stand today. Nothing is added here.
const CIRCLES: &[&[&str]] = &[];

/// Files that are longer than [`LONG`] lines before their tests, and why.
const LONG_FILES: &[(&str, &str)] = &[];
const LONG: usize = 600;

/// What of `std::env` reads no environment.
const PURE_ENV: &[&str] = &["split_paths", "join_paths", "consts", "args_os"];

/// One use of a name: a path, or a macro with its `!`.
struct Use {
    path: Vec<String>,
    line: usize,
    /// Of a `use`, not of an expression or a type.
    import: bool,
}

/// A source file without its tests.
struct File {
    /// Relative to `src`.
    name: String,
    /// `["source", "postgres"]`; empty for `lib.rs` and `main.rs`.
    module: Vec<String>,
    /// Names used, `self`, `super` and `crate` resolved to a first segment `crate`.
    uses: Vec<Use>,
    text: String,
}

fn sources() -> Vec<File> {
    let root = repository().join("src");
    let mut folders = vec![root.clone()];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    // Unit tests in a file of their own are declared under `#[cfg(test)]`.
    paths.retain(|path| {
        let folder = path.parent().unwrap();
        let declared = |parent: PathBuf| {
            std::fs::read_to_string(parent)
                .is_ok_and(|text| text.contains("#[cfg(test)]\nmod tests;\n"))
        };
        let of = |folder: &Path| {
            declared(folder.join("mod.rs")) || declared(folder.with_extension("rs"))
        };
        let inside = folder.ends_with("tests") && of(folder.parent().unwrap());
        !(inside || path.ends_with("tests.rs") && of(folder))
    });
    paths.sort();
    assert!(paths.len() > 20, "there is more in src than {paths:?}");
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        file(&name, std::fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

fn file(name: &str, text: String) -> File {
    let mut module: Vec<String> = Path::new(name)
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if module.last().is_some_and(|last| {
        last == "mod" || (module.len() == 1 && (last == "lib" || last == "main"))
    }) {
        module.pop();
    }
    let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("src/{name}: {error}"));
    let mut uses = Vec::new();
    collect(tokens, &module, &mut uses);
    File { name: name.to_owned(), module, uses, text }
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn colons(tokens: &[TokenTree]) -> bool {
    punct(tokens.first(), ':') && punct(tokens.get(1), ':')
}

/// Collects every path of `tokens`, those in macros included, those in items under `#[cfg(test)]`
/// not.
fn collect(tokens: TokenStream, module: &[String], uses: &mut Vec<Use>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if punct(tokens.get(at), '#') {
            if let Some(TokenTree::Group(group)) = tokens.get(at + 1)
                && group.stream().to_string().replace(' ', "") == "cfg(test)"
            {
                // The item ends with its first block, or with a semicolon.
                at += 2;
                while !(punct(tokens.get(at), ';')
                    || matches!(tokens.get(at),
                        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace))
                {
                    assert!(at < tokens.len(), "an item under cfg(test) has an end");
                    at += 1;
                }
            }
            at += 1;
            continue;
        }
        if ident(tokens.get(at)).as_deref() == Some("mod")
            && let (Some(name), Some(TokenTree::Group(group))) =
                (ident(tokens.get(at + 1)), tokens.get(at + 2))
        {
            let inner: Vec<String> = module.iter().cloned().chain([name]).collect();
            collect(group.stream(), &inner, uses);
            at += 3;
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(word) if *word == "use" => {
                at += 1;
                if colons(&tokens[at..]) {
                    at += 2;
                }
                at = path(&tokens, at, &[], module, true, uses);
            }
            TokenTree::Ident(_) => at = path(&tokens, at, &[], module, false, uses),
            TokenTree::Group(group) => {
                collect(group.stream(), module, uses);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads the path that begins at `at`, a tree of them in a `use`; returns where it ended.
fn path(
    tokens: &[TokenTree],
    mut at: usize,
    before: &[String],
    module: &[String],
    import: bool,
    uses: &mut Vec<Use>,
) -> usize {
    let mut segments = before.to_vec();
    let line = tokens[at].span().start().line;
    loop {
        if let Some(TokenTree::Group(group)) = tokens.get(at)
            && group.delimiter() == Delimiter::Brace
            && (import || !segments.is_empty())
        {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut next = 0;
            while next < inner.len() {
                if matches!(inner[next], TokenTree::Ident(_)) {
                    next = path(&inner, next, &segments, module, import, uses);
                    if ident(inner.get(next)).as_deref() == Some("as") {
                        next += 2;
                    }
                } else {
                    next += 1;
                }
            }
            return at + 1;
        }
        let Some(segment) = ident(tokens.get(at)) else { break };
        at += 1;
        segments.push(segment);
        if !colons(&tokens[at..]) {
            break;
        }
        at += 2;
    }
    let is_macro = punct(tokens.get(at), '!') && !punct(tokens.get(at + 1), '=');
    if let (true, Some(last)) = (is_macro, segments.last_mut()) {
        last.push('!');
    }
    uses.push(Use { path: resolve(segments, module), line, import });
    at
}

fn resolve(segments: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = segments.as_slice();
    match rest.first().map(String::as_str) {
        Some("crate") => return segments,
        Some("self" | "super") if rest.len() > 1 => {}
        _ => return segments,
    }
    while let Some(first) = rest.first() {
        match first.as_str() {
            "self" => {}
            "super" => {
                base.pop();
            }
            _ => break,
        }
        rest = &rest[1..];
    }
    ["crate".to_owned()].into_iter().chain(base).chain(rest.iter().cloned()).collect()
}

/// What breaks the rules in `file`, a line each. `modules` are all modules of the crate.
fn breaches(file: &File, modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    let layers: BTreeMap<&str, u32> = LAYERS.iter().copied().collect();
    let own = file.module.first().map(String::as_str).unwrap_or_default();
    let mut found = Vec::new();
    let mut say = |used: &Use, why: String| {
        found.push(format!("src/{}:{}: `{}`: {why}", file.name, used.line, used.path.join("::")));
    };
    for used in &file.uses {
        // A visibility: `pub(crate)`, `pub(in crate::archive)`.
        if used.path == ["crate"] {
            continue;
        }
        if let Some(("crate", inside)) =
            used.path.split_first().map(|(first, rest)| (first.as_str(), rest))
        {
            let target = inside.first().map(String::as_str).unwrap_or_default();
            match (layers.get(own), layers.get(target)) {
                (None, _) => {}              // lib.rs and main.rs: the map of all
                _ if inside.is_empty() => {} // `pub(crate)`
                (Some(_), None) => {
                    say(used, format!("`{target}` is not a room in the table of layers"));
                }
                (Some(_), Some(_)) if own == target => {}
                (Some(mine), Some(theirs)) if theirs < mine => {}
                (Some(mine), Some(theirs)) => {
                    say(
                        used,
                        format!(
                            "`{own}` is of layer {mine} and may not import `{target}` of layer \
                             {theirs}"
                        ),
                    );
                }
            }
            if let Some((room, shared)) = SIBLINGS.iter().find(|(room, _)| *room == own)
                && own == target
                && let (Some(mine), Some(theirs)) = (file.module.get(1), inside.get(1))
                && mine != theirs
                && !shared.contains(&theirs.as_str())
                && modules.contains(&inside[..2])
            {
                say(used, format!("in `{room}` siblings do not import one another"));
            }
            if own == "engine"
                && target == "engine"
                && let Some(why) = engine_breach(file, inside)
            {
                say(used, why);
            }
        }
        for (thing, doors, why) in DOORS {
            let thing: Vec<&str> = thing.split("::").collect();
            let begins =
                used.path.len() >= thing.len() && used.path.iter().zip(&thing).all(|(a, b)| a == b);
            // Our own types are found by their last names, whatever module they are imported from.
            let ends = thing[0].starts_with(char::is_uppercase)
                && used.path.iter().rev().zip(thing.iter().rev()).all(|(a, b)| a == b)
                && used.path.len() >= thing.len();
            // A name alone is a variable or a field, unless it is a macro or imported. An import of
            // a whole crate gives all that is in it, under any name.
            let counts = ends
                || begins && (used.path.len() > 1 || used.import || thing[0].ends_with('!'))
                || used.import && used.path.len() == 1 && used.path[0] == thing[0];
            let pure = thing == ["std", "env"]
                && used.path.get(2).is_some_and(|name| PURE_ENV.contains(&name.as_str()));
            let open = doors.iter().any(|door| {
                let door: Vec<&str> = door.split("::").collect();
                file.module.len() >= door.len()
                    && file.module.iter().zip(&door).all(|(a, b)| a == b)
            });
            if counts && !open && !pure {
                say(used, format!("{why}; its door is {}", doors.join(", ")));
            }
        }
        if matches!(used.path.last().map(String::as_str), Some("todo!" | "unimplemented!")) {
            say(used, "nothing is left to be written".to_owned());
        }
    }
    found
}

/// Why a file of `engine` may not import `crate::engine::...`, if so.
fn engine_breach(file: &File, inside: &[String]) -> Option<String> {
    let level =
        |room: &str| ENGINE_LEVELS.iter().find(|(name, _)| *name == room).map(|(_, level)| *level);
    // `mod.rs` is the facade: it gives out what is in all rooms.
    let own = file.module.get(1)?;
    let target = inside.get(1)?;
    let Some(theirs) = level(target) else {
        return Some("inside `engine` nothing is imported through its facade".to_owned());
    };
    if own == target {
        let other = inside.get(2).is_some_and(|name| file.module.get(2) != Some(name));
        return (own == "verbs" && file.module.len() > 2 && other)
            .then(|| "files in `verbs` do not import each other".to_owned());
    }
    match level(own) {
        Some(mine) if theirs < mine => None,
        Some(mine) => Some(format!(
            "`{own}` is of level {mine} and may not import `{target}` of level {theirs}"
        )),
        None => Some(format!("`{own}` is below all rooms of `engine`")),
    }
}

/// Circles of files that import each other, each sorted. Imports of a `mod.rs` above the file do
/// not count; what a `mod.rs` gives out counts as an import of the file that it comes from.
fn circles(files: &[File]) -> Vec<Vec<&str>> {
    let by_module: BTreeMap<&[String], &File> =
        files.iter().map(|file| (file.module.as_slice(), file)).collect();
    let absolute = |file: &File, used: &Use| -> Option<Vec<String>> {
        let first = used.path.first()?;
        if first == "crate" {
            return Some(used.path[1..].to_vec());
        }
        let child: Vec<String> = file.module.iter().chain([first]).cloned().collect();
        by_module
            .contains_key(child.as_slice())
            .then(|| file.module.iter().chain(&used.path).cloned().collect())
    };
    let nearest = |path: &[String]| {
        (1..=path.len()).rev().find_map(|length| by_module.get(&path[..length]).copied())
    };
    // Where the names that a module imports come from.
    let mut given: BTreeMap<(&[String], String), Vec<String>> = BTreeMap::new();
    for file in files {
        for used in file.uses.iter().filter(|used| used.import) {
            if let (Some(path), Some(name)) = (absolute(file, used), used.path.last()) {
                given.insert((file.module.as_slice(), name.clone()), path);
            }
        }
    }
    let target = |file: &File, used: &Use| -> Option<&File> {
        let mut path = absolute(file, used)?;
        let mut found = nearest(&path)?;
        for _ in 0..8 {
            let Some(name) = path.get(found.module.len()) else { break };
            let Some(from) = given.get(&(found.module.as_slice(), name.clone())) else { break };
            path = from.iter().chain(&path[found.module.len() + 1..]).cloned().collect();
            found = nearest(&path)?;
        }
        Some(found)
    };
    let edges: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .map(|file| {
            let to = file.uses.iter().filter_map(|used| target(file, used));
            let to = to.filter(|to| {
                let above = to.name.ends_with("mod.rs") && file.module.starts_with(&to.module);
                to.module.first() == file.module.first() && !above && to.name != file.name
            });
            (file.name.as_str(), to.map(|to| to.name.as_str()).collect())
        })
        .collect();
    let reached = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&str> = edges[from].iter().copied().collect();
        while let Some(name) = next.pop() {
            if seen.insert(name) {
                next.extend(&edges[name]);
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|name| (*name, reached(name))).collect();
    let circles: BTreeSet<Vec<&str>> = reach
        .iter()
        .filter(|(name, seen)| seen.contains(*name))
        .map(|(name, seen)| {
            seen.iter().filter(|other| reach[**other].contains(name)).copied().collect()
        })
        .collect();
    circles.into_iter().collect()
}

fn modules(files: &[File]) -> BTreeSet<Vec<String>> {
    files.iter().map(|file| file.module.clone()).collect()
}

fn show(found: &[String]) -> String {
    found.iter().fold(String::new(), |mut all, line| {
        let _ = write!(all, "\n{line}");
        all
    })
}

#[test]
fn rooms_import_lower_layers_only_and_every_external_thing_has_one_door() {
    let files = sources();
    let modules = modules(&files);
    let found: Vec<String> = files.iter().flat_map(|file| breaches(file, &modules)).collect();
    assert!(found.is_empty(), "{}", show(&found));
}

#[test]
fn files_of_a_room_import_in_no_circle() {
    let files = sources();
    let found = circles(&files);
    let new: Vec<String> = found
        .iter()
        .filter(|circle| !CIRCLES.contains(&circle.as_slice()))
        .map(|circle| format!("a circle: {}", circle.join(", ")))
        .collect();
    assert!(new.is_empty(), "{}", show(&new));
    for listed in CIRCLES {
        assert!(
            found.iter().any(|circle| circle == listed),
            "{listed:?} is no circle any more, and need not be in CIRCLES"
        );
    }
}

#[test]
fn circles_are_found_through_facades() {
    let with = |texts: &[(&str, &str)]| {
        let files: Vec<File> =
            texts.iter().map(|(name, text)| file(name, (*text).to_owned())).collect();
        circles(&files).into_iter().map(|circle| circle.join(" ")).collect::<Vec<_>>()
    };
    let plain = [
        ("source/mod.rs", "mod a; mod b; pub use a::A; pub use b::B; fn f() { a::g() }"),
        ("source/a.rs", "use super::B;"),
        ("source/b.rs", "use crate::source::Other;"),
    ];
    assert!(with(&plain).is_empty());
    for back in ["use super::a::A;", "use crate::source::A;", "fn f() { super::A::new() }"] {
        let mut circle = plain;
        circle[2].1 = back;
        assert_eq!(with(&circle), ["source/a.rs source/b.rs"], "{back}");
    }
    let folders = [
        ("source/a/mod.rs", "mod x; mod y; use x::X;"),
        ("source/a/x.rs", "use super::y::Y; use crate::source::b::open;"),
        ("source/a/y.rs", "use super::Z;"),
        ("source/b/mod.rs", "mod z; fn open() { z::open() }"),
        ("source/b/z.rs", "use crate::source::a::y::Y;"),
    ];
    assert!(with(&folders).is_empty());
    let mut circle = folders;
    circle[4].1 = "use crate::source::a::X;";
    assert_eq!(with(&circle), ["source/a/x.rs source/b/mod.rs source/b/z.rs"]);
}

#[test]
fn every_room_is_in_the_table_and_in_the_map() {
    let files = sources();
    let map = std::fs::read_to_string(repository().join("src/lib.rs")).unwrap();
    let rooms: BTreeSet<&str> =
        files.iter().filter_map(|file| file.module.first().map(String::as_str)).collect();
    let table: BTreeSet<&str> = LAYERS.iter().map(|(room, _)| *room).collect();
    assert_eq!(rooms, table);
    for (room, layer) in LAYERS {
        assert!(
            map.contains(&format!("//! | {layer} | [`{room}`] |")),
            "src/lib.rs tells `{room}` as of layer {layer}"
        );
    }
}

#[test]
fn long_files_have_a_reason() {
    let code = |file: &File| {
        file.text.split("\n#[cfg(test)]\n").next().unwrap_or_default().lines().count()
    };
    let files = sources();
    let found: Vec<String> = files
        .iter()
        .filter(|file| code(file) > LONG && !LONG_FILES.iter().any(|(name, _)| *name == file.name))
        .map(|file| {
            format!(
                "src/{}: {} lines before its tests; split it, or give a reason in LONG_FILES",
                file.name,
                code(file)
            )
        })
        .collect();
    assert!(found.is_empty(), "{}", show(&found));
    for (name, reason) in LONG_FILES {
        let listed = files.iter().find(|file| file.name == *name);
        assert!(
            listed.is_some_and(|file| code(file) > LONG) && !reason.is_empty(),
            "`{name}` need not be in LONG_FILES"
        );
    }
    let main = files.iter().find(|file| file.name == "main.rs").map(code);
    assert!(main.is_some_and(|lines| lines < 60), "main.rs has {main:?} lines");
}

#[test]
fn breaches_are_found_in_every_form_they_can_be_written_in() {
    let known: BTreeSet<Vec<String>> = [
        vec!["source"],
        vec!["source", "process"],
        vec!["source", "postgres"],
        vec!["source", "sqlite"],
    ]
    .into_iter()
    .map(|module| module.into_iter().map(str::to_owned).collect())
    .collect();
    let count = |name: &str, text: &str| {
        let found = breaches(&file(name, text.to_owned()), &known);
        assert!(found.iter().all(|line| line.starts_with(&format!("src/{name}:1: "))), "{found:?}");
        found.len()
    };
    for wrong in [
        "use crate::storage::Storage;",
        "use crate::{model::Name, storage::{Storage, StorageError as E}};",
        "fn f() { crate::engine::run() }",
        "fn f() { info!(\"{}\", crate::pipeline::LEVEL); }",
        "use super::super::storage::Storage;",
        "use super::sqlite::SqliteConfig;",
        "use crate::source::sqlite::SqliteConfig;",
        "mod inner { use super::super::sqlite::Sqlite; }",
        "use aws_sdk_s3::Client;",
        "fn f() { clap::Command::new(\"x\"); }",
        "use std::{process::{Child, Command}, io};",
        "fn f() { std::process::Command::new(\"x\"); }",
        "fn f() { std::env::var(\"HOME\"); }",
        "use std::env;",
        "fn f() { let t = Utc::now(); }",
        "fn f() -> T { g(chrono::Utc::now) }",
        "fn f() { println!(\"x\"); }",
        "fn f() { todo!() }",
        "#[cfg(test)] mod tests { use crate::storage::X; } fn f() { todo!() }",
        "use axum;",
        "use ::axum;",
        "use axum as web;",
        "use {axum, std::io};",
        "use chrono as time;",
        "use axum::Router;",
        "use tokio::{net::TcpListener, sync::Notify};",
        "fn f() { Clock::system() }",
        "fn f() { crate::model::Clock::system() }",
        "fn f() { crate::model::clock::Clock::system() }",
    ] {
        assert!(count("source/postgres.rs", wrong) >= 1, "{wrong}");
    }
    for right in [
        "use crate::model::Name; use super::{Source, process::Child}; use sqlx::Connection;",
        "use crate::source::process;",
        "fn f() { self::g(); super::g(); let age = 3; age != 4; let env = env!(\"X\"); }",
        "// use crate::storage::X; \"crate::storage::X\"",
        "#[cfg(test)] mod tests { use crate::storage::X; fn f() { println!(); todo!() } }",
        "use std::process::{Child, ExitStatus}; use std::time::SystemTime;",
        "pub(crate) fn f() {}",
    ] {
        assert_eq!(count("source/postgres.rs", right), 0, "{right}");
    }
    assert_eq!(count("source/process.rs", "use std::process::Command;"), 0);
    assert_eq!(
        count("source/process/child.rs", "use std::process::Command; use super::Environment;"),
        0
    );
    assert_eq!(
        count(
            "cli/run.rs",
            "use crate::engine::run; fn f() { println!(); clap::x(); anyhow::bail!(); }"
        ),
        0
    );
    assert_eq!(count("model/clock.rs", "fn f() { Utc::now() }"), 0);
    for wrong in [
        "use std::fs;",
        "use std::{fs::File, io};",
        "fn f() { std::fs::read(path) }",
        "use tokio::fs;",
        "fn f() { tokio::fs::read(path) }",
    ] {
        assert_eq!(count("model/id.rs", wrong), 1, "{wrong}");
        let open = if wrong.contains("tokio") { "engine/context.rs" } else { "storage/local.rs" };
        assert_eq!(count(open, wrong), 0, "{wrong}");
    }
    for (name, wrong) in [
        ("engine/state/locks.rs", "use crate::engine::snapshots::find;"),
        ("engine/read/files.rs", "use crate::engine::write::outputs::Outputs;"),
        ("engine/read/files.rs", "use super::super::verbs::restore;"),
        ("engine/read/files.rs", "fn f() { crate::engine::run::start() }"),
        ("engine/read/files.rs", "use crate::engine::Engine;"),
        ("engine/read/files.rs", "use crate::engine::{self as e};"),
        ("engine/verbs/restore.rs", "use super::dump::dump;"),
        ("engine/verbs/restore.rs", "use crate::engine::exchange::copy;"),
        ("engine/context.rs", "use crate::engine::snapshots::list::Listing;"),
    ] {
        assert_eq!(count(name, wrong), 1, "{name}: {wrong}");
    }
    for (name, right) in [
        ("engine/drill/mod.rs", "use crate::engine::{error::E, verbs::restore}; use super::run;"),
        ("engine/read/files.rs", "use super::streams; pub(in crate::engine) fn f() {}"),
        ("engine/verbs/restore.rs", "use crate::engine::context::Engine; use super::restore::X;"),
        ("engine/mod.rs", "pub use crate::engine::drill::drill;"),
    ] {
        assert_eq!(count(name, right), 0, "{name}: {right}");
    }
    assert!(count("model/id.rs", "fn f() { use crate::source::X; }") == 1);
    assert!(count("engine/run.rs", "use crate::cli::X;") == 1);
}
