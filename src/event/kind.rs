//! What a type is beneath its name: as much as tells how the text of its values follows from their JSON.

/// How Postgres' own text of a value follows from the value's JSON. A domain is as the type beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The content of the JSON string is the text.
    #[default]
    Text,
    /// `t` and `f`.
    Boolean,
    /// An integer or a float.
    Number,
    /// A `numeric`.
    Numeric,
    /// A number that `to_json` puts into quotes (`oid`).
    Oid,
    /// Hexadecimal digits behind `\x`.
    Bytea,
    /// A blank where ISO 8601 has a `T`.
    Timestamp,
    /// The same, with a shorter zone.
    Timestamptz,
    /// The JSON is the text (`json`, `jsonb`).
    Json,
    /// Pairs of texts (`hstore`).
    Hstore,
    /// An array of any shape.
    Array {
        /// Its elements'.
        element: Box<Kind>,
        /// What stands between them: a comma, but for the type `box`.
        delimiter: u8,
    },
    /// A composite type: its fields by name. A field that is not listed is of a type that is not known.
    Composite(Vec<(String, Kind)>),
}

impl Kind {
    /// An array of these with commas in between.
    pub fn array(element: Kind) -> Kind {
        Kind::Array { element: Box::new(element), delimiter: b',' }
    }

    /// Of the field of that name.
    pub(super) fn field<'a>(fields: &'a [(String, Kind)], name: &str) -> &'a Kind {
        const UNKNOWN: &Kind = &Kind::Text;
        fields.iter().find(|(field, _)| field == name).map_or(UNKNOWN, |(_, kind)| kind)
    }
}
