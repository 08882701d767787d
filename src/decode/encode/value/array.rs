//! Arrays as nested JSON arrays, as `array_to_json_internal` writes them (src/backend/utils/adt/json.c).

use std::ffi::c_char;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, ArrayType, Datum, MemoryContext, Oid};

use super::{ValueEncoder, plain};

/// Encodes arrays. What their elements are, each array says itself.
pub(super) struct ArrayEncoder {
    context: MemoryContext,
    element: Option<Box<Element>>,
}

struct Element {
    type_oid: Oid,
    length: i16,
    by_value: bool,
    align: c_char,
    encoder: ValueEncoder,
}

/// Whether the type's values are arrays.
pub(super) fn is_array(type_oid: Oid) -> bool {
    matches!(type_oid, pg_sys::ANYARRAYOID | pg_sys::ANYCOMPATIBLEARRAYOID | pg_sys::RECORDARRAYOID)
        // SAFETY: a catalog look-up.
        || unsafe { pg_sys::get_element_type(type_oid) } != Oid::INVALID
}

impl ArrayEncoder {
    pub(super) fn new(context: MemoryContext) -> Self {
        Self { context, element: None }
    }

    /// Appends the JSON of an array.
    ///
    /// # Safety
    /// As [`ValueEncoder::encode`].
    pub(super) unsafe fn encode(&mut self, datum: Datum, out: &mut Vec<u8>) {
        // SAFETY: the datum is an array, so the dimensions follow its header; deconstruct_array returns as many
        // palloc'd values and null flags as it says.
        unsafe {
            let array = plain(datum).cast::<ArrayType>();
            let lengths = std::slice::from_raw_parts(array.add(1).cast::<i32>(), (*array).ndim as usize);
            if lengths.is_empty() || lengths.contains(&0) {
                return out.extend_from_slice(b"[]");
            }
            let element = self.element((*array).elemtype);
            let (mut values, mut nulls, mut count) = (null_mut(), null_mut(), 0);
            pg_sys::deconstruct_array(
                array,
                element.type_oid,
                element.length.into(),
                element.by_value,
                element.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            let values = std::slice::from_raw_parts(values, count as usize);
            let nulls = std::slice::from_raw_parts(nulls, count as usize);
            let mut items = values.iter().copied().zip(nulls.iter().copied());
            dimension(lengths, &mut items, &mut element.encoder, out);
        }
    }

    fn element(&mut self, type_oid: Oid) -> &mut Element {
        let known = self.element.take().filter(|element| element.type_oid == type_oid);
        self.element.insert(known.unwrap_or_else(|| Box::new(Element::look_up(type_oid, self.context))))
    }
}

impl Element {
    fn look_up(type_oid: Oid, context: MemoryContext) -> Self {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: a catalog look-up that writes where it is told.
        unsafe { pg_sys::get_typlenbyvalalign(type_oid, &mut length, &mut by_value, &mut align) };
        Self { type_oid, length, by_value, align, encoder: ValueEncoder::new(type_oid, context) }
    }
}

/// Appends one dimension of an array, the elements of the last one in row-major order.
///
/// # Safety
/// The items are values of the encoder's type.
unsafe fn dimension(
    lengths: &[i32],
    items: &mut impl Iterator<Item = (Datum, bool)>,
    encoder: &mut ValueEncoder,
    out: &mut Vec<u8>,
) {
    let Some((&length, inner)) = lengths.split_first() else {
        return match items.next() {
            // SAFETY: by the contract.
            Some((datum, false)) => unsafe { encoder.encode(datum, out) },
            _ => out.extend_from_slice(b"null"),
        };
    };
    for at in 0..length {
        out.push(if at == 0 { b'[' } else { b',' });
        // SAFETY: by the contract.
        unsafe { dimension(inner, items, encoder, out) };
    }
    out.push(b']');
}
