//! `--from-failures`: the items of a file that `--failures` wrote.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use widemap_common::framing::push_length_prefixed;

use crate::error::MapError;

/// An item that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// As one text.
    pub(super) whole: Vec<u8>,
    /// Its columns, if it was a list of them.
    pub(super) columns: Option<Vec<Vec<u8>>>,
}

/// What is read of a line; the rest of it is for people.
#[derive(Deserialize)]
struct Line {
    item: Option<String>,
    item_base64: Option<String>,
    args: Option<Vec<String>>,
    args_base64: Option<Vec<String>>,
}

impl Item {
    /// As it lies in what is sent, without its own length.
    pub(super) fn framed(self) -> Vec<u8> {
        let mut framed = Vec::new();
        let columns = self.columns.unwrap_or_else(|| vec![self.whole]);
        columns.iter().for_each(|column| push_length_prefixed(&mut framed, column));
        framed
    }
}

/// The items, in the order of the file.
///
/// # Errors
/// [`MapError::FromFailures`] if the file cannot be read, naming the line.
pub(super) fn items(path: &Path) -> Result<Vec<Item>, MapError> {
    let bad = |problem: String| MapError::FromFailures { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let numbered = text.lines().enumerate();
    numbered
        .map(|(number, line)| item(line).map_err(|p| bad(format!("line {}: {p}", number + 1))))
        .collect()
}

fn item(line: &str) -> Result<Item, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let decode = |text: &String| STANDARD.decode(text).map_err(|error| error.to_string());
    let whole = match (line.item, line.item_base64) {
        (Some(item), _) => item.into_bytes(),
        (None, Some(text)) => decode(&text)?,
        (None, None) => {
            return Err("it names no item (blocks of --pipe cannot be run again)".to_owned());
        }
    };
    let columns = match (line.args, line.args_base64) {
        (_, Some(args)) => Some(args.iter().map(decode).collect::<Result<Vec<_>, _>>()?),
        (Some(args), None) => Some(args.into_iter().map(String::into_bytes).collect()),
        (None, None) => None,
    };
    // The item itself is its only column.
    let columns = columns.filter(|columns| columns.len() != 1 || columns[0] != whole);
    Ok(Item { whole, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_as_they_were() {
        let plain = |whole: &[u8]| Item { whole: whole.to_vec(), columns: None };
        let line = r#"{"seq":2,"item":"a\nb","args":["a\nb"],"x":1}"#;
        assert_eq!(item(line).unwrap(), plain(b"a\nb"));
        assert_eq!(item(r#"{"item_base64":"/w=="}"#).unwrap(), plain(&[0xff]));
        let columns = Some(vec![b"a".to_vec(), b"b".to_vec()]);
        let two = item(r#"{"item":"a b","args":["a","b"]}"#).unwrap();
        assert_eq!(two, Item { whole: b"a b".to_vec(), columns });
        assert_eq!(two.framed(), b"\x01\0\0\0a\x01\0\0\0b");
        let bytes = item(r#"{"item_base64":"/yBh","args_base64":["/w==","YQ=="]}"#).unwrap();
        assert_eq!(bytes.columns, Some(vec![vec![0xff], b"a".to_vec()]));
        assert!(item(r#"{"seq":1}"#).unwrap_err().contains("names no item"));
        assert!(item("x").is_err());
    }
}
