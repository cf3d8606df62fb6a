//! What a worker says of itself when it announces itself.
