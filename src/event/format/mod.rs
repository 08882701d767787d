//! Payload formats: what a request's body looks like.
