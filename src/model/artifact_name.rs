//! Names of artifacts, as `docs/format.md` has them.

use std::num::NonZeroU32;

use super::Name;

/// The name of an artifact: `db.pgdump`, and `db.2.pgdump` for the second of one source.
pub fn artifact_name(source: &Name, number: NonZeroU32, extension: &str) -> String {
    match number {
        NonZeroU32::MIN => format!("{source}.{extension}"),
        number => format!("{source}.{number}.{extension}"),
    }
}

/// The source, the number and the extension that the name of an artifact is made of. Names of
/// sources have no dots, and no extension begins with a number.
pub fn parse_artifact_name(name: &str) -> Option<(&str, NonZeroU32, &str)> {
    let (source, rest) = name.split_once('.')?;
    let numbered = rest.split_once('.').and_then(|(number, extension)| {
        let parsed: NonZeroU32 = number.parse().ok()?;
        (parsed > NonZeroU32::MIN && parsed.to_string() == number).then_some((parsed, extension))
    });
    let (number, extension) = numbered.unwrap_or((NonZeroU32::MIN, rest));
    Some((source, number, extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_name_is_parsed_as_made() {
        for source in ["db", "2", "a-b_c"] {
            let source: Name = source.parse().unwrap();
            for (number, extension) in
                [(1, "pgdump"), (1, "globals.sql"), (2, "globals.sql"), (200, "index")]
            {
                let number = NonZeroU32::new(number).unwrap();
                let name = artifact_name(&source, number, extension);
                assert_eq!(
                    parse_artifact_name(&name),
                    Some((source.as_str(), number, extension)),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn only_a_canonical_number_counts() {
        let one = NonZeroU32::MIN;
        for rest in ["1.tar", "0.tar", "02.tar", "+2.tar", "4294967296.tar", "2"] {
            let name = format!("db.{rest}");
            assert_eq!(parse_artifact_name(&name), Some(("db", one, rest)), "{name}");
        }
        assert_eq!(parse_artifact_name("db"), None);
    }
}
