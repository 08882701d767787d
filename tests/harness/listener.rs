//! Who listens to `NOTIFY`.

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;

use crate::{Database, PATIENCE};

/// A session that has said LISTEN.
pub struct Listener {
    client: Client,
    heard: Vec<String>,
}

impl Listener {
    pub(crate) fn new(database: &Database, channel: &str) -> Self {
        let mut client = database.connect();
        client.batch_execute(&format!("LISTEN {channel}")).expect("LISTEN");
        Self { client, heard: Vec::new() }
    }

    /// Waits for a notification that holds all these words, and returns its payload. What was heard before counts, too.
    #[track_caller]
    pub fn wait_for(&mut self, words: &[&str]) -> String {
        let fits = |payload: &String| words.iter().all(|word| payload.contains(word));
        if let Some(payload) = self.heard.iter().find(|payload| fits(payload)) {
            return payload.clone();
        }
        loop {
            let next = self.client.notifications().timeout_iter(PATIENCE).next();
            let Ok(Some(notification)) = next else {
                panic!("no notification with {words:?} within {PATIENCE:?}; heard {:?}", self.heard);
            };
            let payload = notification.payload().to_owned();
            self.heard.push(payload.clone());
            if fits(&payload) {
                return payload;
            }
        }
    }
}
