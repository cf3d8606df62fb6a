//! Unary calls to a worker: what they all pass on their way to the channel.

mod deadline;
mod retry;
