//! Results as frames, for a program that reads them (`--frames`): the length of what follows (4 bytes, little
//! endian), the item's number from 0 (8 bytes), whether it has failed (1 byte), then the result, or how it failed
//! as a JSON object.

use super::format::{ResultShape, Shape, without_framing};
use super::report::Results;

/// What comes behind the length and before the result.
const HEAD_BYTES: usize = 9;

/// Appends a frame for each result. `output` is theirs alone, in order.
pub(super) fn push_results(out: &mut Vec<u8>, shape: Shape, results: &Results, output: &[u8]) {
    let heads = results.range.items as usize * (4 + HEAD_BYTES);
    out.reserve(heads + output.len());
    let mut rest = output;
    for number in results.range.first..results.range.end() {
        let length = match shape.results {
            ResultShape::Framed(framing) => framing.offset_of(rest, 1),
            // Each is an attempt of its own.
            ResultShape::Printed | ResultShape::Json => rest.len(),
        };
        let (own, others) = rest.split_at(length);
        rest = others;
        push(out, number, false, |out| out.extend_from_slice(without_framing(shape.results, own)));
    }
}

/// Appends the frame of a failed item; `how` appends how it failed.
pub(super) fn push_failure(out: &mut Vec<u8>, number: u64, how: impl FnOnce(&mut Vec<u8>)) {
    push(out, number, true, how);
}

fn push(out: &mut Vec<u8>, number: u64, has_failed: bool, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&number.to_le_bytes());
    out.push(u8::from(has_failed));
    body(out);
    let length = u32::try_from(out.len() - begin - 4).expect("a result is bounded far below 4 GiB");
    out[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
}
