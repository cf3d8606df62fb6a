//! Widemap's wire protocol. [`wire`] is what the build generates; [`session`] and [`jobs`] have the
//! domain types that both sides work with; `convert` is the one place where the two meet.

pub mod artifact;
mod convert;
pub mod jobs;
pub mod session;

/// The generated code: messages, client and server.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod wire {
    tonic::include_proto!("widemap.v1");
}

pub use convert::WireError;

/// The description of the protocol that gRPC reflection serves.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/widemap_descriptor.bin"));

/// The protocol that this build speaks.
pub const VERSION: session::Version = session::Version { major: 1, minor: 0 };
