//! The status page over HTTP. It reads the status from `engine`; it changes nothing.

mod connections;
mod routes;

pub(super) use routes::{Current, StatusPage};
