//! Access, disclosure, signatures and TLS.

mod access;
mod disclosure;
mod grants;
mod https;
mod injection;
mod network;
mod ownership;
mod roles;
mod secrets;
mod select_privilege;
mod signatures;
