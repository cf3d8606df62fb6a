//! What both sides of Widemap share: ids, time, backoff, limits, timers, framing and the job's
//! specification. There is no policy here: policy is the scheduler's.

pub mod artifact;
pub mod backoff;
pub mod failure;
pub mod framing;
pub mod ids;
pub mod limits;
pub mod memory;
pub mod spec;
pub mod template;
pub mod time;
pub mod units;
pub mod varint;
pub mod wall_clock;
