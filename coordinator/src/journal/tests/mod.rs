//! The journal over a disk of memory that tears, loses and refuses, and over a real one.
