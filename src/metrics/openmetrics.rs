//! OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>, section 3.2).

use std::fmt::Write;

use super::collect::{Sample, Sink};
use super::families::Family;

/// The text so far.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// The whole text.
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }

    fn label(&mut self, first: &mut bool, name: &str, value: &str) {
        self.0.push(if std::mem::take(first) { '{' } else { ',' });
        self.0.push_str(name);
        self.0.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        self.0.push('"');
    }
}

impl Sink for Text {
    fn family(&mut self, family: &Family) {
        let (name, kind, unit, help) = (family.name, family.kind.word(), family.unit(), family.help);
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, family: &Family, sample: &Sample<'_>) {
        self.0.push_str(family.name);
        self.0.push_str(sample.suffix);
        let mut first = true;
        for (name, value) in sample.labels() {
            if let Some(value) = value {
                self.label(&mut first, name, value);
            }
        }
        if !first {
            self.0.push('}');
        }
        // Numbers of counters are whole and printed so; no value is infinite.
        let _ = writeln!(self.0, " {}", sample.value);
    }
}
