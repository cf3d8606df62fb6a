//! `--from-failures`: the items of a file that `--failures` wrote.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::MapError;

/// What is read of a line; the rest of it is for people.
#[derive(Deserialize)]
struct Line {
    item: Option<String>,
    item_base64: Option<String>,
}

/// The items, in the order of the file.
///
/// # Errors
/// [`MapError::FromFailures`] if the file cannot be read, naming the line.
pub(super) fn items(path: &Path) -> Result<Vec<Vec<u8>>, MapError> {
    let bad = |problem: String| MapError::FromFailures { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let numbered = text.lines().enumerate();
    numbered
        .map(|(number, line)| item(line).map_err(|p| bad(format!("line {}: {p}", number + 1))))
        .collect()
}

fn item(line: &str) -> Result<Vec<u8>, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    match (line.item, line.item_base64) {
        (Some(item), _) => Ok(item.into_bytes()),
        (None, Some(text)) => STANDARD.decode(text).map_err(|error| error.to_string()),
        (None, None) => Err("it names no item (blocks of --pipe cannot be run again)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_as_they_were() {
        assert_eq!(item(r#"{"seq":2,"item":"a\nb","x":1}"#).unwrap(), b"a\nb");
        assert_eq!(item(r#"{"item_base64":"/w=="}"#).unwrap(), [0xff]);
        assert!(item(r#"{"seq":1}"#).unwrap_err().contains("names no item"));
        assert!(item("x").is_err());
    }
}
