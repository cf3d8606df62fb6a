//! What every server of Widemap is reached through, a worker's and a coordinator's: the [`Door`], where
//! connections are proved before they count; and the [`Gate`], which each call passes before it reaches
//! a service.
//!
//! A crate of its own, as the worker and the coordinator know nothing of each other, and both are
//! reached by strangers.

mod door;
mod layers;
mod peer;
mod server;

pub use door::{Connection, Door};
pub use layers::{Layers, LimitLayer, RoleLayer, TraceLayer};
pub use peer::Peer;
pub use server::{Gate, Host};
