//! `:::` is always ours: the command line is cut there before its options are read.

use std::ffi::OsString;

/// The words before the first `:::`, and the lists behind each of them.
pub(crate) fn cut(argv: &[OsString]) -> (Vec<OsString>, Vec<Vec<OsString>>) {
    let mut pieces = argv.split(|word| word == ":::").map(<[OsString]>::to_vec);
    let first = pieces.next().unwrap_or_default();
    (first, pieces.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn lists_are_what_follows_the_colons() {
        let (argv, lists) = cut(&words("widemap map echo {} ::: a -b ::: c"));
        assert_eq!(argv, words("widemap map echo {}"));
        assert_eq!(lists, [words("a -b"), words("c")]);
        assert_eq!(cut(&words("widemap map")), (words("widemap map"), vec![]));
    }
}
