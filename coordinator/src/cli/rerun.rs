//! The command that runs only what failed again: as it was typed, but for where items come from and
//! where results go, which is into their places where these are known.

use std::ffi::OsString;
use std::path::Path;

/// What stands for the failures file.
pub(super) const FAILURES: &str = "FAILURES";

/// Options with a value that are left out.
const LEFT_OUT: [&str; 10] = [
    "-a",
    "--input",
    "--from-failures",
    "--output",
    "--failures",
    "--receipt",
    "--joblog",
    "--results",
    // Other items are another job.
    "--submit-key",
    "--journal",
];

/// The command, with [`FAILURES`] for the file. `words` are those before the first `:::`, `command`
/// the last of them; `output` is the file in which results have their places.
pub(super) fn command(words: &[OsString], command: &[OsString], output: Option<&Path>) -> String {
    let options = &words[2.min(words.len())..words.len() - command.len()];
    let mut shown = vec![match output {
        Some(output) => format!("widemap repair {FAILURES} {}", quoted(output)),
        None => format!("widemap map --from-failures {FAILURES}"),
    }];
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let text = option.to_string_lossy();
        if LEFT_OUT.iter().any(|name| text == *name) {
            options.next();
        } else if !["--", "--resume"].contains(&&*text) && !is_left_out(&text) {
            shown.push(quoted(Path::new(option)));
        }
    }
    if !command.is_empty() {
        shown.push("--".to_owned());
        shown.extend(command.iter().map(|word| quoted(Path::new(word))));
    }
    shown.join(" ")
}

/// `--input=FILE` and `-aFILE`.
fn is_left_out(text: &str) -> bool {
    let name = text.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| LEFT_OUT.contains(&name)) || text.starts_with("-a")
}

/// A word as a shell reads it back.
pub(super) fn quoted(word: &Path) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+{}".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_items_and_results_stays() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let typed = words("widemap map -0 -a list --wd /tmp --output=o --retries 2 -- sh -c it's");
        assert_eq!(
            command(&typed, &typed[11..], None),
            "widemap map --from-failures FAILURES -0 --wd /tmp --retries 2 -- sh -c 'it'\\''s'"
        );
        let typed = words("widemap map --journal j --resume --output o -0 cat");
        assert_eq!(
            command(&typed, &typed[8..], Some(Path::new("o"))),
            "widemap repair FAILURES o -0 -- cat"
        );
    }
}
