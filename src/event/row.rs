//! A row as one run of bytes, laid out in memory as it travels: built once, copied once, then only read.
//!
//! One cell follows the other, in the order of the relation's columns. A cell is a tag byte, and behind the tag
//! of a JSON value its length (four bytes, little-endian) and its text.

use std::fmt;

/// One column of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// Write-ahead log does not have it.
    Absent,
    /// SQL's NULL.
    Null,
    /// A large value that the change left as it was, which write-ahead log therefore does not repeat.
    Unchanged,
    /// The value as JSON text, in UTF-8.
    Json(&'a [u8]),
    /// A value that is there but too large to be sent (`pgwh.max_event_size`).
    Omitted,
}

impl Cell<'_> {
    /// Whether the value is known, NULL included.
    pub fn is_known(&self) -> bool {
        matches!(self, Cell::Null | Cell::Json(_))
    }
}

const ABSENT: u8 = 0;
const NULL: u8 = 1;
const UNCHANGED: u8 = 2;
const JSON: u8 = 3;
const OMITTED: u8 = 4;

const LENGTH_BYTES: usize = size_of::<u32>();

/// The values of a row, one cell for each column of its relation.
#[derive(Clone, PartialEq, Eq)]
pub struct Row(Box<[u8]>);

impl Row {
    /// Takes over a row of so many columns from outside, after a look at every cell.
    ///
    /// That a value is UTF-8 is checked, that it is JSON is not.
    ///
    /// # Errors
    ///
    /// When the bytes are not cells, or not that many.
    pub fn parse(bytes: &[u8], columns: usize) -> Result<Self, RowError> {
        let mut rest = bytes;
        let mut count = 0;
        while let Some((cell, behind)) = split_cell(rest)? {
            if let Cell::Json(text) = cell {
                std::str::from_utf8(text).map_err(|_| RowError::NotUtf8)?;
            }
            rest = behind;
            count += 1;
        }
        if count != columns {
            return Err(RowError::Columns { expected: columns, found: count });
        }
        Ok(Row(bytes.into()))
    }

    /// The cells, in the order of the relation's columns.
    pub fn cells(&self) -> Cells<'_> {
        Cells { rest: &self.0 }
    }

    /// The row as it travels and is stored; [`Row::parse`] reads it back.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Values of users' rows belong in no log, so only the size is told.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} cells, {} bytes)", self.cells().count(), self.0.len())
    }
}

impl<'a> FromIterator<Cell<'a>> for Row {
    fn from_iter<I: IntoIterator<Item = Cell<'a>>>(cells: I) -> Self {
        let mut bytes = Vec::new();
        let mut row = RowBuilder::new(&mut bytes);
        cells.into_iter().for_each(|cell| row.cell(cell));
        Row(bytes.into())
    }
}

/// The cells of a row, one after the other.
#[derive(Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Cells<'a> {
    /// The cells of a row that has just been built into `bytes`; ends at the first that is none.
    pub(crate) fn built(bytes: &'a [u8]) -> Self {
        Cells { rest: bytes }
    }

    /// The bytes that the cells take which have not been read yet.
    pub fn size(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        // Looked at when the row was taken over.
        let (cell, rest) = split_cell(self.rest).ok()??;
        self.rest = rest;
        Some(cell)
    }
}

/// The first cell and what follows it; none when nothing is left.
fn split_cell(bytes: &[u8]) -> Result<Option<(Cell<'_>, &[u8])>, RowError> {
    let Some((tag, rest)) = bytes.split_first() else { return Ok(None) };
    let (cell, rest) = match *tag {
        ABSENT => (Cell::Absent, rest),
        NULL => (Cell::Null, rest),
        UNCHANGED => (Cell::Unchanged, rest),
        JSON => {
            let (length, rest) = rest.split_first_chunk().ok_or(RowError::Truncated)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (text, rest) = rest.split_at_checked(length).ok_or(RowError::Truncated)?;
            (Cell::Json(text), rest)
        }
        OMITTED => (Cell::Omitted, rest),
        other => return Err(RowError::Tag(other)),
    };
    Ok(Some((cell, rest)))
}

/// Writes a row's cells behind what a buffer already holds, each value straight into its place.
pub struct RowBuilder<'a> {
    out: &'a mut Vec<u8>,
    /// Where the text of the JSON value under way begins.
    text: usize,
}

impl<'a> RowBuilder<'a> {
    /// Begins a row at the end of `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        let text = out.len();
        RowBuilder { out, text }
    }

    /// A column that write-ahead log does not have.
    pub fn absent(&mut self) {
        self.out.push(ABSENT);
    }

    /// A column that is NULL.
    pub fn null(&mut self) {
        self.out.push(NULL);
    }

    /// A large value that the change did not touch.
    pub fn unchanged(&mut self) {
        self.out.push(UNCHANGED);
    }

    /// A value too large to be sent.
    pub fn omitted(&mut self) {
        self.out.push(OMITTED);
    }

    /// Takes back the value begun last, whose end has not been told yet, and leaves it out as too large.
    pub fn omit_json(&mut self) {
        self.out.truncate(self.text - LENGTH_BYTES - 1);
        self.omitted();
    }

    /// Begins a value and gives the buffer to append its JSON text to; [`RowBuilder::end_json`] ends it.
    /// What is in the buffer already must stay as it is.
    pub fn begin_json(&mut self) -> &mut Vec<u8> {
        self.out.push(JSON);
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        self.text = self.out.len();
        self.out
    }

    /// Ends the value begun last. (A length past four bytes is cut off: the frame around it refuses it anyway.)
    pub fn end_json(&mut self) {
        let length = (self.out.len() - self.text) as u32;
        self.out[self.text - LENGTH_BYTES..self.text].copy_from_slice(&length.to_le_bytes());
    }

    /// A cell whose value exists already.
    pub fn cell(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Absent => self.absent(),
            Cell::Null => self.null(),
            Cell::Unchanged => self.unchanged(),
            Cell::Omitted => self.omitted(),
            Cell::Json(text) => {
                self.begin_json().extend_from_slice(text);
                self.end_json();
            }
        }
    }
}

/// Why bytes are no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowError {
    /// A cell begins with a byte that is no tag.
    Tag(u8),
    /// The last cell is longer than what is there.
    Truncated,
    /// A value is not UTF-8.
    NotUtf8,
    /// There are more or fewer cells than the relation has columns.
    Columns {
        /// The relation's columns.
        expected: usize,
        /// The row's cells.
        found: usize,
    },
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowError::Tag(tag) => write!(f, "no cell of a row begins with {tag}"),
            RowError::Truncated => f.write_str("the last cell of the row is cut off"),
            RowError::NotUtf8 => f.write_str("a value of the row is not UTF-8"),
            RowError::Columns { expected, found } => {
                write!(f, "the row has {found} cells, its relation {expected} columns")
            }
        }
    }
}

impl std::error::Error for RowError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_encoded_in_place() {
        let mut out = b"before".to_vec();
        let mut row = RowBuilder::new(&mut out);
        row.null();
        row.begin_json().extend_from_slice(b"42");
        row.end_json();
        row.absent();
        row.begin_json();
        row.end_json();
        row.unchanged();
        row.begin_json().extend_from_slice(b"too large");
        row.omit_json();
        assert_eq!(out, b"before\x01\x03\x02\0\0\x0042\0\x03\0\0\0\0\x02\x04");

        let row = Row::parse(&out[6..], 6).unwrap();
        let cells: Vec<_> = row.cells().collect();
        let expected =
            [Cell::Null, Cell::Json(b"42"), Cell::Absent, Cell::Json(b""), Cell::Unchanged, Cell::Omitted];
        assert_eq!(cells, expected);
    }

    #[test]
    fn bytes_that_are_no_row_are_refused() {
        assert_eq!(Row::parse(b"\x01\x05", 2), Err(RowError::Tag(5)));
        assert_eq!(Row::parse(b"\x03\x01\0", 1), Err(RowError::Truncated));
        assert_eq!(Row::parse(b"\x03\x02\0\0\0x", 1), Err(RowError::Truncated));
        assert_eq!(Row::parse(b"\x03\xff\xff\xff\xffx", 1), Err(RowError::Truncated));
        assert_eq!(Row::parse(b"\x03\x01\0\0\0\xff", 1), Err(RowError::NotUtf8));
        assert_eq!(Row::parse(b"\x01", 2), Err(RowError::Columns { expected: 2, found: 1 }));
        assert_eq!(Row::parse(b"\x01", 0), Err(RowError::Columns { expected: 0, found: 1 }));
    }

    #[test]
    fn logging_a_row_shows_none_of_its_values() {
        let row = Row::from_iter([Cell::Json(b"\"secret\""), Cell::Null]);
        assert_eq!(format!("{row:?}"), "Row(2 cells, 14 bytes)");
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn a_row_travels_unchanged(values in prop::collection::vec(prop_oneof![
            Just(None), Just(Some(None)), ".{0,20}".prop_map(|text| Some(Some(text)))
        ], 0..20)) {
            let cells: Vec<_> = values.iter().map(|value| match value {
                None => Cell::Absent,
                Some(None) => Cell::Unchanged,
                Some(Some(text)) => Cell::Json(text.as_bytes()),
            }).collect();
            let row = Row::from_iter(cells.iter().copied());
            prop_assert_eq!(row.cells().collect::<Vec<_>>(), cells);
            prop_assert_eq!(Row::parse(row.as_bytes(), values.len()), Ok(row));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..64)) {
            if let Ok(row) = Row::parse(&bytes, bytes.len() / 2) {
                prop_assert_eq!(row.cells().count(), bytes.len() / 2);
            }
        }
    }
}
