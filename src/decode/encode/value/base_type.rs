//! What types are beneath, for those who make text of their values' JSON.

use pgrx::pg_sys::{self, MemoryContext, Oid};

use super::composite::fields_of;
use super::{Kind as Encoding, ValueEncoder};
use crate::event::Kind;
use crate::pg::subtransaction::in_subtransaction;

/// What a type is beneath. Of one that cannot be looked up nothing is known; its values cannot be encoded either.
pub(crate) fn kind_of(type_oid: Oid) -> Kind {
    // SAFETY: the context is made for the look-up alone and deleted behind it.
    unsafe {
        let context = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"pgwh kind".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as _,
            pg_sys::ALLOCSET_SMALL_INITSIZE as _,
            pg_sys::ALLOCSET_SMALL_MAXSIZE as _,
        );
        let look_up = || ValueEncoder::new(type_oid, context).kind(type_oid, context);
        let kind = if type_oid.to_u32() < pg_sys::FirstNormalObjectId {
            look_up()
        } else {
            in_subtransaction(context, look_up).unwrap_or(Kind::Text)
        };
        pg_sys::MemoryContextDelete(context);
        kind
    }
}

impl ValueEncoder {
    /// What the type that the encoder was made for is beneath. Conditions as of [`ValueEncoder::new`].
    fn kind(&self, type_oid: Oid, context: MemoryContext) -> Kind {
        let kind_of = |type_oid| ValueEncoder::new(type_oid, context).kind(type_oid, context);
        match &self.0 {
            Encoding::Bool => Kind::Boolean,
            Encoding::Int2 | Encoding::Int4 | Encoding::Int8 | Encoding::Float4 | Encoding::Float8 => {
                Kind::Number
            }
            Encoding::Numeric => Kind::Numeric,
            Encoding::Oid => Kind::Oid,
            Encoding::Bytea => Kind::Bytea,
            Encoding::Timestamp => Kind::Timestamp,
            Encoding::Timestamptz => Kind::Timestamptz,
            Encoding::Json | Encoding::Verbatim(_) => Kind::Json,
            Encoding::Hstore(_) => Kind::Hstore,
            Encoding::Array(_) => {
                let element = element_of(type_oid);
                Kind::Array {
                    element: Box::new(element.map_or(Kind::Text, kind_of)),
                    delimiter: element.map_or(b',', delimiter_of),
                }
            }
            Encoding::Composite(_) => Kind::Composite(
                fields_of(type_oid).into_iter().map(|(name, type_oid)| (name, kind_of(type_oid))).collect(),
            ),
            Encoding::Date
            | Encoding::Time
            | Encoding::Uuid
            | Encoding::Text
            | Encoding::Name
            | Encoding::Quoted(_) => Kind::Text,
        }
    }
}

/// The type of an array's elements; none of a pseudo-type, whose values say themselves what they hold.
fn element_of(type_oid: Oid) -> Option<Oid> {
    // SAFETY: catalog look-ups.
    let element = unsafe { pg_sys::get_element_type(pg_sys::getBaseType(type_oid)) };
    (element != Oid::INVALID).then_some(element)
}

/// What stands between the elements of an array of this type (`typdelim`).
fn delimiter_of(type_oid: Oid) -> u8 {
    let (mut length, mut by_value, mut align, mut delimiter) = (0, false, 0, 0);
    let (mut parameter, mut function) = (Oid::INVALID, Oid::INVALID);
    // SAFETY: a catalog look-up that writes where it is told.
    unsafe {
        pg_sys::get_type_io_data(
            type_oid,
            pg_sys::IOFuncSelector::IOFunc_output,
            &mut length,
            &mut by_value,
            &mut align,
            &mut delimiter,
            &mut parameter,
            &mut function,
        );
    }
    delimiter as u8
}
