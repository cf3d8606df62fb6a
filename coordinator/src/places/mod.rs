//! Where workers may be: each source suggests addresses, the handshake decides.

mod address;
mod dns;
mod file;
mod fixed;
mod mdns;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use widemap_common::ids::Incarnation;

pub(crate) use address::{
    AddressError, COORDINATOR_PORT, WORKER_PORT, parse, parse_coordinator, parse_name,
};
pub(crate) use dns::Dns;
pub(crate) use file::Watched;
pub(crate) use fixed::Fixed;
pub(crate) use mdns::{Mdns, NAME as MDNS, judge};

/// All places that one source names at this moment, or why it names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suggestion {
    /// The source, as a person calls it: `--worker`, `--workers-file hosts`.
    pub(crate) source: String,
    /// What it names.
    pub(crate) places: Vec<Place>,
    /// Whether it only tells what it has heard: then whether a worker lives is its session's to say,
    /// and one that is named no more is used on.
    pub(crate) hints: bool,
    /// What it names and is not worth dialling.
    pub(crate) unused: Vec<Unused>,
    /// What is wrong with the source, if something is.
    pub(crate) trouble: Option<String>,
}

/// Where one worker may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// `HOST:PORT` each, at least one, the best first; all of them lead to one worker.
    pub(crate) addresses: Vec<String>,
    /// Which worker that is, as far as the source knows.
    pub(crate) incarnation: Option<Incarnation>,
}

/// What a source names and is not worth dialling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unused {
    /// What it is called.
    pub(crate) place: String,
    /// Why.
    pub(crate) why: String,
}

/// A source of places.
#[tonic::async_trait]
pub(crate) trait Source: std::fmt::Debug + Send {
    /// What a person calls it.
    fn name(&self) -> &str;

    /// Sends what it names, now and at each change, until nobody wants to know.
    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>);
}

impl Place {
    /// A place of one address.
    pub(crate) fn at(address: String) -> Self {
        Self { addresses: vec![address], incarnation: None }
    }

    /// The place, for a person.
    pub(crate) fn shown(&self) -> &str {
        self.addresses.first().map_or("?", String::as_str)
    }

    /// Whether both lead to one worker: all addresses of one are among those of the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let among =
            |few: &Self, many: &Self| few.addresses.iter().all(|a| many.addresses.contains(a));
        among(self, other) || among(other, self)
    }
}

/// Starts a task for each source among `tasks`; each sends a suggestion at once and whenever it
/// changes.
pub(crate) fn watch(
    sources: Vec<Box<dyn Source>>,
    tasks: &mut JoinSet<()>,
    suggestions: &mpsc::Sender<Suggestion>,
) {
    for source in sources {
        tasks.spawn(source.watch(suggestions.clone()));
    }
}
