//! Files with very many mistakes: refused soon, and with a number of messages that can be read.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{SMALL, env};
use crate::config::parse;

const MANY: usize = 20_000;
/// Of this build, which is not optimized, on a machine that does other things besides.
const SOON: Duration = Duration::from_secs(5);

fn lines(each: impl Fn(usize) -> String) -> String {
    (0..MANY).fold(String::new(), |mut all, number| {
        let _ = writeln!(all, "{}", each(number));
        all
    })
}

fn list(key: &str, each: impl Fn(usize) -> String) -> String {
    let items: Vec<String> = (0..MANY).map(each).collect();
    format!("{key} = [{}]\n", items.join(", "))
}

#[test]
fn many_mistakes_are_found_soon_and_bounded() {
    let inside = |table: &str, more: String| SMALL.replace(table, &format!("{table}\n{more}"));
    let cases = [
        ("unknown keys", format!("{}{SMALL}", lines(|number| format!("sorces{number} = 1")))),
        (
            "unknown keys of a table",
            inside("[sources.files]", lines(|number| format!("exlude{number} = 1"))),
        ),
        ("unknown tables", format!("{SMALL}{}", lines(|number| format!("[sorces{number}.a]")))),
        ("names that are none", format!("{SMALL}{}", lines(|n| format!("[strategies.A{n}]")))),
        ("missing keys", format!("{SMALL}{}", lines(|n| format!("[strategies.a{n}]")))),
        (
            "wrong types",
            format!("{SMALL}{}", lines(|n| format!("[strategies.a{n}]\nstorages = {n}"))),
        ),
        ("no TOML", format!("{SMALL}{}", lines(|number| format!("a b {number}")))),
        (
            "names that nothing has",
            SMALL.replace(
                "sources = [\"files\"]\n",
                &list("sources", |number| format!("\"fils{number}\"")),
            ),
        ),
        (
            "names that are listed twice",
            SMALL.replace("sources = [\"files\"]\n", &list("sources", |_| "\"files\"".to_owned())),
        ),
        (
            "missing variables",
            inside("[sources.files]", list("exclude", |number| format!("\"${{NO{number}}}\""))),
        ),
        (
            "values that are none",
            inside("[sources.files]", list("exclude", |number| number.to_string())),
        ),
    ];
    for (what, text) in cases {
        let began = Instant::now();
        let errors = parse(Path::new("/etc/backup/a.toml"), &text, &env(&[])).err().unwrap().0;
        let took = began.elapsed();
        assert!(took < SOON, "{what}: {took:?}");
        assert!((2..=101).contains(&errors.len()), "{what}: {}", errors.len());
        let last = errors.last().unwrap().to_string();
        assert!(last.contains(" more mistakes are not shown"), "{what}: {last}");
        let of_lines: Vec<_> = errors.iter().filter_map(|error| error.line).collect();
        assert!(of_lines.is_sorted(), "{what}");
    }
}
