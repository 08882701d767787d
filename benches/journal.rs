//! What it costs to pack events and outcomes for the journal, and to unpack them.
//!
//!     cargo bench --bench journal -- [events]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgstream_hooks::delivery::DeliveryId;
use pgstream_hooks::event::{
    Action, Cell, Column, Event, Fingerprint, Kind, Lsn, Relation, Row, TableName, Timestamp, Transaction,
};
use pgstream_hooks::ipc::frame::{Item, LaneKeys, Target};
use pgstream_hooks::journal::packed::event_chunk::{self, ChunkPacker};
use pgstream_hooks::journal::packed::outcome_chunk::{self, End, Outcome, OutcomePacker};

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds an option of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let count: u64 = arguments.next().map_or(Ok(200_000), |count| count.parse())?;
    let relation = Arc::new(relation());

    for (what, a_transaction) in [("an event a transaction", 1), ("100 events a transaction", 100)] {
        let items: Vec<Item> = (0..count).map(|number| change(number, a_transaction, &relation)).collect();
        let row = items.first().map_or(0, row_bytes);
        println!("{what}, rows of {row} bytes of JSON:");

        let started = Instant::now();
        let (mut packer, mut chunks) = (ChunkPacker::default(), Vec::new());
        for (number, item) in items.iter().enumerate() {
            packer.add(DeliveryId(number as u64 + 1), item, &mut chunks)?;
        }
        chunks.extend(packer.close());
        tell("packing events", count, started.elapsed());
        let bytes: usize = chunks.iter().map(|chunk| chunk.body.len()).sum();
        let longest = chunks.iter().map(|chunk| chunk.body.len()).max().unwrap_or_default();
        let rows = chunks.len() as f64;
        println!(
            "  {:.1} bytes an event, {:.1} events a row, {:.0} bytes a row, the longest {longest}",
            bytes as f64 / count as f64,
            count as f64 / rows,
            bytes as f64 / rows
        );

        let started = Instant::now();
        let mut found = 0;
        for chunk in &chunks {
            found += event_chunk::unpack(chunk.first, &chunk.body)?.len() as u64;
        }
        tell("unpacking events", found, started.elapsed());
    }

    let outcomes: Vec<Outcome> = (0..count).map(delivered).collect();
    println!("outcomes:");
    let started = Instant::now();
    let mut packer = OutcomePacker::default();
    let mut rows: Vec<_> = outcomes.iter().filter_map(|outcome| packer.add(outcome)).collect();
    rows.extend(packer.close());
    tell("packing outcomes", count, started.elapsed());
    let bytes: usize = rows.iter().map(|row| row.body.len()).sum();
    println!(
        "  {:.1} bytes an outcome, {} an outcome row",
        bytes as f64 / count as f64,
        count / rows.len() as u64
    );
    let started = Instant::now();
    let mut found = 0;
    for row in &rows {
        found += outcome_chunk::unpack(&row.body)?.len() as u64;
    }
    tell("unpacking outcomes", found, started.elapsed());
    Ok(())
}

fn tell(what: &str, count: u64, time: Duration) {
    let each = time.as_secs_f64() / count as f64;
    println!("  {what}: {:.2} µs each, {:.0} a second", each * 1e6, 1.0 / each);
}

fn relation() -> Relation {
    let column = |(number, name): (usize, &str)| Column {
        name: name.to_owned(),
        number: number as i16 + 1,
        type_oid: 25,
        type_name: "text".to_owned(),
        kind: Kind::Text,
        is_key: number == 0,
        heads: Default::default(),
    };
    let columns = ["id", "customer", "email", "created_at", "status", "total", "address", "note"];
    Relation {
        oid: 16_384,
        root_oid: 16_384,
        names: vec![TableName { schema: "public".to_owned(), table: "orders".to_owned() }],
        columns: columns.into_iter().enumerate().map(column).collect(),
        version: 1,
        key: Default::default(),
    }
}

/// An insert of about 289 bytes of JSON.
fn change(number: u64, a_transaction: u64, relation: &Arc<Relation>) -> Item {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let cells = [
        number.to_string(),
        format!("\"Customer {:06}\"", mixed >> 44),
        format!("\"{:012x}@mail.example.com\"", mixed >> 16),
        format!("\"2026-11-20T10:{:02}:{:02}.{:06}Z\"", number / 60 % 60, number % 60, mixed >> 45),
        "\"shipped\"".to_owned(),
        format!("{}.{:02}", mixed >> 50, mixed % 100),
        format!("\"{} Long Street, {:05} Springfield, United States\"", mixed >> 55, mixed >> 48),
        "\"please ring twice, and leave the parcel with the neighbour if nobody opens the door after a while; \
         thank you very much\""
            .to_owned(),
    ];
    let order = number / a_transaction;
    let committed_at = Timestamp(848_484_047_000_000 + order as i64 * 25);
    let transaction = Transaction {
        xid: 700 + order as u32,
        commit_lsn: Lsn(0x16_B374_D848 + order * 400 * a_transaction),
        committed_at,
        fingerprint: Fingerprint::of(1, 700 + order as u32, committed_at),
        origin: None,
    };
    let row: Row = cells.iter().map(|cell| Cell::Json(cell.as_bytes())).collect();
    let event = Event {
        transaction: Arc::new(transaction),
        ordinal: number % a_transaction,
        lsn: Lsn(0x15A_8F00),
        action: Action::Insert,
        annotations: None,
        relation: Arc::clone(relation),
        new: Some(row),
        old: None,
    };
    Item::Change {
        event: Arc::new(event),
        keys: LaneKeys { key: Some(mixed), old: None },
        barrier: false,
        targets: vec![Target { subscription: 1, level: 0 }],
    }
}

fn row_bytes(item: &Item) -> usize {
    match item {
        Item::Change { event, .. } => event.new.as_ref().map_or(0, |row| row.as_bytes().len()),
        _ => 0,
    }
}

fn delivered(number: u64) -> Outcome {
    let committed_at = Timestamp(848_484_047_000_000 + number as i64 * 25);
    Outcome {
        subscription: 1 + (number % 20) as i64,
        id: DeliveryId(1 + number),
        others: Vec::new(),
        event: Event {
            transaction: Arc::new(Transaction {
                xid: number as u32,
                commit_lsn: Lsn(0x16_B374_D848 + number * 400),
                committed_at,
                fingerprint: Fingerprint::of(1, number as u32, committed_at),
                origin: None,
            }),
            ordinal: 0,
            lsn: Lsn(0x15A_8F00),
            action: Action::Insert,
            annotations: None,
            relation: Arc::new(Relation {
                oid: 0,
                root_oid: 0,
                names: Vec::new(),
                columns: Vec::new(),
                version: 1,
                key: Default::default(),
            }),
            new: None,
            old: None,
        }
        .id(),
        other_events: Vec::new(),
        committed_at,
        finished_at: Timestamp(committed_at.0 + 400 + (number % 50) as i64),
        duration: Duration::from_micros(200 + number % 37),
        attempts: 1,
        end: End::Delivered { status: 200 },
        replay: None,
    }
}
