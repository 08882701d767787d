//! Access, disclosure, signatures and TLS.

mod access;
mod attacks;
mod disclosure;
mod https;
mod signatures;
