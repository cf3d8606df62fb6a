//! Arguments with placeholders, in the spelling of GNU parallel: `{}` the item, `{.}` without its
//! extension, `{/}` its last path component, `{//}` its directory, `{/.}` the last component
//! without extension, `{#}` the item's number from 1, `{%}` the slot's number from 1.

/// A piece of an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Placeholder {
    Item,
    NoExtension,
    Basename,
    Directory,
    BasenameNoExtension,
    Sequence,
    Slot,
}

const PLACEHOLDERS: [(&str, Placeholder); 7] = [
    ("{}", Placeholder::Item),
    ("{.}", Placeholder::NoExtension),
    ("{/}", Placeholder::Basename),
    ("{//}", Placeholder::Directory),
    ("{/.}", Placeholder::BasenameNoExtension),
    ("{#}", Placeholder::Sequence),
    ("{%}", Placeholder::Slot),
];

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Literal(Vec<u8>),
    Placeholder(Placeholder),
}

/// One argument of a command, with its placeholders found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    text: Vec<u8>,
    pieces: Vec<Piece>,
}

/// What fills the placeholders of one item.
#[derive(Clone, Copy, Debug)]
pub struct Fill<'a> {
    /// The item.
    pub item: &'a [u8],
    /// Its number, from 1.
    pub sequence: u64,
    /// The slot's number, from 1.
    pub slot: u32,
}

impl Template {
    /// Finds the placeholders in `text`; other braces stay as they are. `{1}` is the only column.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(&byte) = rest.first() {
            let found = PLACEHOLDERS
                .iter()
                .map(|&(name, placeholder)| (name.as_bytes(), placeholder))
                .chain(std::iter::once((b"{1}".as_slice(), Placeholder::Item)))
                .find(|(name, _)| rest.starts_with(name));
            if let Some((name, placeholder)) = found {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Placeholder(placeholder));
                rest = &rest[name.len()..];
            } else {
                literal.push(byte);
                rest = &rest[1..];
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Self { text: text.to_vec(), pieces }
    }

    /// The templates of a command: an argument `{}` is added where no placeholder names the item,
    /// as `xargs` and `parallel` do.
    #[must_use]
    pub fn command(argv: &[Vec<u8>]) -> Vec<Self> {
        let mut templates: Vec<_> = argv.iter().map(|text| Self::parse(text)).collect();
        if !templates.iter().any(Self::has_placeholder) {
            templates.push(Self::parse(b"{}"));
        }
        templates
    }

    /// An argument in which nothing is a placeholder.
    #[must_use]
    pub fn literal(text: &[u8]) -> Self {
        Self { text: text.to_vec(), pieces: vec![Piece::Literal(text.to_vec())] }
    }

    /// A line for a shell, and the parameters to give it: each placeholder is a parameter, in double
    /// quotes. A line without one gets the item at its end.
    #[must_use]
    pub fn shell_line(text: &[u8]) -> (Vec<u8>, Vec<Self>) {
        let mut template = Self::parse(text);
        if !template.has_placeholder() {
            let item = Piece::Placeholder(Placeholder::Item);
            template.pieces.extend([Piece::Literal(b" ".to_vec()), item]);
        }
        let (mut line, mut parameters) = (Vec::new(), Vec::new());
        for piece in &template.pieces {
            match piece {
                Piece::Literal(text) => line.extend_from_slice(text),
                Piece::Placeholder(placeholder) => {
                    parameters.push(Self::placeholder(*placeholder));
                    line.extend_from_slice(&parameter(parameters.len()));
                }
            }
        }
        (line, parameters)
    }

    fn placeholder(placeholder: Placeholder) -> Self {
        let named = PLACEHOLDERS.iter().find(|(_, other)| *other == placeholder);
        let (name, _) = named.expect("every placeholder has a name");
        Self { text: name.as_bytes().to_vec(), pieces: vec![Piece::Placeholder(placeholder)] }
    }

    /// The argument as it was typed.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether anything in it differs from item to item.
    #[must_use]
    pub fn has_placeholder(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Placeholder(_)))
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
}

impl Placeholder {
    fn fill(self, fill: &Fill<'_>, out: &mut Vec<u8>) {
        let item = fill.item;
        match self {
            Self::Item => out.extend_from_slice(item),
            Self::NoExtension => out.extend_from_slice(without_extension(item)),
            Self::Basename => out.extend_from_slice(basename(item)),
            Self::Directory => out.extend_from_slice(directory(item)),
            Self::BasenameNoExtension => out.extend_from_slice(without_extension(basename(item))),
            Self::Sequence => out.extend_from_slice(fill.sequence.to_string().as_bytes()),
            Self::Slot => out.extend_from_slice(fill.slot.to_string().as_bytes()),
        }
    }
}

/// A reference to a parameter of a shell. Not `${1}`, which has a placeholder in it.
fn parameter(number: usize) -> Vec<u8> {
    match number {
        1..=9 => format!("\"${number}\"").into_bytes(),
        _ => format!("\"${{{number}}}\"").into_bytes(),
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
mod tests {
    use super::*;

    fn filled(template: &str, item: &str) -> String {
        let mut out = Vec::new();
        let fill = Fill { item: item.as_bytes(), sequence: 7, slot: 2 };
        Template::parse(template.as_bytes()).fill(&fill, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn placeholders_mean_what_they_mean_in_gnu_parallel() {
        let path = "dir/sub/pic.tar.jpg";
        for (template, want) in [
            ("{}", path),
            ("{1}", path),
            ("{.}.png", "dir/sub/pic.tar.png"),
            ("{/}", "pic.tar.jpg"),
            ("{//}", "dir/sub"),
            ("{/.}", "pic.tar"),
            ("{#}-{%}", "7-2"),
            ("a{}b{}c", "adir/sub/pic.tar.jpgbdir/sub/pic.tar.jpgc"),
            ("{x} {", "{x} {"),
        ] {
            assert_eq!(filled(template, path), want, "{template}");
        }
        assert_eq!(filled("{//} {.}", "plain"), ". plain");
        assert_eq!(filled("{//} {.} {/.}", "/.bashrc"), "/ / ");
    }

    #[test]
    fn a_shell_line_takes_items_as_parameters() {
        let (line, parameters) = Template::shell_line(b"cat {} | wc > {/.}.n");
        assert_eq!(line, b"cat \"$1\" | wc > \"$2\".n");
        assert_eq!(Template::parse(&line).text(), line);
        assert!(!Template::parse(&line).has_placeholder(), "a worker parses it once more");
        assert_eq!(parameters, [Template::parse(b"{}"), Template::parse(b"{/.}")]);
        assert_eq!(Template::shell_line(b"wc").0, b"wc \"$1\"");
    }

    #[test]
    fn a_command_without_placeholder_gets_the_item_last() {
        let argv = [b"echo".to_vec(), b"-n".to_vec()];
        let texts: Vec<_> = Template::command(&argv).iter().map(|t| t.text().to_vec()).collect();
        assert_eq!(texts, [b"echo".to_vec(), b"-n".to_vec(), b"{}".to_vec()]);
        assert_eq!(Template::command(&[b"x{#}".to_vec()]).len(), 1);
    }
}
