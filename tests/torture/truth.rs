//! What was committed, what came, and whether they agree.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::Value;

/// A committed change, as far as its event can be told from others: what happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub table: &'static str,
    pub action: &'static str,
    /// To which rows, `table key`, and what: the row itself, and by a change of key the one it was before.
    pub marks: Vec<(String, String)>,
}

/// What a subscription is to get: which changes, and in which order.
#[derive(Clone, Debug)]
pub struct Want {
    pub name: &'static str,
    pub tables: Vec<&'static str>,
    pub actions: Vec<&'static str>,
    pub ordered: bool,
}

impl Want {
    fn wants(&self, change: &Change) -> bool {
        self.tables.contains(&change.table) && self.actions.contains(&change.action)
    }
}

/// What each subscription is to get of what was committed, by row.
#[derive(Default)]
pub struct Ledger {
    expected: HashMap<&'static str, HashMap<String, Vec<String>>>,
    pub transactions: u64,
    pub changes: u64,
}

impl Ledger {
    /// Writes down a committed transaction, matched as of its commit.
    pub fn commit(&mut self, changes: &[Change], wants: &[Want]) {
        self.transactions += 1;
        self.changes += changes.len() as u64;
        for want in wants {
            let rows = self.expected.entry(want.name).or_default();
            for change in changes.iter().filter(|change| want.wants(change)) {
                for (row, what) in &change.marks {
                    rows.entry(row.clone()).or_default().push(what.clone());
                }
            }
        }
    }
}

/// An event that came.
struct Arrival {
    /// The request that brought it first, counted from 1.
    first: u32,
    /// The last one that did so far.
    last: u32,
    /// The first request that was answered 2xx.
    succeeded: Option<u32>,
}

/// What came to a subscription.
#[derive(Default)]
pub struct Seen {
    pub requests: u32,
    pub events: u64,
    by_id: HashMap<String, usize>,
    arrivals: Vec<Arrival>,
    /// By row: what, and which arrival it was.
    rows: HashMap<String, Vec<(String, usize)>>,
    /// What came before the event of its row in front of it was taken, or stood in front of it in the same request.
    overtaking: Vec<String>,
}

impl Seen {
    /// Writes down a request and whether it is answered 2xx.
    pub fn take(&mut self, events: &[Value], success: bool) {
        self.requests += 1;
        for event in events {
            self.events += 1;
            let data = &event["data"];
            let id = data["id"].as_str().unwrap_or_default();
            let at = match self.by_id.get(id) {
                Some(at) => *at,
                None => self.arrive(id, data),
            };
            let arrival = &mut self.arrivals[at];
            arrival.last = self.requests;
            if success {
                arrival.succeeded.get_or_insert(self.requests);
            }
        }
    }

    /// Writes down an event that comes for the first time.
    fn arrive(&mut self, id: &str, data: &Value) -> usize {
        let at = self.arrivals.len();
        self.by_id.insert(id.to_owned(), at);
        self.arrivals.push(Arrival { first: self.requests, last: self.requests, succeeded: None });
        for (row, what) in marks(data) {
            let events = self.rows.entry(row.clone()).or_default();
            if let Some((before, front)) = events.last() {
                let front = &self.arrivals[*front];
                if front.succeeded.is_none() && front.last != self.requests {
                    self.overtaking.push(format!(
                        "{row}: {what} came with request {} when {before} had not succeeded (tried by {} to {})",
                        self.requests, front.first, front.last
                    ));
                }
            }
            events.push((what, at));
        }
        at
    }

    pub fn distinct(&self) -> usize {
        self.arrivals.len()
    }
}

/// What an event says, in the words of [`Change::marks`].
fn marks(data: &Value) -> Vec<(String, String)> {
    let table = data["table"].as_str().unwrap_or_default();
    let name = |key: &Value| match key.as_object() {
        Some(key) => {
            let mut columns: Vec<_> = key.iter().collect();
            columns.sort_by_key(|(column, _)| column.as_str());
            let values: Vec<_> = columns.iter().map(|(_, value)| text(value)).collect();
            format!("{table} {}", values.join(","))
        }
        None => format!("{table} {}", text(&data["record"]["id"])),
    };
    let (row, version) = (name(&data["key"]), text(&data["record"]["version"]));
    match data["action"].as_str().unwrap_or_default() {
        "insert" => vec![(row, format!("insert {version}"))],
        "update" if data["old_key"].is_null() => vec![(row, format!("update {version}"))],
        "update" => {
            let before = name(&data["old_key"]);
            vec![(before, format!("becomes {row} {version}")), (row, format!("moved {version}"))]
        }
        // Without the whole old row its version is not known.
        "delete" if table == "whole" => vec![(row, format!("delete {version}"))],
        action => vec![(row, action.to_owned())],
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What is wrong with what a subscription got; nothing, if all is well.
pub fn disagreements(want: &Want, ledger: &Ledger, seen: &Seen) -> Vec<String> {
    let nothing = HashMap::new();
    let expected = ledger.expected.get(want.name).unwrap_or(&nothing);
    let mut wrong = Vec::new();
    let rows: HashSet<&String> = expected.keys().chain(seen.rows.keys()).collect();
    for row in rows {
        let mut expected: Vec<&str> = expected.get(row).into_iter().flatten().map(String::as_str).collect();
        let came = seen.rows.get(row).map(Vec::as_slice).unwrap_or_default();
        let mut got: Vec<&str> = came.iter().map(|(what, _)| what.as_str()).collect();
        if !want.ordered {
            expected.sort_unstable();
            got.sort_unstable();
        }
        if expected != got {
            wrong.push(difference(row, &expected, &got));
        }
    }
    if want.ordered {
        wrong.extend(seen.overtaking.iter().cloned());
    }
    wrong
}

fn difference(row: &str, expected: &[&str], got: &[&str]) -> String {
    let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let mut text = format!("{row}: {} expected, {} came; after {same} in common", expected.len(), got.len());
    let next =
        |list: &[&str]| list[same..].iter().take(6).map(|s| (*s).to_owned()).collect::<Vec<_>>().join(", ");
    let _ = write!(text, " expected [{}], came [{}]", next(expected), next(got));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A subscription that is to get the insert and the update of one row.
    fn stage() -> (Want, Ledger, Seen) {
        let want =
            Want { name: "s", tables: vec!["plain"], actions: vec!["insert", "update"], ordered: true };
        let mut ledger = Ledger::default();
        let change = |action, what: &str| Change {
            table: "plain",
            action,
            marks: vec![("plain 1".to_owned(), what.to_owned())],
        };
        let changes =
            [change("insert", "insert 1"), change("update", "update 2"), change("delete", "delete")];
        ledger.commit(&changes, std::slice::from_ref(&want));
        (want, ledger, Seen::default())
    }

    fn event(action: &str, version: u64) -> Value {
        json!({"data": {"id": version.to_string(), "table": "plain", "action": action, "key": {"id": 1},
            "record": {"id": 1, "version": version}, "old_key": null}})
    }

    #[track_caller]
    fn found(came: &[(&[Value], bool)], what: &str) {
        let (want, ledger, mut seen) = stage();
        came.iter().for_each(|(events, success)| seen.take(events, *success));
        let wrong = disagreements(&want, &ledger, &seen).join("\n");
        assert!(wrong.contains(what) && wrong.is_empty() == what.is_empty(), "{wrong}");
    }

    #[test]
    fn what_is_wrong_is_seen_and_what_is_right_is_not() {
        let (insert, update) = ([event("insert", 1)], [event("update", 2)]);
        let both = [event("insert", 1), event("update", 2)];
        found(&[(&insert, true), (&update, true)], "");
        found(&[(&insert, false), (&insert, true), (&update, false), (&update, true)], "");
        found(&[(&insert, true), (&update, true), (&insert, true), (&update, true)], "");
        found(&[(&both, false), (&both, true)], "");
        found(&[(&insert, false), (&both, true)], "");
        found(&[(&insert, true)], "2 expected, 1 came");
        found(
            &[(&update, true), (&insert, true)],
            "expected [insert 1, update 2], came [update 2, insert 1]",
        );
        found(&[(&insert, false), (&update, true), (&insert, true)], "had not succeeded");
        found(&[(&insert, true), (&update, true), (&[event("update", 3)], true)], "2 expected, 3 came");
    }
}
