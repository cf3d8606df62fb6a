//! Where workers may be: each source suggests addresses, the handshake decides. Later sources (DNS,
//! mDNS) join here, behind the same [`Suggestion`].

mod address;
mod file;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub(crate) use address::parse;

/// How often a watched file or directory is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// All places that one source names at this moment, or why it names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suggestion {
    /// The source, as a person calls it: `--worker`, `--workers-file hosts`.
    pub(crate) source: String,
    /// `HOST:PORT` each.
    pub(crate) addresses: Vec<String>,
    /// What is wrong with the source, if something is.
    pub(crate) trouble: Option<String>,
}

/// A source of places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Named one by one.
    Fixed { name: String, addresses: Vec<String> },
    /// A file with an address a line, or a directory of such files; watched.
    Watched { path: PathBuf },
}

/// Starts a task for each source among `tasks`; each sends a suggestion at once and whenever it
/// changes.
pub(crate) fn watch(
    sources: Vec<Source>,
    tasks: &mut JoinSet<()>,
    suggestions: &mpsc::Sender<Suggestion>,
) {
    for source in sources {
        let suggestions = suggestions.clone();
        tasks.spawn(async move {
            match source {
                Source::Fixed { name, addresses } => {
                    let fixed = Suggestion { source: name, addresses, trouble: None };
                    // If the driver is gone, nobody asks for places any more.
                    let _ = suggestions.send(fixed).await;
                }
                Source::Watched { path } => file::watch(path, suggestions).await,
            }
        });
    }
}
