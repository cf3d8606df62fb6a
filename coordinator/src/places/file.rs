//! `--workers-file`: a file with an address a line, or a directory whose files are such files (a
//! worker's `--register DIR` writes them). Read again and again, so that workers come and go.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::{Suggestion, WATCH_INTERVAL, address};

/// Sends what the file says, now and at each change.
pub(crate) async fn watch(path: PathBuf, suggestions: mpsc::Sender<Suggestion>) {
    let mut last = None;
    loop {
        let now = {
            let path = path.clone();
            // A file on a network may hang: it is read where that blocks nobody.
            tokio::task::spawn_blocking(move || read(&path)).await
        };
        let Ok(now) = now else { return };
        if last.as_ref() != Some(&now) {
            last = Some(now.clone());
            if suggestions.send(now).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn read(path: &Path) -> Suggestion {
    let source = format!("--workers-file {}", path.display());
    match read_texts(path) {
        Ok(texts) => parse(source, &texts),
        Err(error) => {
            Suggestion { source, addresses: Vec::new(), trouble: Some(error.to_string()) }
        }
    }
}

fn read_texts(path: &Path) -> io::Result<Vec<String>> {
    if !path.is_dir() {
        return Ok(vec![std::fs::read_to_string(path)?]);
    }
    let mut files: Vec<_> =
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.sort();
    let hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    files.retain(|path| path.is_file() && !hidden(path));
    // A file that a leaving worker removes meanwhile is as good as not there.
    Ok(files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect())
}

/// Blank lines and what follows `#` are passed over; a line that is no address is named.
fn parse(source: String, texts: &[String]) -> Suggestion {
    let (mut addresses, mut trouble) = (Vec::new(), None);
    for (number, line) in texts.iter().flat_map(|text| text.lines().enumerate()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match address::parse(line) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(error) => trouble = Some(format!("line {}: {error}", number + 1)),
        }
    }
    Suggestion { source, addresses, trouble }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_an_address_a_line() {
        let text = "# the lab\nann\nbob:99  # by the window\n\nann\n".to_owned();
        let suggestion = parse("f".into(), &[text]);
        assert_eq!(suggestion.addresses, ["ann:7433", "bob:99"]);
        assert_eq!(suggestion.trouble, None);
        let bad = parse("f".into(), &["ann\n!!\n".to_owned()]);
        assert_eq!(bad.addresses, ["ann:7433"]);
        assert!(bad.trouble.unwrap().starts_with("line 2: `!!`"));
    }

    #[test]
    fn a_directory_is_the_sum_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), "bob\n").unwrap();
        std::fs::write(dir.path().join("a"), "ann:1\n").unwrap();
        std::fs::write(dir.path().join(".tmp"), "half writ").unwrap();
        assert_eq!(read(dir.path()).addresses, ["ann:1", "bob:7433"]);
        assert!(read(&dir.path().join("none")).trouble.is_some());
    }
}
