//! Placeholders in a line of a shell: what an item is never means anything to the shell, wherever in the line
//! the placeholder stands.
//!
//! The shell gets what placeholders stand for as its parameters, keeps them in variables, and the line refers
//! to those: in double quotes where it stands by itself, without where it is in such quotes already. So much
//! of the grammar as decides that is followed here (POSIX.1-2024, Shell Command Language, 2.2 Quoting
//! and 2.6 Word Expansions).

use super::{Piece, Template};

/// What surrounds a place in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Double,
    Single,
    /// `$(...)`, with so many parentheses open.
    Substitution(u32),
    /// `$((...))`, likewise.
    Arithmetic(u32),
    /// `${...}`.
    Brace,
    Backquote,
    Comment,
}

/// How a placeholder is quoted where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Quotes {
    None,
    Double,
    /// In double quotes, within `${...}`.
    Braced,
    Single,
}

/// How far a line was read.
#[derive(Default)]
struct Reader {
    levels: Vec<Level>,
    is_escaped: bool,
    /// The bytes before, without those that are quoted.
    before: [u8; 2],
}

impl Reader {
    fn read(&mut self, text: &[u8]) {
        for &byte in text {
            self.step(byte);
            self.before = [self.before[1], byte];
        }
    }

    fn step(&mut self, byte: u8) {
        let level = self.levels.last().copied();
        match level {
            Some(Level::Single) => {
                if byte == b'\'' {
                    self.levels.pop();
                }
                return;
            }
            Some(Level::Comment) => {
                if byte == b'\n' {
                    self.levels.pop();
                }
                return;
            }
            _ => {}
        }
        if std::mem::take(&mut self.is_escaped) {
            return;
        }
        let after_dollar = self.before[1] == b'$';
        match (byte, level) {
            (b'\\', _) => self.is_escaped = true,
            (b'"', Some(Level::Double)) => drop(self.levels.pop()),
            (b'"', _) => self.levels.push(Level::Double),
            (b'`', Some(Level::Backquote)) => drop(self.levels.pop()),
            (b'`', _) => self.levels.push(Level::Backquote),
            (b'(', _) if after_dollar => self.levels.push(Level::Substitution(1)),
            (b'(', Some(Level::Substitution(1))) if self.before == *b"$(" => {
                self.levels.pop();
                self.levels.push(Level::Arithmetic(2));
            }
            (b'{', _) if after_dollar => self.levels.push(Level::Brace),
            (b'}', Some(Level::Brace)) => drop(self.levels.pop()),
            (b'(' | b')', Some(Level::Substitution(_) | Level::Arithmetic(_))) => self.nest(byte),
            (b'\'', Some(Level::Double | Level::Arithmetic(_))) => {}
            (b'\'', _) => self.levels.push(Level::Single),
            (b'#', None | Some(Level::Substitution(_) | Level::Backquote))
                if matches!(
                    self.before[1],
                    0 | b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'('
                ) =>
            {
                self.levels.push(Level::Comment);
            }
            _ => {}
        }
    }

    fn nest(&mut self, byte: u8) {
        let Some(Level::Substitution(open) | Level::Arithmetic(open)) = self.levels.last_mut()
        else {
            return;
        };
        match byte {
            b'(' => *open += 1,
            _ => *open -= 1,
        }
        if *open == 0 {
            self.levels.pop();
        }
    }

    fn quotes(&self) -> Quotes {
        let inner = self.levels.iter().rev().find(|level| **level != Level::Brace);
        match inner {
            Some(Level::Single) => Quotes::Single,
            Some(Level::Double | Level::Arithmetic(_)) => match self.levels.last() {
                Some(Level::Brace) => Quotes::Braced,
                _ => Quotes::Double,
            },
            _ => Quotes::None,
        }
    }
}

/// The pieces of a line, each placeholder with the quotes that it stands in.
pub(super) fn places(pieces: &[Piece]) -> Vec<Quotes> {
    let mut reader = Reader::default();
    let mut places = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Literal(text) => reader.read(text),
            Piece::Placeholder(_) => {
                places.push(reader.quotes());
                // A comment does not begin behind it.
                reader.before = [0, b'x'];
                reader.is_escaped = false;
            }
        }
    }
    places
}

/// The line that a shell is to run, and its parameters.
pub(super) fn line(pieces: &[Piece]) -> (Vec<u8>, Vec<Template>) {
    let mut places = places(pieces).into_iter();
    let (mut line, mut parameters) = (Vec::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Literal(text) => line.extend_from_slice(text),
            Piece::Placeholder(placeholder) => {
                parameters.push(Template::placeholder(*placeholder));
                let number = parameters.len();
                let reference = match places.next() {
                    Some(Quotes::Double | Quotes::Braced) => format!("${{_w{number}}}"),
                    Some(Quotes::Single) => format!("'\"${{_w{number}}}\"'"),
                    Some(Quotes::None) | None => format!("\"${{_w{number}}}\""),
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
    (whole, parameters)
}

/// Appends a value as it is written in such quotes.
pub(super) fn push_quoted(out: &mut Vec<u8>, value: &[u8], quotes: Quotes) {
    match quotes {
        Quotes::None => push_word(out, value),
        Quotes::Double | Quotes::Braced => {
            for &byte in value {
                let ends = byte == b'}' && quotes == Quotes::Braced;
                if ends || matches!(byte, b'"' | b'$' | b'`' | b'\\') {
                    out.push(b'\\');
                }
                out.push(byte);
            }
        }
        Quotes::Single => push_escaped(out, value),
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
