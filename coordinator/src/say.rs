//! What is said to people and printed for programs. Whoever does not listen any more (a closed pipe,
//! a full disk) is no reason to fail.

use std::io::{Write, stderr, stdout};

/// A line on standard error.
pub(crate) fn line(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// A line of a listing on standard output.
pub(crate) fn result(text: &str) {
    let _ = writeln!(stdout().lock(), "{text}");
}
