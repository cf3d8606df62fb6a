//! `:::` is always ours: the command line is cut there before its options are read.

use std::ffi::OsString;

use crate::error::MapError;

/// The command line in its pieces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// The words before the first `:::`.
    pub(crate) words: Vec<OsString>,
    /// The lists behind each of them.
    pub(crate) lists: Vec<Vec<OsString>>,
}

/// Cuts the command line.
///
/// # Errors
/// [`MapError::Separator`] for the relatives of `:::`, which would otherwise be taken for words of
/// the command.
pub(crate) fn cut(argv: &[OsString]) -> Result<Pieces, MapError> {
    let is_relative =
        |word: &&OsString| [":::+", "::::", "::::+"].iter().any(|other| *word == other);
    if let Some(word) = argv.iter().find(is_relative) {
        return Err(MapError::Separator(word.to_string_lossy().into_owned()));
    }
    let mut pieces = argv.split(|word| word == ":::").map(<[OsString]>::to_vec);
    let words = pieces.next().unwrap_or_default();
    Ok(Pieces { words, lists: pieces.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn lists_are_what_follows_the_colons() {
        let pieces = cut(&words("widemap map echo {} ::: a -b ::: c")).unwrap();
        assert_eq!(pieces.words, words("widemap map echo {}"));
        assert_eq!(pieces.lists, [words("a -b"), words("c")]);
        assert!(cut(&words("widemap map")).unwrap().lists.is_empty());
        assert!(cut(&words("widemap map echo :::: file")).is_err());
    }
}
