//! Messages in write-ahead log: those of `pgwh.emit` and `pgwh.annotate`, which carry a seal, and other applications'.

use std::borrow::Cow;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Capture;
use crate::decode::routing::message_router::Writer;
use crate::event::message_auth::Kind;
use crate::event::{Action, Lsn, Message};
use crate::gucs;
use crate::ipc::frame::{ChangeHead, Image, LaneKeys, Target, begin_change, write_relation};
use crate::pg::acl;
use crate::pg::subtransaction::{Raised, in_subtransaction};
use crate::pg::values::encoding::utf8;

/// Where the hashes of messages' keys begin, so that they are not those of a table's rows.
const KEYS: u64 = 0x6D65_7373_6167_6573;

/// What `pgwh.emit` writes, and our workers do.
#[derive(Deserialize)]
struct Emitted<'a> {
    /// Who gets it, of those who ask for what our workers have to say.
    #[serde(default)]
    readers: Vec<i64>,
    #[serde(borrow, rename = "type")]
    kind: &'a RawValue,
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Capture {
    /// A message of the transaction, as its writer wrote it, in the encoding of the database; its record stands at `lsn`.
    pub fn message(&mut self, prefix: &[u8], content: &[u8], lsn: Lsn) {
        self.lsn = lsn;
        let ordinal = self.next_ordinal();
        let prefix = String::from_utf8_lossy(prefix);
        match Kind::of_prefix(&prefix) {
            Some(kind) => match self.sealer.clone().open(kind, self.transaction.xid, content) {
                Some(content) => match kind {
                    Kind::Emit => self.emitted(Writer::Emit, content, ordinal),
                    Kind::System => self.emitted(Writer::System, content, ordinal),
                    Kind::Annotate => self.annotated(content),
                },
                None => self.note_forgery(kind),
            },
            None => self.written(&prefix, content, ordinal),
        }
        self.flush_when_full();
    }

    fn emitted(&mut self, writer: Writer<'_>, content: &[u8], ordinal: u64) {
        if !self.aim(writer) {
            return;
        }
        let told = in_subtransaction(self.memory, || utf8(content).into_owned());
        let told = told.and_then(|text| {
            let Emitted { readers, kind, key, payload } = serde_json::from_str(&text).map_err(|error| {
                Raised::new(
                    PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    format!("a message of ours is no JSON: {error}"),
                )
            })?;
            if writer == Writer::System {
                self.targets.retain(|target| readers.contains(&target.subscription));
                if self.targets.is_empty() {
                    return Ok(());
                }
            }
            let message = Message {
                kind: kind.get().as_bytes(),
                prefix: if writer == Writer::System { b"\"pgwh.system\"" } else { b"null" },
                key: key.get().as_bytes(),
                payload: payload.get().as_bytes(),
            };
            // It was refused when it was too long to be sent.
            self.tell(&message, ordinal, usize::MAX);
            Ok(())
        });
        if let Err(raised) = told {
            self.fail_message(ordinal, &raised);
        }
    }

    /// What the transaction says of itself holds for what follows.
    fn annotated(&mut self, content: &[u8]) {
        match in_subtransaction(self.memory, || utf8(content).into_owned()) {
            Ok(text) => {
                self.annotations = Some(text).filter(|text| !text.is_empty());
                self.annotations_changed = true;
            }
            Err(raised) => pgrx::warning!("pgstream_hooks: annotations cannot be read: {}", raised.message),
        }
    }

    /// Any role can write such a message. Whoever does so on purpose must not fill the server's log, too.
    fn note_forgery(&mut self, kind: Kind) {
        if !std::mem::replace(&mut self.forgery_seen, true) {
            pgrx::log!(
                "pgstream_hooks: transaction {} has written a message of prefix {} by itself; such messages are ignored",
                self.transaction.xid,
                kind.prefix()
            );
        }
    }

    /// A message of another application: JSON as it is, other text as a string, other bytes as a string of their digits.
    fn written(&mut self, prefix: &str, content: &[u8], ordinal: u64) {
        if !self.aim(Writer::Other(prefix)) {
            return;
        }
        let text = in_subtransaction(self.memory, || match utf8(content) {
            // What is no text in the encoding of the database has been replaced.
            Cow::Owned(text) if text.contains(char::REPLACEMENT_CHARACTER) => None,
            text => Some(text.into_owned()),
        });
        let text = text.ok().flatten().filter(|text| !text.contains('\0'));
        let payload = match text {
            Some(text) if serde_json::from_str::<&RawValue>(&text).is_ok() => text,
            Some(text) => string(&text),
            None => {
                let digits: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
                string(&format!("\\x{digits}"))
            }
        };
        let prefix = string(prefix);
        let message = Message {
            kind: prefix.as_bytes(),
            prefix: prefix.as_bytes(),
            key: b"null",
            payload: payload.as_bytes(),
        };
        self.tell(&message, ordinal, gucs::max_event_size());
    }

    /// Takes those as targets who get messages of that writer; false when there are none.
    fn aim(&mut self, writer: Writer<'_>) -> bool {
        self.targets.clear();
        let readers = self.router.listeners().readers(writer);
        self.targets.extend(readers.map(|subscription| Target { subscription, level: 0 }));
        self.leave_out_local();
        if let Writer::Other(_) = writer {
            let owner = |target: &Target| self.router.owner(target.subscription);
            self.targets.retain(|target| owner(target).is_some_and(|it| acl::may_read_log(acl::role_of(it))));
        }
        let any = !self.targets.is_empty();
        self.counted.1 += u64::from(any);
        any
    }

    /// The message becomes an event, without a payload of more than `limit` bytes.
    fn tell(&mut self, message: &Message<'_>, ordinal: u64, limit: usize) {
        let Some(reference) = self.announce_messages() else { return };
        let keys = LaneKeys {
            key: (message.key != b"null").then(|| xxh3_64_with_seed(message.key, KEYS)),
            old: None,
        };
        let head =
            ChangeHead { reference, action: Action::Message, ordinal, lsn: self.lsn, targets: &self.targets };
        let mut frame = begin_change(&mut self.buffer, &head);
        let mut row = frame.row(Image::New);
        message.cells_within(limit).into_iter().for_each(|cell| row.cell(cell));
        if let Err(too_long) = frame.finish(keys, false) {
            let code = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
            self.fail(reference, Action::Message, ordinal, &Raised::new(code, too_long.to_string()));
        }
    }

    fn fail_message(&mut self, ordinal: u64, raised: &Raised) {
        if let Some(reference) = self.announce_messages() {
            self.fail(reference, Action::Message, ordinal, raised);
        }
    }

    /// Tells of the transaction, and of what messages are told as rows of; returns the number that goes by.
    fn announce_messages(&mut self) -> Option<u32> {
        self.announce_transaction();
        if self.messages.is_none() {
            let reference = self.reference_of(pg_sys::InvalidOid);
            write_relation(&mut self.buffer, reference, &Message::relation()).ok()?;
            self.messages = Some(reference);
        }
        self.messages
    }
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
