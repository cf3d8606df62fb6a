//! Who belongs to a cluster, and where its members are: what both sides of a connection share beside
//! the session itself.
//!
//! A crate of its own beside `widemap-common`, so that the scheduler, which needs that one, does not
//! depend on TLS, mDNS or a configuration file.

mod authority;
pub mod bundle;
mod cluster_id;
pub mod config;
mod identity;
pub mod interfaces;
pub mod key;

pub mod harden;
pub mod manager;
pub mod manual;
pub mod mdns;
pub mod record;
mod role;
mod tls;

pub use authority::MintError;
pub use cluster_id::{ClusterId, ClusterIdError};
pub use identity::{Identity, IdentityError, Source, Wanted};
pub use role::Role;
pub use tls::Distrust;
