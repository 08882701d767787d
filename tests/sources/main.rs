//! The sources themselves: what they depend on, and that each refusal in them has a test. No server is needed.

mod dependencies;
mod layering;
mod refusals;
