use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::{
    Cell, Column, Event, Fingerprint, KeyKind, Kind, Lsn, Origin, Relation, Row, TableName, Timestamp,
    Transaction,
};
use crate::proptest_config::any_text;

/// Writes what a decoder writes so that the dispatcher reads `item`.
fn write(out: &mut Vec<u8>, item: &Item, reference: u32) {
    match item {
        Item::Begin(transaction) => write_begin(out, transaction),
        Item::Change { event, keys, barrier, targets } => {
            write_relation(out, reference, &event.relation).unwrap();
            write_annotations(out, event.annotations.as_deref()).unwrap();
            let (action, ordinal, lsn) = (event.action, event.ordinal, event.lsn);
            let head = ChangeHead { reference, action, ordinal, lsn, targets };
            let mut frame = begin_change(out, &head);
            for (image, row) in [(Image::New, &event.new), (Image::Old, &event.old)] {
                if let Some(row) = row {
                    let mut builder = frame.row(image);
                    row.cells().for_each(|cell| builder.cell(cell));
                    assert!(frame.cells(image).unwrap().eq(row.cells()));
                }
            }
            frame.finish(*keys, *barrier).unwrap();
        }
        Item::Failed { failure, keys, barrier, targets } => {
            if let Some(relation) = &failure.relation {
                write_relation(out, reference, relation).unwrap();
            }
            let head = FailureHead {
                reference: failure.relation.as_ref().map(|_| reference),
                action: failure.action,
                ordinal: failure.ordinal,
                targets,
                keys: *keys,
                barrier: *barrier,
                sqlstate: &failure.sqlstate,
                message: &failure.message,
            };
            write_failed(out, &head).unwrap();
        }
        Item::Refusal { subscription, reason } => write_refusal(out, *subscription, reason),
        Item::Commit { end_lsn } => write_commit(out, *end_lsn),
        Item::Progress { lsn } => write_progress(out, *lsn),
        Item::Subscription { id, lsn, spec } => {
            write_subscription(out, *id, *lsn, spec.as_deref()).unwrap();
        }
        Item::TableGap(gap) => write_table_gap(out, gap),
        Item::TableGapEnd(end) => write_table_gap_end(out, end),
        Item::ImageBegin { lsn } => write_image_begin(out, *lsn),
        Item::Chunk(chunk) => write_chunk(out, chunk).unwrap(),
        Item::NoChunk { backfill, why } => write_no_chunk(out, *backfill, why),
        Item::ImageEnd { lsn } => write_image_end(out, *lsn),
    }
}

/// Reads a stream that comes in pieces of that length; an error ends it.
fn read(bytes: &[u8], piece: usize) -> Result<Vec<Item>, FrameError> {
    let mut stream = Stream::new();
    let mut items = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        stream.push(piece);
        while let Some(item) = stream.next()? {
            items.push(item);
        }
    }
    Ok(items)
}

fn any_lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn any_action() -> impl Strategy<Value = Action> {
    prop::sample::select(&[
        Action::Insert,
        Action::Update,
        Action::Delete,
        Action::Truncate,
        Action::Ddl,
        Action::Message,
        Action::Read,
    ])
}

/// What a type may be beneath.
pub(crate) fn any_kind() -> impl Strategy<Value = Kind> {
    let leaf = prop::sample::select(vec![
        Kind::Text,
        Kind::Boolean,
        Kind::Number,
        Kind::Numeric,
        Kind::Oid,
        Kind::Bytea,
        Kind::Timestamp,
        Kind::Timestamptz,
        Kind::Json,
        Kind::Hstore,
    ]);
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (inner.clone(), prop_oneof![Just(b','), Just(b';')])
                .prop_map(|(element, delimiter)| Kind::Array { element: Box::new(element), delimiter }),
            // Fields of one type differ in their names.
            prop::collection::btree_map(any_text(8), inner, 0..4)
                .prop_map(|fields| Kind::Composite(fields.into_iter().collect())),
        ]
    })
}

prop_compose! {
    fn any_relation()(
        oid: u32,
        root_oid: u32,
        names in prop::collection::vec((any_text(8), any_text(8)), 1..4),
        columns in prop::collection::vec(
            (any_text(8), any::<i16>(), any::<u32>(), any_text(8), any_kind(), any::<bool>()), 0..6),
        version: u64,
    ) -> Arc<Relation> {
        let names = names.into_iter().map(|(schema, table)| TableName { schema, table }).collect();
        let columns = columns.into_iter().map(|(name, number, type_oid, type_name, kind, is_key)| {
            Column { name, number, type_oid, type_name, kind, is_key, heads: Default::default() }
        }).collect();
        let key = [KeyKind::Logged, KeyKind::Unlogged, KeyKind::WholeRow][version as usize % 3];
        Arc::new(Relation { oid, root_oid, names, columns, key, version })
    }
}

fn any_row(columns: usize) -> impl Strategy<Value = Option<Row>> {
    let cell = prop_oneof![
        Just(None),
        Just(Some(None)),
        any_text(12).prop_map(|text| Some(Some(text))),
        (0usize..3000).prop_map(|length| Some(Some("x".repeat(length)))),
    ];
    prop::option::of(prop::collection::vec(cell, columns).prop_map(|cells| {
        Row::from_iter(cells.iter().map(|cell| match cell {
            None => Cell::Unchanged,
            Some(None) => Cell::Null,
            Some(Some(text)) => Cell::Json(text.as_bytes()),
        }))
    }))
}

prop_compose! {
    fn any_keys()(key: Option<u64>, old: Option<u64>) -> LaneKeys {
        LaneKeys { key, old }
    }
}

fn any_targets(levels: usize) -> impl Strategy<Value = Vec<Target>> {
    let target =
        (any::<i64>(), 0..levels as u8).prop_map(|(subscription, level)| Target { subscription, level });
    prop::collection::vec(target, 0..5)
}

pub(crate) fn any_change(transaction: Arc<Transaction>) -> impl Strategy<Value = Item> {
    any_relation().prop_flat_map(move |relation| {
        let transaction = Arc::clone(&transaction);
        let columns = relation.columns.len();
        let about = (any_action(), any::<u64>(), any_lsn(), any_keys(), any::<bool>());
        let failure = prop::option::of((prop::sample::select(&["22P02", "XX000"]), any_text(20)));
        let annotations = prop::option::of(prop::sample::select(&["{}", "{\"user\":7}"]));
        (about, any_targets(relation.names.len()), any_row(columns), any_row(columns), failure, annotations)
            .prop_map(
                move |((action, ordinal, lsn, keys, barrier), targets, new, old, failure, annotations)| {
                    let transaction = Arc::clone(&transaction);
                    match failure {
                        Some((sqlstate, message)) => {
                            let relation = new.map(|_| Arc::clone(&relation));
                            let failure = Failure {
                                transaction,
                                ordinal,
                                action,
                                relation,
                                sqlstate: sqlstate.into(),
                                message,
                            };
                            Item::Failed { failure: Arc::new(failure), keys, barrier, targets }
                        }
                        None => {
                            let relation = Arc::clone(&relation);
                            let annotations = annotations.map(Arc::from);
                            let event =
                                Event { transaction, ordinal, lsn, action, annotations, relation, new, old };
                            Item::Change { event: Arc::new(event), keys, barrier, targets }
                        }
                    }
                },
            )
    })
}

prop_compose! {
    pub(crate) fn any_transaction()(
        xid: u32,
        lsn in any_lsn(),
        time: i64,
        bits in 0..1u64 << 48,
        origin in prop::option::of((prop::option::of(".{0,20}"), prop::option::of(any_lsn()), any::<Option<i64>>())),
    ) -> Arc<Transaction> {
        let origin = origin.map(|(name, lsn, time)| Arc::new(Origin { name, lsn, committed_at: time.map(Timestamp) }));
        let fingerprint = Fingerprint::from_bits(bits).unwrap();
        Arc::new(Transaction { xid, commit_lsn: lsn, committed_at: Timestamp(time), fingerprint, origin })
    }
}

/// A transaction with its changes, or something from outside of any.
fn any_stretch() -> impl Strategy<Value = Vec<Item>> {
    prop_oneof![
        any_lsn().prop_map(|lsn| vec![Item::Progress { lsn }]),
        any_lsn().prop_map(|lsn| vec![Item::ImageBegin { lsn }]),
        any_lsn().prop_map(|lsn| vec![Item::ImageEnd { lsn }]),
        (any::<i64>(), any_lsn(), prop::option::of(any_text(40)))
            .prop_map(|(id, lsn, spec)| vec![Item::Subscription { id, lsn, spec }]),
        (any::<i64>(), any::<u32>(), any_text(20), any_lsn(), any_text(40), any::<bool>()).prop_map(
            |(subscription, table, name, from, reason, is_enabled)| {
                let gap = TableGap { subscription, table, name, from, reason, is_enabled };
                vec![Item::TableGap(Box::new(gap))]
            }
        ),
        (any::<i64>(), any::<u32>(), any_lsn(), any::<i64>(), any::<bool>()).prop_map(
            |(subscription, table, to, at, is_empty)| {
                let at = Timestamp(at);
                vec![Item::TableGapEnd(TableGapEnd { subscription, table, to, at, is_empty })]
            }
        ),
        any_transaction().prop_flat_map(|transaction| {
            let changes = prop::collection::vec(any_change(Arc::clone(&transaction)), 0..5);
            (changes, any_lsn()).prop_map(move |(changes, end_lsn)| {
                let mut items = vec![Item::Begin(Arc::clone(&transaction))];
                items.extend(changes);
                items.push(Item::Commit { end_lsn });
                items
            })
        }),
    ]
}

fn any_session() -> impl Strategy<Value = Vec<Item>> {
    prop::collection::vec(any_stretch(), 0..5).prop_map(|stretches| stretches.concat())
}

fn written(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, item) in items.iter().enumerate() {
        // Numbers come again: a later version of a relation takes an earlier one's.
        write(&mut out, item, number as u32 % 3);
    }
    out
}

proptest! {
    #![proptest_config(crate::proptest_config::config(200))]

    #[test]
    fn what_the_decoder_tells_is_what_the_dispatcher_reads(items in any_session(), piece in 1usize..300) {
        prop_assert_eq!(read(&written(&items), piece).unwrap(), items);
    }

    #[test]
    fn a_damaged_stream_is_read_or_refused(
        items in any_session(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = written(&items);
        for (place, value) in damage {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
        }
        let _ = read(&bytes, 64);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        frames in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(0u8..6, 0..60)), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        for (place, body) in frames {
            let tags = b"RBACFXEPSMm()";
            bytes.extend_from_slice(&(body.len() as u32 + 1).to_le_bytes());
            bytes.push(tags[place.index(tags.len())]);
            bytes.extend_from_slice(&body);
        }
        bytes.extend_from_slice(&tail);
        let _ = read(&bytes, 7);
    }
}

fn relation(columns: i16) -> Relation {
    let name = TableName { schema: "public".into(), table: "orders".into() };
    let column = |number| Column {
        name: format!("c{number}"),
        number,
        type_oid: 25,
        type_name: "text".into(),
        kind: Kind::Text,
        is_key: number == 1,
        heads: Default::default(),
    };
    Relation {
        oid: 1,
        root_oid: 1,
        names: vec![name],
        columns: (1..=columns).map(column).collect(),
        key: Default::default(),
        version: 1,
    }
}

fn transaction() -> Transaction {
    Transaction {
        xid: 745,
        commit_lsn: Lsn(100),
        committed_at: Timestamp(5),
        fingerprint: Fingerprint::of(1, 745, Timestamp(5)),
        origin: None,
    }
}

fn head(targets: &[Target]) -> ChangeHead<'_> {
    ChangeHead { reference: 0, action: Action::Insert, ordinal: 0, lsn: Lsn(90), targets }
}

#[test]
fn a_change_that_is_not_finished_leaves_nothing_behind() {
    let mut out = Vec::new();
    write_progress(&mut out, Lsn(1));
    let before = out.clone();
    let mut frame = begin_change(&mut out, &head(&[]));
    frame.row(Image::New).begin_json().extend_from_slice(b"half a val");
    drop(frame);
    assert_eq!(out, before);
}

#[test]
fn keys_may_be_made_from_the_cells_just_written() {
    let mut out = Vec::new();
    let mut frame = begin_change(&mut out, &head(&[]));
    let mut row = frame.row(Image::Old);
    row.cell(Cell::Json(b"7"));
    row.null();
    assert_eq!(frame.cells(Image::Old).unwrap().collect::<Vec<_>>(), [Cell::Json(b"7"), Cell::Null]);
    assert!(frame.cells(Image::New).is_none());
}

#[test]
fn memory_of_a_large_frame_is_given_back() {
    let value = vec![b'x'; 8 << 20];
    let mut out = Vec::new();
    write_relation(&mut out, 0, &relation(1)).unwrap();
    write_begin(&mut out, &transaction());
    let mut frame = begin_change(&mut out, &head(&[]));
    frame.row(Image::New).cell(Cell::Json(&value));
    frame.finish(LaneKeys::default(), false).unwrap();

    let mut stream = Stream::new();
    for piece in out.chunks(64 << 10) {
        stream.push(piece);
    }
    assert!(matches!(stream.next(), Ok(Some(Item::Begin(_)))));
    assert!(matches!(stream.next(), Ok(Some(Item::Change { .. }))));
    assert!(stream.memory() > 8 << 20);
    assert_eq!(stream.next(), Ok(None));
    assert!(stream.memory() <= 256 << 10, "{} bytes", stream.memory());
}

#[test]
fn a_claim_of_many_members_takes_no_memory() {
    for claim in [u32::MAX, 1 << 29] {
        let mut stream = Stream::new();
        let mut body = vec![tag::RELATION];
        body.extend_from_slice(&[0; 12]);
        body.extend_from_slice(&claim.to_le_bytes());
        stream.push(&(body.len() as u32).to_le_bytes());
        stream.push(&body);
        assert_eq!(stream.next(), Err(FrameError::Truncated));
    }
    let mut stream = Stream::new();
    stream.push(&u32::MAX.to_le_bytes());
    assert_eq!(stream.next(), Err(FrameError::TooLong(u32::MAX as usize)));
}

#[test]
fn frames_out_of_place_are_refused() {
    let stream = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        read(&out, 1000).unwrap_err()
    };
    let change = |out: &mut Vec<u8>, targets: &[Target], cells: &[Cell<'_>]| {
        let mut frame = begin_change(out, &head(targets));
        let mut row = frame.row(Image::New);
        cells.iter().for_each(|cell| row.cell(*cell));
        frame.finish(LaneKeys::default(), false).unwrap();
    };
    let opening = |out: &mut Vec<u8>| {
        write_relation(out, 0, &relation(1)).unwrap();
        write_begin(out, &transaction());
    };

    assert_eq!(stream(&|out| write_commit(out, Lsn(1))), FrameError::NoTransaction);
    assert_eq!(stream(&|out| change(out, &[], &[])), FrameError::NoTransaction);
    assert_eq!(
        stream(&|out| (0..2).for_each(|_| write_begin(out, &transaction()))),
        FrameError::OpenTransaction
    );
    let unknown = |out: &mut Vec<u8>| {
        write_begin(out, &transaction());
        change(out, &[], &[]);
    };
    assert_eq!(stream(&unknown), FrameError::UnknownReference(0));
    let narrow = |out: &mut Vec<u8>| {
        opening(out);
        change(out, &[], &[]);
    };
    assert_eq!(stream(&narrow), FrameError::Row(RowError::Columns { expected: 1, found: 0 }));
    let level = |out: &mut Vec<u8>| {
        opening(out);
        change(out, &[Target { subscription: 1, level: 1 }], &[Cell::Null]);
    };
    assert_eq!(stream(&level), FrameError::Invalid("level"));
}
