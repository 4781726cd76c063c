//! The evidence of a drill as one page that needs nothing else: to be filed.

use std::fmt::{self, Display, Write as _};

use super::DrillReport;
use crate::model::{ByteSize, CheckOutcome, Proof, Span, Verdict};

/// The look of the page. It prints on paper as it is.
const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8883;--dim:#666;--good:#17733a;--bad:#b3261e;--warn:#8a5a00}
@media(prefers-color-scheme:dark){:root{--dim:#aaa;--good:#6fcf8f;--bad:#ff8a80;--warn:#f2c063}}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2.5rem auto;padding:0 1.25rem}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:2rem 0 .5rem}
p{margin:.25rem 0}.dim{color:var(--dim)}code{font:.9em \
    ui-monospace,monospace;overflow-wrap:anywhere}
.verdict{display:inline-block;font-weight:700;padding:.15rem .7rem;border:2px \
    solid;border-radius:.4rem;text-transform:uppercase;letter-spacing:.04em}
.passed{color:var(--good)}.failed{color:var(--bad)}.inconclusive{color:var(--warn)}.skipped{color:var(--dim)}
table{border-collapse:collapse;width:100%;font-size:.93rem}th{text-align:left;font-weight:600;color:var(--dim)}
th,td{padding:.3rem .75rem .3rem 0;border-bottom:1px solid \
    var(--line);vertical-align:top;overflow-wrap:anywhere}
td:first-child{white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap}td.o{white-space:nowrap;font-weight:600}
ul{margin:.2rem 0;padding-left:1.2rem}dl{display:grid;grid-template-columns:max-content \
    1fr;gap:.2rem 1.25rem;margin:0}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
@media print{body{margin:0;max-width:none}tr{break-inside:avoid}}";

/// A text that is shown as it is, whatever is in it; what stands between two backticks as code.
struct Plain<T>(T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let in_pairs = text.matches('`').count().is_multiple_of(2);
        let mut in_code = false;
        for character in text.chars() {
            match character {
                '`' if in_pairs => {
                    f.write_str(if in_code { "</code>" } else { "<code>" })?;
                    in_code = !in_code;
                }
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Of text from elsewhere only what can be seen is shown as it is.
                other if is_odd(other) => write!(f, "{}", other.escape_debug())?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Whether it is not seen, or lets others be seen as they are not.
fn is_odd(character: char) -> bool {
    let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (character.is_control() && character != '\n')
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.2} s");
    }
    Span::from(std::time::Duration::from_secs(seconds.max(0.0).round() as u64)).to_string()
}

fn time(time: chrono::DateTime<chrono::Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The page. It holds no script and fetches nothing.
pub fn html(report: &DrillReport) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut page, report);
    page
}

fn write(page: &mut String, report: &DrillReport) -> fmt::Result {
    let subject = Plain(format!("{}/{}", report.instance, report.strategy));
    let verdict = report.verdict.as_str();
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Restore drill of {subject}, {}: {verdict}</title>\n<style>\n{STYLE}\n</style>\n\
         </head>\n<body>\n",
        report.started.format("%Y-%m-%d")
    )?;
    write!(
        page,
        "<h1>Restore drill of {subject}</h1>\n<p class=\"dim\">{} · drill <code>{}</code></p>\n\
         <p><span class=\"verdict {verdict}\">{verdict}</span></p>\n<p>{}</p>\n",
        time(report.started),
        report.id,
        Plain(summary(report))
    )?;
    if let Some(problem) = &report.problem {
        writeln!(page, "<p class=\"{verdict}\">{}</p>", Plain(problem))?;
    }
    facts(page, report)?;
    times(page, report)?;
    restored(page, report)?;
    checks(page, report)?;
    rest(page, report)?;
    page.push_str("</body>\n</html>\n");
    Ok(())
}

/// The whole in a sentence.
fn summary(report: &DrillReport) -> String {
    let checks = format!(
        "{} checks passed, {} failed, {} could not be made, {} had nothing to compare with",
        report.count(CheckOutcome::Passed),
        report.count(CheckOutcome::Failed),
        report.count(CheckOutcome::Inconclusive),
        report.count(CheckOutcome::Skipped)
    );
    let what = match report.verdict {
        Verdict::Passed => "The snapshot was restored, and is what it was when it was taken",
        Verdict::Failed if report.suspect => {
            "The snapshot was restored, and has much less than the last good one"
        }
        Verdict::Failed => "The snapshot is bad",
        Verdict::Inconclusive => "Nothing is said about the snapshot: it could not be judged",
    };
    format!("{what}. {checks}.")
}

fn facts(page: &mut String, report: &DrillReport) -> fmt::Result {
    page.push_str("<h2>What was drilled</h2>\n<dl>\n");
    let mut line =
        |name: &str, value: String| writeln!(page, "<dt>{name}</dt><dd>{}</dd>", Plain(value));
    if let Some(snapshot) = &report.snapshot {
        line("Snapshot", snapshot.id.to_string())?;
        line("Taken", time(snapshot.taken))?;
        let completeness =
            snapshot.completeness.map_or("not known", |completeness| match completeness {
                crate::model::Completeness::Whole => "whole",
                crate::model::Completeness::Partial => "partial: content is missing",
            });
        line("Completeness", completeness.to_owned())?;
        let plain = snapshot
            .plain_bytes
            .map(|bytes| format!("{} plain, ", ByteSize(bytes)))
            .unwrap_or_default();
        let encrypted = if snapshot.encrypted { ", encrypted" } else { ", not encrypted" };
        line("Size", format!("{plain}{} stored{encrypted}", ByteSize(snapshot.stored_bytes)))?;
        if let Some(program) = &snapshot.program {
            line("Written by", format!("{} {}", program.name, program.version))?;
        }
    }
    line(
        "Read from",
        format!(
            "{} ({}), {} fetched",
            report.storage,
            report.address,
            ByteSize(report.fetched_bytes)
        ),
    )?;
    line(
        "Drilled by",
        format!("{} {} on {}", report.program.name, report.program.version, report.host),
    )?;
    if !report.proof.is_empty() {
        line("Proof", Proof::in_words(&report.proof))?;
    }
    line("Began", time(report.started))?;
    line("Ended", time(report.finished))?;
    page.push_str("</dl>\n");
    Ok(())
}

fn times(page: &mut String, report: &DrillReport) -> fmt::Result {
    page.push_str(
        "<h2>Recovery</h2>\n<table>\n\
        <tr><th>Measure</th><th class=\"n\">Found</th><th class=\"n\">Objective</th></tr>\n",
    );
    let objective =
        |seconds_of: Option<f64>| seconds_of.map_or_else(|| "none set".to_owned(), seconds);
    writeln!(
        page,
        "<tr><td>Recovery time: all steps but checks and clean-up</td><td class=\"n\">{}</td><td \
         class=\"n\">{}</td></tr>",
        seconds(report.recovery_seconds),
        objective(report.rto_seconds)
    )?;
    writeln!(
        page,
        "<tr><td>Recovery point: age of the data when the drill began</td><td \
         class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n</table>",
        report.recovery_point_seconds.map_or_else(|| "not known".to_owned(), seconds),
        objective(report.rpo_seconds)
    )?;
    page.push_str("<h2>Steps</h2>\n<table>\n<tr><th>Step</th><th class=\"n\">Took</th></tr>\n");
    for step in &report.steps {
        writeln!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td></tr>",
            Plain(&step.name),
            seconds(step.seconds)
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

fn restored(page: &mut String, report: &DrillReport) -> fmt::Result {
    if !report.targets.is_empty() {
        page.push_str(
            "<h2>Restored to</h2>\n<table>\n\
             <tr><th>Source</th><th>Dumped from</th><th>Scratch target</th></tr>\n",
        );
        for target in &report.targets {
            writeln!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                Plain(&target.source),
                Plain(target.dumped_from.as_deref().unwrap_or("")),
                Plain(&target.place)
            )?;
        }
        page.push_str("</table>\n");
    }
    if !report.artifacts.is_empty() {
        page.push_str(
            "<h2>Artifacts</h2>\n<table>\n\
             <tr><th>Artifact</th><th class=\"n\">Stored</th><th class=\"n\">Plain</th><th>Digest \
             of the plain bytes</th><th></th></tr>\n",
        );
        for artifact in &report.artifacts {
            writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td \
                 class=\"n\">{}</td><td><code>{}</code></td><td>{}</td></tr>",
                Plain(&artifact.name),
                ByteSize(artifact.stored_bytes),
                artifact.plain_bytes.map(|bytes| ByteSize(bytes).to_string()).unwrap_or_default(),
                artifact.plain_digest.map(|digest| digest.to_string()).unwrap_or_default(),
                Plain(&artifact.done)
            )?;
        }
        page.push_str("</table>\n");
    }
    Ok(())
}

fn checks(page: &mut String, report: &DrillReport) -> fmt::Result {
    page.push_str(
        "<h2>Checks</h2>\n<table>\n\
         <tr><th>Source</th><th>Check</th><th>Expected</th><th>Found</th><th></th></tr>\n",
    );
    // What is wrong comes first.
    let others = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, CheckOutcome::Passed | CheckOutcome::Skipped));
    for check in report.bad_news().chain(others) {
        let outcome = check.outcome.as_str();
        write!(
            page,
            "<tr><td>{}</td><td>{}",
            check.source.as_ref().map(|source| Plain(source).to_string()).unwrap_or_default(),
            Plain(&check.what)
        )?;
        if !check.details.is_empty() {
            page.push_str("<ul class=\"dim\">");
            for detail in &check.details {
                write!(page, "<li>{}</li>", Plain(detail))?;
            }
            page.push_str("</ul>");
        }
        writeln!(
            page,
            "</td><td>{}</td><td>{}</td><td class=\"o {outcome}\">{outcome}</td></tr>",
            Plain(check.expected.as_deref().unwrap_or_default()),
            Plain(check.found.as_deref().unwrap_or_default())
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

fn rest(page: &mut String, report: &DrillReport) -> fmt::Result {
    let mut list = |title: &str, lines: Vec<String>| {
        if lines.is_empty() {
            return Ok(());
        }
        write!(page, "<h2>{title}</h2>\n<ul>\n")?;
        for line in lines {
            writeln!(page, "<li>{}</li>", Plain(line))?;
        }
        page.push_str("</ul>\n");
        Ok(())
    };
    let warnings = report.remarks.warnings.kept().iter().map(|warning| warning.note.to_string());
    list("Warnings", warnings.collect())?;
    list("Notes", report.remarks.notes.kept().iter().map(ToString::to_string).collect())?;
    list("Left behind", report.left.clone())?;
    let mut recorded: Vec<String> =
        report.recorded.iter().map(|name| format!("beside the snapshot in {name}")).collect();
    recorded
        .extend(report.unrecorded.iter().map(|(name, error)| format!("not in {name}: {error}")));
    list("Recorded", recorded)
}

#[cfg(test)]
mod tests {
    use super::Plain;

    #[test]
    fn what_was_backed_up_cannot_write_into_the_page() {
        let text = "<script>alert('x & \"y\"')</script>\u{1b}[31m";
        let shown = Plain(text).to_string();
        assert_eq!(
            shown,
            "&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;\\u{1b}[31m"
        );
        assert_eq!(Plain("a `<b>` c").to_string(), "a <code>&lt;b&gt;</code> c");
        assert_eq!(Plain("one ` <b>").to_string(), "one ` &lt;b&gt;");
    }
}
