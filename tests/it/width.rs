//! Lines of code, comments and documents end at column 100. The content of string literals
//! (scripts, expected output), tables, code blocks of documents and single words (an address) may
//! be longer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use crate::support::repository;

const COLUMNS: usize = 100;

/// Text files of the project below `folder`, by extension. Fixtures, generated output and what
/// git does not track are left out.
fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let skipped = ["target", "fixtures", "corpus", "output", "node_modules", "backups"];
        if path.is_dir() {
            if !name.starts_with('.') && !skipped.contains(&name) {
                files(&path, extensions, found);
            }
        } else if path.extension().is_some_and(|own| extensions.iter().any(|one| own == *one)) {
            found.push(path);
        }
    }
}

/// Lines that a string literal which spans or fills them covers.
fn literal_lines(tokens: TokenStream, lines: &mut BTreeSet<usize>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => literal_lines(group.stream(), lines),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let (start, end) = (literal.span().start().line, literal.span().end().line);
                // A doc comment is a literal to the parser, and none to a reader.
                let is_raw = text.starts_with("r#") || text.starts_with("r\"");
                if is_raw || start != end {
                    lines.extend(start..=end);
                }
            }
            _ => {}
        }
    }
}

fn is_one_word(line: &str) -> bool {
    // The last word may follow the name of a link.
    let text = line.trim_start_matches(|c: char| c.is_whitespace() || "/!-*#>".contains(c));
    !text.contains(' ')
        || text.starts_with('[') && !text[text.find("](").unwrap_or(0)..].contains(' ')
}

fn too_long(line: &str) -> bool {
    line.chars().count() > COLUMNS && !is_one_word(line)
}

fn long_lines(path: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(path).unwrap();
    let numbered = || text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let excepted: BTreeSet<usize> = match path.extension().and_then(|own| own.to_str()) {
        Some("rs") => {
            let mut lines = BTreeSet::new();
            literal_lines(text.parse().unwrap(), &mut lines);
            numbered()
                .filter(|(number, line)| {
                    lines.contains(number) && !line.trim_start().starts_with("//")
                })
                .map(|(number, _)| number)
                .collect()
        }
        Some("md") => {
            let mut fenced = false;
            numbered()
                .filter(|(_, line)| {
                    let fence = line.trim_start().starts_with("```");
                    fenced ^= fence;
                    fence || fenced || line.starts_with('|')
                })
                .map(|(number, _)| number)
                .collect()
        }
        // Of settings and scripts, the comments.
        _ => numbered()
            .filter(|(_, line)| !line.trim_start().starts_with('#'))
            .map(|(number, _)| number)
            .collect(),
    };
    numbered()
        .filter(|(number, line)| too_long(line) && !excepted.contains(number))
        .map(|(number, _)| number)
        .collect()
}

#[test]
fn lines_end_at_column_100() {
    let root = repository();
    let mut all = Vec::new();
    files(&root, &["rs", "md", "toml", "yaml", "sh"], &mut all);
    let scripts = ["tests/run", "tests/servers", "tests/fuzz/run", ".ci/run", "Dockerfile"];
    all.extend(scripts.iter().map(|name| root.join(name)));
    assert!(all.len() > 200, "the project has more files than {}", all.len());
    let found: Vec<String> = all
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            long_lines(path).into_iter().map(move |line| format!("{name}:{line}"))
        })
        .collect();
    assert!(found.is_empty(), "longer than {COLUMNS} columns:\n{}", found.join("\n"));
}

#[test]
fn a_long_line_is_found_wherever_it_counts() {
    let folder = tempfile::tempdir().unwrap();
    let long = "word ".repeat(30);
    let lines = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        long_lines(&path)
    };
    assert_eq!(lines("a.rs", &format!("// {long}\nfn f() {{ let _ = ({long:?}); }}\n")), [1, 2]);
    assert_eq!(lines("a.rs", &format!("/// {long}\nconst A: &str = r\"{long}\";\n")), [1]);
    assert_eq!(lines("a.rs", &format!("const A: &str = \"\n{long}\n\";\n")), [] as [usize; 0]);
    assert_eq!(lines("a.md", &format!("{long}\n\n```\n{long}\n```\n|{long}|\n{long}")), [1, 7]);
    assert_eq!(lines("a.toml", &format!("# {long}\na = \"{long}\"\n")), [1]);
    assert_eq!(lines("a.md", &format!("- <https://{}>\n", "a".repeat(120))), [] as [usize; 0]);
}
