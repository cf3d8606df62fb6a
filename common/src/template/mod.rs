//! Arguments with placeholders, in the spelling of GNU parallel: `{}` the item, `{.}` without its
//! extension, `{/}` its last path component, `{//}` its directory, `{/.}` the last component
//! without extension, `{#}` the item's number from 1, `{%}` the slot's number from 1. Of an item of several
//! columns `{2}` is the second, `{-1}` the last, `{2/.}` the second's last component without extension;
//! the others are about all of them, with a space between.

mod reader;
mod shell;

pub use shell::QuotedHereDocument;

/// The usual text that stands for an item.
pub const ITEM: &[u8] = b"{}";

/// What of an item, or of one column of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Part {
    Whole,
    NoExtension,
    Basename,
    Directory,
    BasenameNoExtension,
}

/// A piece of an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Placeholder {
    /// Of all columns.
    Item(Part),
    /// Of one column: from 1, or from the last backwards.
    Column(i32, Part),
    Sequence,
    Slot,
}

const PARTS: [(&str, Part); 5] = [
    ("", Part::Whole),
    (".", Part::NoExtension),
    ("/", Part::Basename),
    ("//", Part::Directory),
    ("/.", Part::BasenameNoExtension),
];

/// The longest text of a placeholder that has braces.
const PLACEHOLDER_BYTES_MAX: usize = 12;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Literal(Vec<u8>),
    Placeholder(Placeholder),
}

/// What is a placeholder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syntax<'a> {
    /// What stands for the item: `{}`, unless `-I` says otherwise.
    pub item: &'a [u8],
    /// Whether items are lists of columns. If not, `{1}` is the item and `{2}` is no placeholder.
    pub columns: bool,
}

impl Default for Syntax<'_> {
    fn default() -> Self {
        Self { item: ITEM, columns: false }
    }
}

/// One argument of a command, with its placeholders found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    text: Vec<u8>,
    /// What stands for the item in the text.
    item: Vec<u8>,
    pieces: Vec<Piece>,
}

/// What fills the placeholders of one item.
#[derive(Clone, Copy, Debug)]
pub struct Fill<'a> {
    /// The item: its columns with a space between, if it has several.
    pub item: &'a [u8],
    /// Its columns, at least one.
    pub columns: &'a [&'a [u8]],
    /// Its number, from 1.
    pub sequence: u64,
    /// The slot's number, from 1.
    pub slot: u32,
}

impl Template {
    /// Finds the placeholders in `text`; other braces stay as they are.
    #[must_use]
    pub fn parse(text: &[u8], syntax: Syntax<'_>) -> Self {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(&byte) = rest.first() {
            match placeholder(rest, syntax) {
                Some((placeholder, length)) => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Placeholder(placeholder));
                    rest = &rest[length..];
                }
                None => {
                    literal.push(byte);
                    rest = &rest[1..];
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Self { text: text.to_vec(), item: syntax.item.to_vec(), pieces }
    }

    /// The templates of a command: an argument that is the item is added where no placeholder is, as `xargs`
    /// and `parallel` do.
    #[must_use]
    pub fn command(argv: &[Vec<u8>], syntax: Syntax<'_>) -> Vec<Self> {
        let mut templates: Vec<_> = argv.iter().map(|text| Self::parse(text, syntax)).collect();
        if !templates.iter().any(Self::has_placeholder) {
            templates.push(Self::parse(syntax.item, syntax));
        }
        templates
    }

    /// An argument in which nothing is a placeholder.
    #[must_use]
    pub fn literal(text: &[u8]) -> Self {
        let pieces = vec![Piece::Literal(text.to_vec())];
        Self { text: text.to_vec(), item: ITEM.to_vec(), pieces }
    }

    /// A line for a shell, as the arguments of `sh -c`: what placeholders stand for are parameters, so that no
    /// byte of an item means anything to the shell. A line without one gets the item at its end.
    ///
    /// # Errors
    /// If a placeholder stands where a shell puts nothing in.
    pub fn shell_line(text: &[u8], syntax: Syntax<'_>) -> Result<Vec<Self>, QuotedHereDocument> {
        let (line, parameters) = shell::line(&Self::line(text, syntax).pieces)?;
        let mut templates = vec![Self::literal(&line), Self::literal(b"sh")];
        templates.extend(parameters);
        Ok(templates)
    }

    /// The placeholders of a line for a shell; it has one.
    #[must_use]
    pub fn line(text: &[u8], syntax: Syntax<'_>) -> Self {
        let mut template = Self::parse(text, syntax);
        if !template.has_placeholder() {
            let item = Piece::Placeholder(Placeholder::Item(Part::Whole));
            template.pieces.extend([Piece::Literal(b" ".to_vec()), item]);
        }
        template
    }

    fn placeholder(placeholder: Placeholder) -> Self {
        let pieces = vec![Piece::Placeholder(placeholder)];
        Self { text: placeholder.text(), item: ITEM.to_vec(), pieces }
    }

    /// The argument as it was typed.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// What stands for the item in that.
    #[must_use]
    pub fn item(&self) -> &[u8] {
        &self.item
    }

    /// Whether anything in it differs from item to item.
    #[must_use]
    pub fn has_placeholder(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Placeholder(_)))
    }

    /// The columns that it names: counted from 1, or from the last backwards.
    pub fn columns(&self) -> impl Iterator<Item = i32> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Placeholder(Placeholder::Column(column, _)) => Some(*column),
            _ => None,
        })
    }

    /// Appends the argument for one item to `out`.
    pub fn fill(&self, fill: &Fill<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text),
                Piece::Placeholder(placeholder) => placeholder.fill(fill, out),
            }
        }
    }

    /// Appends the argument for one item to `out`, as a word that a shell reads back.
    pub fn fill_quoted(&self, fill: &Fill<'_>, out: &mut Vec<u8>) {
        let mut word = Vec::new();
        self.fill(fill, &mut word);
        shell::push_word(out, &word);
    }

    /// Appends a line for a shell to `out`, as somebody would type it for one item.
    pub fn fill_line(&self, fill: &Fill<'_>, out: &mut Vec<u8>) {
        let mut places = shell::places(&self.pieces).into_iter();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text),
                Piece::Placeholder(placeholder) => {
                    let mut value = Vec::new();
                    placeholder.fill(fill, &mut value);
                    match places.next() {
                        Some(place) => shell::push_quoted(out, &value, place),
                        None => shell::push_word(out, &value),
                    }
                }
            }
        }
    }
}

/// The placeholder that `text` begins with, and its length.
fn placeholder(text: &[u8], syntax: Syntax<'_>) -> Option<(Placeholder, usize)> {
    if !syntax.item.is_empty() && text.starts_with(syntax.item) {
        return Some((Placeholder::Item(Part::Whole), syntax.item.len()));
    }
    if text[0] != b'{' {
        return None;
    }
    let end = text.iter().take(PLACEHOLDER_BYTES_MAX).position(|&byte| byte == b'}')?;
    let inner = std::str::from_utf8(&text[1..end]).ok()?;
    let length = end + 1;
    match inner {
        // Only -I decides what stands for the item.
        "" => return None,
        "#" => return Some((Placeholder::Sequence, length)),
        "%" => return Some((Placeholder::Slot, length)),
        _ => {}
    }
    let digits = inner.find(['.', '/']).unwrap_or(inner.len());
    let (column, part) = inner.split_at(digits);
    let part = PARTS.iter().find_map(|&(name, found)| (name == part).then_some(found))?;
    if column.is_empty() {
        return Some((Placeholder::Item(part), length));
    }
    // `{+1}` and `{01}` are none.
    let number: i32 = column.parse().ok().filter(|number: &i32| number.to_string() == column)?;
    match (syntax.columns, number) {
        (_, 0) => None,
        (true, number) => Some((Placeholder::Column(number, part), length)),
        (false, 1) => Some((Placeholder::Item(part), length)),
        (false, _) => None,
    }
}

impl Placeholder {
    fn text(self) -> Vec<u8> {
        let part = |part: Part| PARTS.iter().find(|(_, other)| *other == part).map_or("", |p| p.0);
        match self {
            Self::Item(of) => format!("{{{}}}", part(of)),
            Self::Column(column, of) => format!("{{{column}{}}}", part(of)),
            Self::Sequence => "{#}".to_owned(),
            Self::Slot => "{%}".to_owned(),
        }
        .into_bytes()
    }

    fn fill(self, fill: &Fill<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Item(Part::Whole) => out.extend_from_slice(fill.item),
            Self::Item(part) => {
                for (index, column) in fill.columns.iter().enumerate() {
                    if index > 0 {
                        out.push(b' ');
                    }
                    out.extend_from_slice(part.of(column));
                }
            }
            Self::Column(number, part) => {
                let index = match usize::try_from(number) {
                    Ok(number) => number.checked_sub(1),
                    Err(_) => fill.columns.len().checked_sub(number.unsigned_abs() as usize),
                };
                let column = index.and_then(|index| fill.columns.get(index));
                out.extend_from_slice(part.of(column.copied().unwrap_or_default()));
            }
            Self::Sequence => out.extend_from_slice(fill.sequence.to_string().as_bytes()),
            Self::Slot => out.extend_from_slice(fill.slot.to_string().as_bytes()),
        }
    }
}

impl Part {
    fn of(self, path: &[u8]) -> &[u8] {
        match self {
            Self::Whole => path,
            Self::NoExtension => without_extension(path),
            Self::Basename => basename(path),
            Self::Directory => directory(path),
            Self::BasenameNoExtension => without_extension(basename(path)),
        }
    }
}

fn basename(path: &[u8]) -> &[u8] {
    memchr::memrchr(b'/', path).map_or(path, |slash| &path[slash + 1..])
}

fn directory(path: &[u8]) -> &[u8] {
    match memchr::memrchr(b'/', path) {
        None => b".",
        Some(0) => b"/",
        Some(slash) => &path[..slash],
    }
}

/// `a/b.tar.gz` is `a/b.tar`; of `.hid` nothing is left, as in GNU parallel.
fn without_extension(path: &[u8]) -> &[u8] {
    let name = path.len() - basename(path).len();
    match memchr::memrchr(b'.', &path[name..]) {
        Some(dot) => &path[..name + dot],
        _ => path,
    }
}

#[cfg(test)]
mod tests;
