//! What `pgwh.metrics()` tells, read as a collector would.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use harness::{Database, eventually, run_with_input};
use serde_json::Value;

/// The official parser.
const PARSER: &str = "prometheus-client==0.23.1";

/// A name with its labels, in order of the labels: `name{a="b",c="d"}`.
pub type Series = String;

/// One reading of all metrics.
pub struct Scrape {
    /// By name, with type, unit, help and samples.
    pub families: BTreeMap<String, Value>,
    series: BTreeMap<Series, f64>,
}

impl Scrape {
    /// Reads the metrics of a database by the official parser.
    #[track_caller]
    pub fn of(database: &Database) -> Scrape {
        Scrape::read(&database.value("SELECT pgwh.metrics()"))
    }

    #[track_caller]
    fn read(text: &str) -> Scrape {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("operations/metrics/parse.py");
        let mut parser = Command::new(python());
        parser.arg(script);
        let output = run_with_input(parser, text);
        assert!(output.status.success(), "{}\nin:\n{text}", String::from_utf8_lossy(&output.stderr));
        let families: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
        let samples = families.values().flat_map(|family| family["samples"].as_array().unwrap());
        let series = samples.map(|sample| (series(sample), sample["value"].as_f64().unwrap())).collect();
        Scrape { families, series }
    }

    /// All series.
    pub fn series(&self) -> &BTreeMap<Series, f64> {
        &self.series
    }

    /// The value of the one series of that name that has these labels (`a="b"`); none if there is no such series.
    #[track_caller]
    pub fn get(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let fits = |series: &str| {
            let (its, rest) = series.split_once('{').unwrap_or((series, ""));
            its == name && labels.iter().all(|label| rest.contains(label))
        };
        let found: Vec<_> = self.series.iter().filter(|(series, _)| fits(series)).collect();
        assert!(found.len() < 2, "{found:?}");
        found.first().map(|(_, value)| **value)
    }

    /// As [`Scrape::get`]; what is not there is 0.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[&str]) -> f64 {
        self.get(name, labels).unwrap_or_default()
    }
}

fn series(sample: &Value) -> Series {
    let labels: BTreeMap<String, String> = serde_json::from_value(sample["labels"].clone()).unwrap();
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{}{{{}}}", sample["name"].as_str().unwrap(), labels.join(","))
}

/// Scrapes until the condition holds.
#[track_caller]
pub fn scrape_until(database: &Database, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
    eventually(what, || Some(Scrape::of(database)).filter(|scrape| holds(scrape)))
}

/// Python with the parser, installed when it is not there.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/python");
        let output = Command::new(script).arg(PARSER).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
