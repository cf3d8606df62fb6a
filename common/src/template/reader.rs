//! Follows a line of a shell as far as decides what surrounds a place in it (POSIX.1-2024, Shell Command
//! Language: 2.2 Quoting, 2.3 Token Recognition, 2.6 Word Expansions, 2.7.4 Here-Document, and the reserved
//! words of 2.4 that `case` needs).

/// What surrounds a place in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Double,
    Single,
    /// `$(...)`, with so many parentheses open, and so many `case` without their `esac`: the parenthesis
    /// behind a pattern closes nothing.
    Substitution {
        open: u32,
        cases: u32,
    },
    /// `$((...))`, with so many parentheses open.
    Arithmetic(u32),
    /// `${...}`.
    Brace(Operator),
    Backquote,
    Comment,
    /// The lines of a here-document.
    Here,
}

/// What stands behind the name in `${...}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    /// Nothing as yet.
    None,
    /// A word: in double quotes a single quote in it is a character.
    Word,
    /// A pattern: quotes are quotes in it.
    Pattern,
}

/// How a placeholder is quoted where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Quotes {
    None,
    Double,
    /// In double quotes, within `${...}`.
    Braced,
    Single,
    /// In a here-document.
    Here,
    /// In a here-document whose end is quoted: nothing is put in there.
    Never,
    Comment,
}

/// Where a placeholder stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) quotes: Quotes,
    /// If in backquotes, whether these are in double quotes.
    pub(super) backquoted: Option<bool>,
}

/// The end of a here-document.
#[derive(Default, Debug)]
struct End {
    word: Vec<u8>,
    is_quoted: bool,
    /// `<<-`: tabs before its lines do not count.
    strips: bool,
    /// Of the word, while it is read.
    has_begun: bool,
    quote: Option<u8>,
    is_escaped: bool,
}

/// How far a line was read.
#[derive(Default, Debug)]
pub(super) struct Reader {
    levels: Vec<Level>,
    is_escaped: bool,
    /// The bytes before; of what is escaped no more than that it was there.
    before: [u8; 2],
    /// The word so far, and whether it stands where a command begins.
    word: Vec<u8>,
    begins_command: bool,
    /// The end that is being read, those whose lines are still to come, and those whose lines are read.
    opening: Option<End>,
    pending: Vec<End>,
    here: Vec<End>,
    /// The line of a here-document so far.
    here_line: Vec<u8>,
}

/// Stands for what is not known before an item is.
const ANYTHING: u8 = 0;

impl Reader {
    pub(super) fn new() -> Self {
        Self { begins_command: true, ..Self::default() }
    }

    pub(super) fn read(&mut self, text: &[u8]) {
        for &byte in text {
            let was_escaped = self.is_escaped;
            self.step(byte);
            self.before = [self.before[1], if was_escaped { b'x' } else { byte }];
        }
    }

    /// What surrounds a placeholder that stands here; it goes on behind it.
    pub(super) fn placeholder(&mut self) -> Place {
        let place = self.place();
        self.before = [ANYTHING, b'x'];
        self.is_escaped = false;
        self.word.push(ANYTHING);
        self.here_line.push(ANYTHING);
        if let Some(end) = &mut self.opening {
            end.word.push(ANYTHING);
            end.has_begun = true;
        }
        place
    }

    fn place(&self) -> Place {
        let is_brace = |level: &Level| matches!(level, Level::Brace(_));
        let inner = self.levels.iter().rev().find(|level| !is_brace(level));
        let is_braced = self.levels.last().is_some_and(is_brace);
        let quotes = match inner {
            Some(Level::Single) => Quotes::Single,
            Some(Level::Comment) => Quotes::Comment,
            Some(Level::Here) if self.is_never() => Quotes::Never,
            Some(Level::Here | Level::Double | Level::Arithmetic(_)) if is_braced => Quotes::Braced,
            Some(Level::Here) => Quotes::Here,
            Some(Level::Double | Level::Arithmetic(_)) => Quotes::Double,
            _ => Quotes::None,
        };
        let backquote = self.levels.iter().rposition(|level| *level == Level::Backquote);
        let backquoted = backquote.map(|at| self.levels[..at].contains(&Level::Double));
        Place { quotes, backquoted }
    }

    /// Whether nothing is put into the here-document that is read.
    fn is_never(&self) -> bool {
        self.here.last().is_some_and(|end| end.is_quoted)
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
            Some(Level::Comment) if byte == b'\n' => drop(self.levels.pop()),
            Some(Level::Comment) => return,
            Some(Level::Here) => return self.step_here(byte),
            _ => {}
        }
        if self.opening.is_some() && self.read_end(byte) {
            return;
        }
        if std::mem::take(&mut self.is_escaped) {
            return self.word.push(ANYTHING);
        }
        // A comment has ended with its line.
        let level = self.levels.last().copied();
        let is_code = matches!(level, None | Some(Level::Substitution { .. } | Level::Backquote));
        if is_code && byte == b'\n' && !self.pending.is_empty() {
            self.end_word(byte);
            return self.begin_here();
        }
        if is_code && byte == b'#' && self.word.is_empty() {
            return self.levels.push(Level::Comment);
        }
        if is_code && byte == b'<' && self.before[1] == b'<' && self.before[0] != b'<' {
            self.opening = Some(End::default());
        }
        if is_code && is_separator(byte) {
            self.end_word(byte);
        } else {
            self.word.push(byte);
        }
        if !self.expands(byte, level) {
            self.quotes(byte, level);
        }
    }

    /// Takes what begins or ends an expansion. Whether it was that.
    fn expands(&mut self, byte: u8, level: Option<Level>) -> bool {
        let after_dollar = self.before[1] == b'$';
        match (byte, level) {
            (b'`', Some(Level::Backquote)) => self.leave(),
            (b'`', _) => self.enter(Level::Backquote),
            (b'(', _) if after_dollar => self.enter(Level::Substitution { open: 1, cases: 0 }),
            (b'(', Some(Level::Substitution { open: 1, .. })) if self.before == *b"$(" => {
                self.levels.pop();
                self.levels.push(Level::Arithmetic(2));
            }
            (b'{', _) if after_dollar => self.levels.push(Level::Brace(Operator::None)),
            (b'}', Some(Level::Brace(_))) => drop(self.levels.pop()),
            (_, Some(Level::Brace(Operator::None))) => return self.operator(byte),
            (b'(' | b')', Some(Level::Substitution { .. } | Level::Arithmetic(_))) => {
                self.nest(byte);
            }
            _ => return false,
        }
        true
    }

    /// Takes what begins or ends quotes.
    fn quotes(&mut self, byte: u8, level: Option<Level>) {
        match (byte, level) {
            (b'\\', _) => self.is_escaped = true,
            (b'"', Some(Level::Double)) => drop(self.levels.pop()),
            (b'"', _) => self.levels.push(Level::Double),
            (b'\'', Some(Level::Double | Level::Arithmetic(_))) => {}
            (b'\'', Some(Level::Brace(Operator::Word))) if self.is_in_double() => {}
            (b'\'', _) => self.levels.push(Level::Single),
            _ => {}
        }
    }

    /// Whether the braces that are open stand in double quotes, or where it is as in them.
    fn is_in_double(&self) -> bool {
        let outer = self.levels.iter().rev().find(|level| !matches!(level, Level::Brace(_)));
        matches!(outer, Some(Level::Double | Level::Here | Level::Arithmetic(_)))
    }

    /// A byte behind `${`, or behind the name there. Whether it was no quote.
    fn operator(&mut self, byte: u8) -> bool {
        let operator = match byte {
            // `${#x}` is a length.
            b'#' if self.before[1] == b'{' => return true,
            b'#' | b'%' | b'/' => Operator::Pattern,
            b':' | b'-' | b'+' | b'=' | b'?' if self.before[1] != b'{' => Operator::Word,
            b'"' | b'\'' | b'\\' => return false,
            _ => return true,
        };
        if let Some(level) = self.levels.last_mut() {
            *level = Level::Brace(operator);
        }
        true
    }

    fn enter(&mut self, level: Level) {
        self.levels.push(level);
        self.word.clear();
        self.begins_command = true;
    }

    fn leave(&mut self) {
        self.levels.pop();
        self.word = vec![ANYTHING];
        self.begins_command = false;
    }

    fn nest(&mut self, byte: u8) {
        let open = match self.levels.last_mut() {
            // Behind a pattern of a case.
            Some(Level::Substitution { open: 1, cases: 1.. }) if byte == b')' => return,
            Some(Level::Substitution { open, .. } | Level::Arithmetic(open)) => open,
            _ => return,
        };
        match byte {
            b'(' => *open += 1,
            _ => *open -= 1,
        }
        if *open == 0 {
            self.leave();
        }
    }

    /// A word has ended at this byte.
    fn end_word(&mut self, byte: u8) {
        let word = std::mem::take(&mut self.word);
        if let Some(Level::Substitution { cases, .. }) = self.levels.last_mut() {
            match word.as_slice() {
                b"case" if self.begins_command => *cases += 1,
                b"esac" if self.begins_command => *cases = cases.saturating_sub(1),
                _ => {}
            }
        }
        let begins_list: [&[u8]; 9] =
            [b"then", b"do", b"else", b"elif", b"if", b"while", b"until", b"!", b"{"];
        self.begins_command = match byte {
            b' ' | b'\t' if word.is_empty() => self.begins_command,
            b' ' | b'\t' | b'<' | b'>' => {
                self.begins_command && begins_list.contains(&word.as_slice())
            }
            _ => true,
        };
    }

    /// Takes a byte of the word that ends a here-document. False if the word has ended before it.
    fn read_end(&mut self, byte: u8) -> bool {
        let Some(end) = &mut self.opening else { return false };
        if std::mem::take(&mut end.is_escaped) {
            end.word.push(byte);
            return true;
        }
        if let Some(quote) = end.quote {
            match byte == quote {
                true => end.quote = None,
                false => end.word.push(byte),
            }
            return true;
        }
        match byte {
            // `<<<` is a word of its own.
            b'<' if !end.has_begun => self.opening = None,
            b'-' if !end.has_begun && !end.strips => end.strips = true,
            b' ' | b'\t' if !end.has_begun => {}
            b'\\' => (end.is_escaped, end.is_quoted, end.has_begun) = (true, true, true),
            b'\'' | b'"' => {
                (end.quote, end.is_quoted, end.has_begun) = (Some(byte), true, true);
            }
            _ if is_separator(byte) => {
                let end = self.opening.take().filter(|end| end.has_begun);
                self.pending.extend(end);
                return false;
            }
            _ => {
                end.word.push(byte);
                end.has_begun = true;
            }
        }
        true
    }

    fn begin_here(&mut self) {
        self.here.push(self.pending.remove(0));
        self.here_line.clear();
        self.levels.push(Level::Here);
    }

    /// Takes a byte of a here-document.
    fn step_here(&mut self, byte: u8) {
        if byte != b'\n' || self.is_escaped {
            self.here_line.push(byte);
            if !self.is_never() && !std::mem::take(&mut self.is_escaped) {
                match byte {
                    b'\\' => self.is_escaped = true,
                    _ => drop(self.expands(byte, Some(Level::Here))),
                }
            }
            return;
        }
        let line = std::mem::take(&mut self.here_line);
        let is_end = self.here.last().is_some_and(|end| {
            let tabs = line.iter().take_while(|&&byte| byte == b'\t' && end.strips).count();
            line[tabs..] == end.word
        });
        if is_end {
            self.levels.pop();
            self.here.pop();
            (self.begins_command, self.word) = (true, Vec::new());
            if !self.pending.is_empty() {
                self.begin_here();
            }
        }
    }
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'(' | b')' | b'<' | b'>')
}
