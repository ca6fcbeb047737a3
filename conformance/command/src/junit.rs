//! Results as `JUnit` XML, which CI systems show.

use std::fmt::Write as _;

use tesk_conformance::storage::{Judged, Outcome, Report};

/// The whole document: a suite for each storage.
pub(crate) fn document(reports: &[Report]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for report in reports {
        let [passed, ignored, failed] = report.counts();
        let seconds: f64 = report
            .cases
            .iter()
            .map(|case| case.took.as_secs_f64())
            .sum();
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" skipped=\"{ignored}\" failures=\"{failed}\" \
             errors=\"0\" time=\"{seconds:.3}\">",
            escaped(&report.subject),
            passed + ignored + failed,
        );
        for judged in &report.cases {
            case(&mut xml, &report.subject, judged);
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn case(xml: &mut String, subject: &str, judged: &Judged) {
    let _ = write!(
        xml,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escaped(subject),
        escaped(judged.case),
        judged.took.as_secs_f64(),
    );
    let _ = match &judged.outcome {
        Outcome::Passed => writeln!(xml, "/>"),
        Outcome::Ignored(reason) => writeln!(
            xml,
            "><skipped message=\"{}\"/></testcase>",
            escaped(reason)
        ),
        Outcome::Failed(why) => writeln!(
            xml,
            "><failure message=\"{}\">{}</failure></testcase>",
            escaped(why.lines().next().unwrap_or_default()),
            escaped(why)
        ),
    };
}

/// Text for attributes and elements. What XML 1.0 (2.2) has no place for becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\'' => xml.push_str("&apos;"),
            // Attributes would lose them.
            '\t' | '\n' | '\r' => drop(write!(xml, "&#{};", c as u32)),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => xml.push('\u{fffd}'),
            c => xml.push(c),
        }
    }
    xml
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;
    use tesk_core::storage::Capabilities;

    use super::*;

    #[derive(Deserialize)]
    struct Suites {
        testsuite: Vec<Suite>,
    }

    #[derive(Deserialize)]
    struct Suite {
        #[serde(rename = "@name")]
        name: String,
        testcase: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        skipped: Option<Reason>,
        failure: Option<Reason>,
    }

    #[derive(Deserialize)]
    struct Reason {
        #[serde(rename = "@message")]
        message: String,
        #[serde(rename = "$text", default)]
        text: String,
    }

    #[test]
    fn whatever_an_error_holds_the_document_is_xml_that_tells_it() {
        let hostile = "]]> <a b=\"c\"> & 'd'\u{0}\u{1b}[2J\nsecond";
        let judged = |outcome| Judged {
            case: "some_case",
            outcome,
            took: Duration::from_millis(1500),
        };
        let report = Report {
            subject: "ftp://h/<&\">".into(),
            server: None,
            claims: Capabilities::read_only(),
            cases: vec![
                judged(Outcome::Passed),
                judged(Outcome::Ignored(hostile.into())),
                judged(Outcome::Failed(hostile.into())),
            ],
        };
        let xml = document(&[report]);
        let told = hostile.replace(['\u{0}', '\u{1b}'], "\u{fffd}");
        let read: Suites = quick_xml::de::from_str(&xml).unwrap();
        let [suite] = read.testsuite.as_slice() else {
            panic!("{xml}");
        };
        assert_eq!(suite.name, "ftp://h/<&\">");
        let [_, ignored, failed] = suite.testcase.as_slice() else {
            panic!("{xml}");
        };
        assert_eq!(ignored.skipped.as_ref().unwrap().message, told);
        let failure = failed.failure.as_ref().unwrap();
        assert_eq!(failure.text, told);
        assert!(told.starts_with(&failure.message), "{xml}");
        assert!(
            xml.contains("tests=\"3\" skipped=\"1\" failures=\"1\""),
            "{xml}"
        );
        assert!(!xml.contains('\u{1b}'));
    }
}
