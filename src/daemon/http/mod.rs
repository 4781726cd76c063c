//! The status page over HTTP. It reads the status from `engine`; it changes nothing.

mod limits;
mod routes;

pub(super) use routes::{Current, StatusPage};
