//! Who belongs to a cluster, and where its members are: what both sides of a connection share beside
//! the session itself.
//!
//! A crate of its own beside `widemap-common`, so that the scheduler, which needs that one, does not
//! depend on TLS, mDNS or a configuration file.

mod cluster_id;
pub mod mdns;
pub mod record;

pub use cluster_id::{ClusterId, ClusterIdError};
