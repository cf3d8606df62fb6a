//! One coordinator's connections to its workers: a task for each address dials, greets, carries
//! orders and reports, and dials again after a cut. What it means that a worker is cut, back or
//! dead is the driver's to say.

mod dial;
mod link;
mod observed;
mod outbox;
mod pace;
mod tcp;
mod upload;

pub(crate) use dial::{Dial, DialError, HERE, Line, Trust};
pub(crate) use link::{GOODBYE, Greeting, Link, LinkEvent, LinkId, LinkNews, spawn};
pub use outbox::{Outbox, Recalled, SendBounds, StreamId};
pub use pace::PaceBounds;
