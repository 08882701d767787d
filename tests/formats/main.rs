//! The form of an event: values of every type, encodings, payload formats, transforms.

mod encodings;
mod large_values;
mod payloads;
mod transforms;
mod types;
mod unrenderable_values;
