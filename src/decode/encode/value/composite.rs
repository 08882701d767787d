//! Composite values as JSON objects, as `composite_to_json` writes them (src/backend/utils/adt/json.c).

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, FormData_pg_attribute, MemoryContext, Oid, TupleDesc};
use pgrx::varlena;

use super::{ValueEncoder, plain};
use crate::event::value as json;
use crate::pg::compat;
use crate::pg::values::encoding::utf8;

/// Encodes composite values. What their fields are, each value's header and the catalog say.
pub(super) struct CompositeEncoder {
    context: MemoryContext,
    shape: Option<Shape>,
}

/// The fields of a composite type, as long as nobody alters it.
struct Shape {
    type_oid: Oid,
    typmod: i32,
    /// Changes whenever the type's definition does (`assign_record_type_identifier`, typcache.c).
    version: u64,
    tupdesc: TupleDesc,
    /// None: dropped.
    fields: Vec<Option<Field>>,
    values: Vec<Datum>,
    nulls: Vec<bool>,
}

struct Field {
    type_oid: Oid,
    /// The name as JSON, with its colon.
    label: Vec<u8>,
    encoder: Option<ValueEncoder>,
}

impl CompositeEncoder {
    pub(super) fn new(context: MemoryContext) -> Self {
        Self { context, shape: None }
    }

    /// Appends the JSON of a composite value.
    ///
    /// # Safety
    /// As [`ValueEncoder::encode`].
    pub(super) unsafe fn encode(&mut self, datum: Datum, out: &mut Vec<u8>) {
        // SAFETY: the datum is a composite, so it begins with a tuple header that names its type; the arrays
        // have an element for each attribute of that type.
        unsafe {
            pg_sys::check_stack_depth();
            let header = plain(datum).cast::<pg_sys::HeapTupleHeaderData>();
            let names = (*header).t_choice.t_datum;
            let context = self.context;
            // Since the minor releases of 2026, a named type has a version there (`htup_details.h`, HeapTupleHeaderGetTypMod).
            let typmod = if names.datum_typeid == pg_sys::RECORDOID { names.datum_typmod } else { -1 };
            let shape = self.shape(names.datum_typeid, typmod);
            let mut tuple = pg_sys::HeapTupleData {
                t_len: varlena::varsize_4b(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            pg_sys::heap_deform_tuple(
                &mut tuple,
                shape.tupdesc,
                shape.values.as_mut_ptr(),
                shape.nulls.as_mut_ptr(),
            );
            let mut separator = b'{';
            for (at, field) in shape.fields.iter_mut().enumerate() {
                let Some(field) = field else { continue };
                out.push(std::mem::replace(&mut separator, b','));
                out.extend_from_slice(&field.label);
                if shape.nulls[at] {
                    out.extend_from_slice(b"null");
                } else {
                    field
                        .encoder
                        .get_or_insert_with(|| ValueEncoder::new(field.type_oid, context))
                        .encode(shape.values[at], out);
                }
            }
            if separator == b'{' {
                out.push(b'{');
            }
            out.push(b'}');
        }
    }

    /// The fields of the type, looked up anew if it was altered.
    fn shape(&mut self, type_oid: Oid, typmod: i32) -> &mut Shape {
        // SAFETY: a look-up in the type cache; it raises if there is no such type.
        let version = unsafe { pg_sys::assign_record_type_identifier(type_oid, typmod) };
        let known = self.shape.take().filter(|shape| {
            let is_same = (shape.type_oid, shape.typmod, shape.version) == (type_oid, typmod, version);
            if !is_same {
                // SAFETY: the copy is the shape's alone, and the shape goes.
                unsafe { pg_sys::FreeTupleDesc(shape.tupdesc) };
            }
            is_same
        });
        self.shape.insert(known.unwrap_or_else(|| Shape::look_up(type_oid, typmod, version, self.context)))
    }
}

/// The fields of a composite type, dropped ones left out; none of `record`, whose values say themselves what they hold.
pub(super) fn fields_of(type_oid: Oid) -> Vec<(String, Oid)> {
    // SAFETY: catalog look-ups; the descriptor is given back, and each attribute is within `natts`.
    unsafe {
        let type_oid = pg_sys::getBaseType(type_oid);
        if type_oid == pg_sys::RECORDOID {
            return Vec::new();
        }
        let tupdesc = pg_sys::lookup_rowtype_tupdesc(type_oid, -1);
        let attributes = (0..(*tupdesc).natts as usize).map(|at| compat::attribute(tupdesc, at));
        let fields = attributes
            .filter(|attribute| !attribute.attisdropped)
            .map(|attribute| (crate::pg::values::encoding::name(&attribute.attname), attribute.atttypid))
            .collect();
        release(tupdesc);
        fields
    }
}

impl Shape {
    fn look_up(type_oid: Oid, typmod: i32, version: u64, context: MemoryContext) -> Self {
        // SAFETY: the copy lives in `context` as long as the encoder; its original is given back. Each attribute
        // is within `natts`.
        unsafe {
            let original = pg_sys::lookup_rowtype_tupdesc(type_oid, typmod);
            let caller = pg_sys::MemoryContextSwitchTo(context);
            let tupdesc = pg_sys::CreateTupleDescCopyConstr(original);
            pg_sys::MemoryContextSwitchTo(caller);
            release(original);
            let count = (*tupdesc).natts as usize;
            let fields = (0..count).map(|at| Field::of(compat::attribute(tupdesc, at))).collect();
            let (values, nulls) = (vec![Datum::null(); count], vec![true; count]);
            Self { type_oid, typmod, version, tupdesc, fields, values, nulls }
        }
    }
}

impl Field {
    fn of(attribute: &FormData_pg_attribute) -> Option<Self> {
        if attribute.attisdropped {
            return None;
        }
        // SAFETY: a `NameData` ends in NUL.
        let name = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) };
        let mut label = Vec::new();
        json::string(&mut label, &utf8(name.to_bytes()));
        label.push(b':');
        Some(Self { type_oid: attribute.atttypid, label, encoder: None })
    }
}

/// `ReleaseTupleDesc`.
///
/// # Safety
/// `tupdesc` is valid, and pinned if it is counted.
unsafe fn release(tupdesc: TupleDesc) {
    // SAFETY: by the contract.
    unsafe {
        if (*tupdesc).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(tupdesc);
        }
    }
}
