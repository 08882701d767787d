//! What the same change costs in one format more.
//!
//! The first format's cost is that of decoding a row of twelve columns, of making JSON of its values and of the frame that
//! brings them to the dispatcher (the decoder's processor time, on a server), of reading that frame, and of the body. The
//! second's is that of another body. Told apart is what a purist would count: values, frame and body without the log.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use pgstream_hooks::event::format::{Format, RenderContext, Shown, Source};
use pgstream_hooks::event::value::{self, numeric, time};
use pgstream_hooks::event::{
    Action, Column, Event, Fingerprint, Kind, Lsn, Relation, RowBuilder, TableName, Timestamp, Transaction,
};
use pgstream_hooks::ipc::frame::{
    ChangeHead, Image, Item, LaneKeys, Stream, Target, begin_change, write_begin, write_relation,
};

const ROUNDS: u32 = 1_000;
const TIMES: u32 = 1_000;

const COLUMNS: [(&str, &str, Kind); 12] = [
    ("id", "bigint", Kind::Number),
    ("customer", "text", Kind::Text),
    ("email", "text", Kind::Text),
    ("status", "text", Kind::Text),
    ("quantity", "integer", Kind::Number),
    ("total", "numeric(10,2)", Kind::Numeric),
    ("paid", "boolean", Kind::Boolean),
    ("token", "uuid", Kind::Text),
    ("day", "date", Kind::Text),
    ("created_at", "timestamp with time zone", Kind::Timestamptz),
    ("data", "jsonb", Kind::Json),
    ("note", "text", Kind::Text),
];

/// Makes JSON of the values as they are stored, as the decoder does.
fn encode(row: &mut RowBuilder<'_>) {
    // The 16-bit words of 99.90: its scale, and its digits to the base of ten thousand.
    const TOTAL: [u8; 6] = [0x00, 0x81, 99, 0, 0x28, 0x23];
    let mut cell = |write: &dyn Fn(&mut Vec<u8>)| {
        write(row.begin_json());
        row.end_json();
    };
    let number = |number: i64| {
        move |out: &mut Vec<u8>| out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes())
    };
    cell(&number(9_007_199_254_740_993));
    cell(&|out| value::string(out, "Customer 004711"));
    cell(&|out| value::string(out, "4711@mail.example.com"));
    cell(&|out| value::string(out, "shipped"));
    cell(&number(12));
    cell(&|out| numeric::numeric(out, &TOTAL).unwrap_or_default());
    cell(&|out| out.extend_from_slice(b"true"));
    cell(&|out| value::uuid(out, &[0xA0; 16]));
    cell(&|out| time::date(out, 9_820));
    cell(&|out| time::timestamptz(out, 848_484_047_406_957));
    cell(&|out| out.extend_from_slice(br#"{"source": "web", "items": [1, 2, 3]}"#));
    cell(&|out| value::string(out, "please ring twice, and leave the parcel with the neighbour"));
}

/// Writes the frame of a change, as the decoder does.
fn write(out: &mut Vec<u8>) {
    let targets = &[Target { subscription: 1, level: 0 }];
    let head = ChangeHead { reference: 0, action: Action::Insert, ordinal: 3, lsn: Lsn(0x15A_8EA0), targets };
    let mut frame = begin_change(out, &head);
    encode(&mut frame.row(Image::New));
    // A small frame is not too long.
    let _ = frame.finish(LaneKeys { key: Some(1), old: None }, false);
}

/// The dispatcher's end, which has been told of the transaction and of the table.
fn stream() -> Stream {
    let column = |(number, (name, type_name, kind)): (i16, (&str, &str, Kind))| Column {
        name: name.to_owned(),
        number,
        type_oid: 0,
        type_name: type_name.to_owned(),
        kind,
        is_key: number == 1,
        heads: Default::default(),
    };
    let relation = Relation {
        oid: 16_385,
        root_oid: 16_385,
        names: vec![TableName { schema: "public".to_owned(), table: "orders".to_owned() }],
        columns: (1..).zip(COLUMNS).map(column).collect(),
        version: 1,
        key: Default::default(),
    };
    let committed_at = Timestamp(848_484_047_406_957);
    let mut begin = Vec::new();
    write_begin(
        &mut begin,
        &Transaction {
            xid: 745,
            commit_lsn: Lsn(0x15A_8F50),
            committed_at,
            fingerprint: Fingerprint::of(7, 745, committed_at),
            origin: None,
        },
    );
    // A small frame is not too long.
    let _ = write_relation(&mut begin, 0, &relation);
    let mut stream = Stream::new();
    stream.push(&begin);
    let _ = stream.next();
    stream
}

/// The next change that the stream has.
fn read(stream: &mut Stream) -> Option<Arc<Event>> {
    match stream.next() {
        Ok(Some(Item::Change { event, .. })) => Some(event),
        _ => None,
    }
}

/// Nanoseconds a call, in the round that was disturbed least by whatever else the machine does.
fn timed(mut call: impl FnMut(&mut Vec<u8>)) -> f64 {
    let mut out = Vec::with_capacity(4096);
    let mut round = || {
        let begin = Instant::now();
        for _ in 0..TIMES {
            out.clear();
            call(black_box(&mut out));
            black_box(&out);
        }
        begin.elapsed()
    };
    let shortest = (0..ROUNDS).map(|_| round()).min().unwrap_or_default();
    shortest.as_nanos() as f64 / f64::from(TIMES)
}

pub(crate) fn run(rows: u64) {
    let (_, (), decoded) = crate::encode::decode(rows, |_| ());
    let decoding = decoded.decoding.as_nanos() as f64 / rows as f64;
    let mut stream = stream();
    let mut frame = Vec::new();
    write(&mut frame);
    let written = timed(write);
    let taken = timed(|_| {
        stream.push(&frame);
        black_box(read(&mut stream));
    });
    stream.push(&frame);
    let Some(event) = read(&mut stream) else { return println!("formats: the change cannot be read") };
    let source = Source { database: "shop".to_owned(), host: "db1".to_owned(), installation: 1 };
    let context =
        RenderContext { source: &source, subscription_id: 1, subscription: "bench", columns: &Shown::All };
    let bodies =
        Format::ALL.map(|format| timed(|out| format.render_one(out, black_box(&event), 0, &context)));
    println!(
        "formats: a row of 12 columns decoded in {decoding:.0} ns, of these {written:.0} ns for values and frame; frame read in {taken:.0} ns"
    );
    let (whole, without_log) = (decoding + taken + bodies[0], written + taken + bodies[0]);
    for (format, body) in Format::ALL.into_iter().zip(bodies) {
        let shares = [body / whole, body / without_log];
        println!(
            "    {:>11}: {body:.0} ns, {:.2} of all that pgwh takes, {:.2} without the log",
            format.word(),
            shares[0],
            shares[1]
        );
    }
}
