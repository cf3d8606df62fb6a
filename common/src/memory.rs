//! What is done once, at the start of a program, about its memory.

use std::hint::black_box;

/// No block that is used again and again is longer: a part of payload with what the wire adds to it, or a
/// block of input that is being read.
const BLOCK_BYTES: usize = 8 * 1024 * 1024;

/// Has the allocator keep blocks that are freed for those that are wanted next, up to twice 8 MiB, instead of
/// giving each back to the system, which then clears its pages anew.
///
/// The GNU C library learns from the blocks of its own mappings that are freed ("dynamic mmap threshold", the
/// notes of `mallopt(3)` on `M_MMAP_THRESHOLD`), and what is freed here is one, never touched. Other
/// allocators take no notice.
pub fn keep_freed_blocks() {
    drop(black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
}
