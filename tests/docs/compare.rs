//! Whether what came is what a document shows, `…` and what differs from run to run aside.

use serde_json::Value;

/// Lines without what the width of a column makes of them.
pub fn normal(text: &str) -> Vec<String> {
    let squeezed = text.lines().map(|line| {
        let mut line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        while line.contains("--") {
            line = line.replace("--", "-");
        }
        line
    });
    squeezed.filter(|line| !line.is_empty()).collect()
}

/// Whether the lines printed are those shown.
pub fn like(shown: &[String], printed: &[String]) -> Result<(), String> {
    let same = shown.len() == printed.len()
        && shown.iter().zip(printed).all(|(shown, printed)| matches(shown, printed));
    if same { Ok(()) } else { Err(format!("what was printed is\n{}", printed.join("\n"))) }
}

/// Whether a text is as shown, where `…` stands for anything.
fn matches(shown: &str, text: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether a JSON value is as shown.
pub fn same(shown: &Value, sent: &Value) -> bool {
    match (shown, sent) {
        (Value::Object(shown), Value::Object(sent)) => {
            shown.len() == sent.len()
                && shown.iter().all(|(name, shown)| match sent.get(name) {
                    Some(sent) if differs_from_run_to_run(name, shown) => {
                        std::mem::discriminant(shown) == std::mem::discriminant(sent)
                    }
                    Some(sent) => same(shown, sent),
                    None => false,
                })
        }
        (Value::Array(shown), Value::Array(sent)) => {
            shown.len() == sent.len() && shown.iter().zip(sent).all(|(shown, sent)| same(shown, sent))
        }
        (Value::String(shown), Value::String(sent)) => matches(shown, sent),
        _ => shown == sent,
    }
}

fn differs_from_run_to_run(name: &str, shown: &Value) -> bool {
    let is_event_id = shown.as_str().is_some_and(|text| text.starts_with("evt_"));
    is_event_id || ["timestamp", "lsn", "xid", "commit_lsn", "oid"].contains(&name)
}
