//! `--workers-file`: a file with an address a line, or a directory whose files are such files (a
//! worker's `--register DIR` writes them). Read again and again, so that workers come and go.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Place, Source, Suggestion, address};

/// How often a watched file or directory is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// A file with an address a line, or a directory of such files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    /// What a person calls the source.
    pub(crate) name: String,
    /// The file or directory.
    pub(crate) path: PathBuf,
}

#[tonic::async_trait]
impl Source for Watched {
    fn name(&self) -> &str {
        &self.name
    }

    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>) {
        let mut last: Option<Suggestion> = None;
        loop {
            let watched = self.clone();
            // A file on a network may hang: it is read where that blocks nobody.
            let now = tokio::task::spawn_blocking(move || watched.read()).await;
            let Ok((mut now, is_certain)) = now else { return };
            if !is_certain {
                // It may be readable again in a moment, as a disk on a network is.
                now.places = last.as_ref().map(|last| last.places.clone()).unwrap_or_default();
            }
            if last.as_ref() != Some(&now) {
                last = Some(now.clone());
                if suggestions.send(now).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

impl Watched {
    /// What it names, and whether that is certain: a file that is not there names nobody, of one
    /// that cannot be read nobody knows.
    fn read(&self) -> (Suggestion, bool) {
        let source = self.name.clone();
        match read_texts(&self.path) {
            Ok(texts) => (parse(source, &texts), true),
            Err(error) => {
                let is_certain = error.kind() == io::ErrorKind::NotFound;
                let trouble = Some(error.to_string());
                let (places, unused) = (Vec::new(), Vec::new());
                (Suggestion { source, places, hints: false, unused, trouble }, is_certain)
            }
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
    let (mut places, mut trouble) = (Vec::new(), None);
    for (number, line) in texts.iter().flat_map(|text| text.lines().enumerate()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match address::parse(line).map(Place::at) {
            Ok(place) if places.contains(&place) => {}
            Ok(place) => places.push(place),
            Err(error) => trouble = Some(format!("line {}: {error}", number + 1)),
        }
    }
    Suggestion { source, places, hints: false, unused: Vec::new(), trouble }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(suggestion: &Suggestion) -> Vec<&str> {
        suggestion.places.iter().map(Place::shown).collect()
    }

    #[test]
    fn a_file_names_an_address_a_line() {
        let text = "# the lab\nann\nbob:99  # by the window\n\nann\n".to_owned();
        let suggestion = parse("f".into(), &[text]);
        assert_eq!(addresses(&suggestion), ["ann:7433", "bob:99"]);
        assert_eq!(suggestion.trouble, None);
        let bad = parse("f".into(), &["ann\n!!\n".to_owned()]);
        assert_eq!(addresses(&bad), ["ann:7433"]);
        assert!(bad.trouble.unwrap().starts_with("line 2: `!!`"));
    }

    #[test]
    fn a_directory_is_the_sum_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), "bob\n").unwrap();
        std::fs::write(dir.path().join("a"), "ann:1\n").unwrap();
        std::fs::write(dir.path().join(".tmp"), "half writ").unwrap();
        let watched = |path| Watched { name: "d".to_owned(), path };
        assert_eq!(addresses(&watched(dir.path().to_owned()).read().0), ["ann:1", "bob:7433"]);
        let (none, is_certain) = watched(dir.path().join("none")).read();
        assert!(none.trouble.is_some() && is_certain);
        let (file, is_certain) = watched(dir.path().join("a/b")).read();
        assert!(file.trouble.is_some() && !is_certain);
    }
}
