//! Names that look like one that was not found, for a HINT.

/// At most this many are named.
const MOST: usize = 3;
/// Less alike than this is no help.
const ALIKE: f64 = 0.8;

/// The candidates most like `wanted`, best first.
pub fn near(wanted: &str, candidates: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut alike: Vec<(f64, String)> = candidates
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    // Where only the case differs, nothing else is meant.
    if alike.iter().any(|(likeness, _)| *likeness == 1.0) {
        alike.retain(|(likeness, _)| *likeness == 1.0);
    }
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    alike.into_iter().take(MOST).map(|(_, name)| name).collect()
}
