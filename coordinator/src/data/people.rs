//! Lines for people about single items, on standard error: bounded, and without control characters,
//! since items and what they print come from anywhere.

use std::fmt::Write;

use widemap_common::limits::{ITEM_CHARS_SHOWN, LINE_CHARS_SHOWN, STDERR_LINES_SHOWN};

/// An item as lines for people show it: cut to [`ITEM_CHARS_SHOWN`] characters, and escaped.
#[must_use]
pub fn item_shown(item: &[u8]) -> String {
    // No more is looked at than could be shown, however long the item is.
    let head = &item[..item.len().min(ITEM_CHARS_SHOWN * 4 + 4)];
    let text = String::from_utf8_lossy(head);
    let mut shown = String::new();
    push_escaped(&mut shown, text.chars().take(ITEM_CHARS_SHOWN));
    if head.len() < item.len() || text.chars().count() > ITEM_CHARS_SHOWN {
        shown.push('…');
    }
    shown
}

/// The first line of a message from elsewhere, bounded and escaped.
#[must_use]
pub fn line_shown(text: &str) -> String {
    let mut shown = String::new();
    let line = text.lines().next().unwrap_or_default();
    push_escaped(&mut shown, line.chars().take(LINE_CHARS_SHOWN));
    shown
}

/// The message of a failure, bounded and escaped: its first line; or of a traceback of Python its last one,
/// which says what happened, and below it where, in lines of their own.
#[must_use]
pub fn message_shown(text: &str) -> String {
    if !text.starts_with("Traceback (") {
        return line_shown(text);
    }
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(STDERR_LINES_SHOWN);
    let mut shown = line_shown(lines.last().unwrap_or(&""));
    for line in &lines[skipped..] {
        shown.push('\n');
        push_escaped(&mut shown, line.chars().take(LINE_CHARS_SHOWN));
    }
    shown
}

/// What an item wrote on standard error, each line as `[seq item] text`; `seq` counts from 1.
/// `is_cut` says that there was more before it.
#[must_use]
pub fn stderr_lines(seq: u64, item: &[u8], stderr: &[u8], is_cut: bool) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut shown = String::new();
    let item = item_shown(item);
    let skipped = text.lines().count().saturating_sub(STDERR_LINES_SHOWN);
    for (index, line) in text.lines().skip(skipped).enumerate() {
        let cut = if (is_cut || skipped > 0) && index == 0 { "…" } else { "" };
        write!(shown, "[{seq} {item}] {cut}").expect("a string takes all");
        push_escaped(&mut shown, line.chars());
        shown.push('\n');
    }
    shown
}

/// What an item wrote on standard error, each line as it is, for whoever knows nothing of items.
#[must_use]
pub fn plain_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut shown = String::new();
    for line in text.lines() {
        if !shown.is_empty() {
            shown.push('\n');
        }
        push_escaped(&mut shown, line.chars());
    }
    shown
}

fn push_escaped(shown: &mut String, characters: impl Iterator<Item = char>) {
    for character in characters {
        if character.is_control() && character != '\t' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_items_print_can_not_steer_a_terminal() {
        let lines = stderr_lines(3, b"a\x1b[31m", b"one\ntwo\x07\n", false);
        assert_eq!(lines, "[3 a\\u{1b}[31m] one\n[3 a\\u{1b}[31m] two\\u{7}\n");
    }

    #[test]
    fn a_traceback_begins_with_what_happened() {
        let text = "Traceback (most recent call last):\n  File \"f.py\", line 1\nValueError: \x07";
        let want = format!("ValueError: \\u{{7}}\n{}", text.replace('\x07', "\\u{7}"));
        assert_eq!(message_shown(text), want);
        assert_eq!(message_shown("exited with status 1\nmore"), "exited with status 1");
    }

    #[test]
    fn long_items_are_cut() {
        let shown = item_shown("ä".repeat(1000).as_bytes());
        assert_eq!(shown, format!("{}…", "ä".repeat(ITEM_CHARS_SHOWN)));
        assert_eq!(item_shown("ä".repeat(ITEM_CHARS_SHOWN).as_bytes()).chars().count(), 40);
        assert_eq!(stderr_lines(1, b"x", b"tail", true), "[1 x] …tail\n");
    }
}
