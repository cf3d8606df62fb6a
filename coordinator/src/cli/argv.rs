//! `:::` and its relatives are always ours: the command line is cut there before its options are read.

use std::ffi::OsString;

/// The command line in its pieces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// The words before the first `:::`.
    pub(crate) words: Vec<OsString>,
    /// What stands behind it, a list for each.
    pub(crate) lists: Vec<List>,
}

/// What stands behind a `:::` or one of its relatives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct List {
    /// The word that it begins with.
    pub(crate) sign: &'static str,
    /// Whether the words are values; if not they are files of them.
    pub(crate) is_values: bool,
    /// Whether it goes together with the list before it, value by value.
    pub(crate) is_linked: bool,
    /// The words.
    pub(crate) words: Vec<OsString>,
}

const SIGNS: [(&str, bool, bool); 4] =
    [(":::", true, false), (":::+", true, true), ("::::", false, false), ("::::+", false, true)];

/// Cuts the command line.
pub(crate) fn cut(argv: &[OsString]) -> Pieces {
    let mut pieces = Pieces { words: Vec::new(), lists: Vec::new() };
    for word in argv {
        let sign = SIGNS.iter().find(|(sign, ..)| word == sign);
        match (sign, pieces.lists.last_mut()) {
            (Some(&(sign, is_values, is_linked)), _) => {
                pieces.lists.push(List { sign, is_values, is_linked, words: Vec::new() });
            }
            (None, Some(list)) => list.words.push(word.clone()),
            (None, None) => pieces.words.push(word.clone()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn lists_are_what_follows_the_colons() {
        let pieces = cut(&words("widemap map echo {} ::: a -b ::::+ file :::"));
        assert_eq!(pieces.words, words("widemap map echo {}"));
        let told = pieces
            .lists
            .iter()
            .map(|list| (list.sign, list.is_values, list.is_linked, list.words.clone()));
        assert!(told.eq([
            (":::", true, false, words("a -b")),
            ("::::+", false, true, words("file")),
            (":::", true, false, words("")),
        ]));
        assert!(cut(&words("widemap map")).lists.is_empty());
    }
}
