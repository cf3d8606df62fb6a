//! Placeholders in a line of a shell: what an item is never means anything to the shell, wherever in the line
//! the placeholder stands.
//!
//! The shell gets what placeholders stand for as its parameters, keeps them in variables, and the line refers
//! to those: in double quotes where it stands by itself, without where it is in such quotes already.

use super::reader::{Place, Quotes, Reader};
use super::{Piece, Template};

/// A line for a shell in which a placeholder cannot be filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a placeholder stands in a here-document whose end is quoted, where a shell puts nothing in"
)]
pub struct QuotedHereDocument;

/// Where each placeholder of a line stands.
pub(super) fn places(pieces: &[Piece]) -> Vec<Place> {
    let mut reader = Reader::new();
    let mut places = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Literal(text) => reader.read(text),
            Piece::Placeholder(_) => places.push(reader.placeholder()),
        }
    }
    places
}

/// The line that a shell is to run, and its parameters.
///
/// # Errors
/// If a placeholder stands where a shell puts nothing in.
pub(super) fn line(pieces: &[Piece]) -> Result<(Vec<u8>, Vec<Template>), QuotedHereDocument> {
    let mut places = places(pieces).into_iter();
    let (mut line, mut parameters) = (Vec::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Literal(text) => line.extend_from_slice(text),
            Piece::Placeholder(placeholder) => {
                parameters.push(Template::placeholder(*placeholder));
                let number = parameters.len();
                let reference = match places.next().map(|place| place.quotes) {
                    Some(Quotes::Double | Quotes::Braced | Quotes::Here | Quotes::Comment) => {
                        format!("${{_w{number}}}")
                    }
                    Some(Quotes::Single) => format!("'\"${{_w{number}}}\"'"),
                    Some(Quotes::None) | None => format!("\"${{_w{number}}}\""),
                    Some(Quotes::Never) => return Err(QuotedHereDocument),
                };
                line.extend_from_slice(reference.as_bytes());
            }
        }
    }
    // Functions of the line, and its `set`, have parameters of their own.
    let mut kept = String::new();
    for number in 1..=parameters.len() {
        kept.push_str(&format!("_w{number}=${{{number}}} "));
    }
    let mut whole = kept.trim_end().to_owned().into_bytes();
    whole.extend_from_slice(b"; set --; ");
    whole.extend_from_slice(&line);
    Ok((whole, parameters))
}

/// Appends a value as it is written where it stands.
pub(super) fn push_quoted(out: &mut Vec<u8>, value: &[u8], place: Place) {
    let Some(in_double) = place.backquoted else { return push_in_quotes(out, value, place.quotes) };
    let mut written = Vec::new();
    push_in_quotes(&mut written, value, place.quotes);
    // A shell takes these off before it reads what is in backquotes.
    for byte in written {
        if matches!(byte, b'$' | b'`' | b'\\') || byte == b'"' && in_double {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

fn push_in_quotes(out: &mut Vec<u8>, value: &[u8], quotes: Quotes) {
    match quotes {
        Quotes::None => push_word(out, value),
        Quotes::Double | Quotes::Braced | Quotes::Here => {
            for &byte in value {
                let ends = match byte {
                    b'}' => quotes == Quotes::Braced,
                    b'"' => quotes != Quotes::Here,
                    _ => matches!(byte, b'$' | b'`' | b'\\'),
                };
                if ends {
                    out.push(b'\\');
                }
                out.push(byte);
            }
        }
        Quotes::Single => push_escaped(out, value),
        Quotes::Never => out.extend_from_slice(value),
        // It would end with the line.
        Quotes::Comment => {
            out.extend(value.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
        }
    }
}

/// Appends a word as a shell reads it back: bare where that is clear, else in single quotes.
pub(super) fn push_word(out: &mut Vec<u8>, word: &[u8]) {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:@%+,".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        out.extend_from_slice(word);
        return;
    }
    out.push(b'\'');
    push_escaped(out, word);
    out.push(b'\'');
}

fn push_escaped(out: &mut Vec<u8>, value: &[u8]) {
    for &byte in value {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            byte => out.push(byte),
        }
    }
}
