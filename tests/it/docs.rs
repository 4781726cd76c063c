//! Modules, and public types, traits and functions, have documentation. Fields need none: where a
//! name and a type say it all, a comment repeats them.

use std::path::{Path, PathBuf};

use crate::support::repository;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// Lines of public items without documentation; line 1 for a file without any.
fn undocumented(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(1);
    }
    let kinds = ["fn ", "struct ", "enum ", "trait ", "type "];
    for (index, line) in lines.iter().enumerate() {
        let Some(item) = line.trim_start().strip_prefix("pub ") else { continue };
        let item = item.trim_start_matches("async ").trim_start_matches("const ");
        if !kinds.iter().any(|kind| item.starts_with(kind)) {
            continue;
        }
        // Attributes stand between an item and its documentation, over several lines at times.
        let indent = line.len() - line.trim_start().len();
        let above = lines[..index].iter().rev().find(|above| {
            let own = above.len() - above.trim_start().len();
            let text = above.trim_start();
            let is_comment = text.starts_with("//") && !text.starts_with("///");
            own == indent && !is_comment && !text.starts_with("#[") && !text.starts_with(')')
        });
        if !above.is_some_and(|above| above.trim_start().starts_with("///")) {
            found.push(index + 1);
        }
    }
    found
}

#[test]
fn public_items_have_documentation() {
    let root = repository().join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 150, "src has more files than {}", files.len());
    let found: Vec<String> = files
        .iter()
        .filter(|path| !path.ends_with("main.rs"))
        .flat_map(|path| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            let text = std::fs::read_to_string(path).unwrap();
            undocumented(&text).into_iter().map(move |line| format!("src/{name}:{line}"))
        })
        .collect();
    assert!(found.is_empty(), "without documentation:\n{}", found.join("\n"));
}

#[test]
fn missing_documentation_is_found() {
    let text = "//! A room.\n\n/// Doc.\n#[derive(\n    Debug,\n)]\npub struct A;\n\n\
                #[derive(Debug)]\npub struct B {\n    pub field: u8,\n}\n\nimpl A {\n    /// Doc.\n    \
                pub async fn a() {}\n\n    pub fn b() {}\n}\n";
    assert_eq!(undocumented(text), [10, 18]);
    assert_eq!(undocumented("/// Doc.\npub fn a() {}\n"), [1]);
}
