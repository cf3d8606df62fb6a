//! `--workers-file`: a file with an address a line, or a directory whose files are such files (a
//! worker's `--register DIR` writes them). Read again and again, so that workers come and go.
//!
//! A file that is not there names nobody. Of one that cannot be read nobody knows what it names now:
//! what it named last stays, since it may be readable again in a moment, as a disk on a network is.

use std::collections::BTreeMap;
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

/// What each file named when it was read last.
type Named = BTreeMap<PathBuf, Vec<Place>>;

#[tonic::async_trait]
impl Source for Watched {
    fn name(&self) -> &str {
        &self.name
    }

    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>) {
        let (mut last, mut named) = (None, Named::new());
        loop {
            let watched = self.clone();
            // A file on a network may hang: it is read where that blocks nobody.
            let looking = tokio::task::spawn_blocking(move || {
                let trouble = watched.read(&mut named);
                (named, trouble)
            });
            let Ok((read, trouble)) = looking.await else { return };
            named = read;
            let now = self.suggestion(&named, trouble);
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
    /// Brings what is named up to date; tells what is wrong, if something is.
    fn read(&self, named: &mut Named) -> Option<String> {
        let (files, in_directory) = match files(&self.path) {
            Ok(found) => found,
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    named.clear();
                }
                return Some(error.to_string());
            }
        };
        named.retain(|file, _| files.contains(file));
        let mut troubles = Vec::new();
        for file in files {
            let problem = match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let (places, problem) = parse(&text);
                    named.insert(file.clone(), places);
                    problem
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    named.remove(&file);
                    // One that a leaving worker removes meanwhile is as good as not there.
                    (!in_directory).then(|| error.to_string())
                }
                Err(error) => Some(format!("cannot be read: {error}")),
            };
            let shown = |problem| match in_directory {
                true => format!("{}: {problem}", file.display()),
                false => problem,
            };
            troubles.extend(problem.map(shown));
        }
        let others = troubles.len().saturating_sub(1);
        let first = troubles.into_iter().next()?;
        Some(if others == 0 { first } else { format!("{first} (and {others} more like it)") })
    }

    fn suggestion(&self, named: &Named, trouble: Option<String>) -> Suggestion {
        let mut places: Vec<Place> = Vec::new();
        for place in named.values().flatten() {
            if !places.contains(place) {
                places.push(place.clone());
            }
        }
        let (source, unused) = (self.name.clone(), Vec::new());
        Suggestion { source, places, hints: false, unused, trouble }
    }
}

/// The files that are read, and whether they are those of a directory.
fn files(path: &Path) -> io::Result<(Vec<PathBuf>, bool)> {
    if !path.metadata()?.is_dir() {
        return Ok((vec![path.to_owned()], false));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // What cannot be looked at is said when it is read.
        let is_other = entry.path().metadata().is_ok_and(|metadata| !metadata.is_file());
        if !is_hidden && !is_other {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok((files, true))
}

/// The addresses of a file, and the last line of it that is none. Blank lines and what follows `#` are
/// passed over.
fn parse(text: &str) -> (Vec<Place>, Option<String>) {
    let (mut places, mut problem) = (Vec::new(), None);
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match address::parse(line).map(Place::at) {
            Ok(place) if places.contains(&place) => {}
            Ok(place) => places.push(place),
            Err(error) => problem = Some(format!("line {}: {error}", index + 1)),
        }
    }
    (places, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(places: &[Place]) -> Vec<&str> {
        places.iter().map(Place::shown).collect()
    }

    fn watched(path: PathBuf) -> Watched {
        Watched { name: "d".to_owned(), path }
    }

    #[test]
    fn a_file_names_an_address_a_line() {
        let text = "# the lab\nann\nbob:99  # by the window\n\nann\n";
        let (places, problem) = parse(text);
        assert_eq!(addresses(&places), ["ann:7433", "bob:99"]);
        assert_eq!(problem, None);
        let (places, problem) = parse("ann\n!!\n");
        assert_eq!(addresses(&places), ["ann:7433"]);
        assert!(problem.unwrap().starts_with("line 2: `!!`"));
    }

    #[test]
    fn a_directory_is_the_sum_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), "bob\nann:1\n").unwrap();
        std::fs::write(dir.path().join("a"), "ann:1\n").unwrap();
        std::fs::write(dir.path().join(".tmp"), "half writ").unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        let (source, mut named) = (watched(dir.path().to_owned()), Named::new());
        let mut read = || {
            let trouble = source.read(&mut named);
            source.suggestion(&named, trouble)
        };
        let both = read();
        assert_eq!((addresses(&both.places), both.trouble), (vec!["ann:1", "bob:7433"], None));
        std::fs::remove_file(dir.path().join("b")).unwrap();
        assert_eq!(addresses(&read().places), ["ann:1"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_changes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (ann, bob) = (dir.path().join("ann"), dir.path().join("bob"));
        std::fs::write(&ann, "ann:1\n").unwrap();
        std::fs::write(&bob, "bob:1\n").unwrap();
        let (source, mut named) = (watched(dir.path().to_owned()), Named::new());
        assert_eq!(source.read(&mut named), None);
        // No text: nobody can read it, whoever runs the test.
        std::fs::write(&bob, b"\xff\n").unwrap();
        std::fs::write(&ann, "ann:2\ncid:3\n").unwrap();
        let trouble = source.read(&mut named);
        let suggestion = source.suggestion(&named, trouble);
        assert_eq!(addresses(&suggestion.places), ["ann:2", "cid:3", "bob:1"]);
        let said = suggestion.trouble.unwrap();
        assert!(said.starts_with(&format!("{}: cannot be read: ", bob.display())), "{said}");
        std::fs::write(&bob, "!!\n").unwrap();
        std::fs::write(dir.path().join("cid"), "!!\n").unwrap();
        let said = source.read(&mut named).unwrap();
        assert!(said.contains("bob: line 1: `!!`") && said.ends_with("(and 1 more like it)"));
        assert_eq!(addresses(&source.suggestion(&named, None).places), ["ann:2", "cid:3"]);
    }

    #[test]
    fn what_is_not_there_names_nobody_and_what_cannot_be_looked_at_whom_it_did() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let (source, mut named) = (watched(path.clone()), Named::new());
        std::fs::write(&path, "ann:1\n").unwrap();
        assert_eq!(source.read(&mut named), None);
        std::fs::remove_file(&path).unwrap();
        // A link to itself can be followed by nobody.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(source.read(&mut named).is_some());
        assert_eq!(addresses(&source.suggestion(&named, None).places), ["ann:1"]);
        std::fs::remove_file(&path).unwrap();
        assert!(source.read(&mut named).is_some());
        assert_eq!(source.suggestion(&named, None).places, []);
    }
}
