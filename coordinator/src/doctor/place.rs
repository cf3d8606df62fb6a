//! The workers that are named or found: gathers them from their sources, and asks each of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use widemap_common::limits::{DOCTOR_ASKED_MAX, DOCTOR_LISTEN_MS, DRIVER_QUEUE, WORKERS_MAX};

use super::worker::{Answer, Fault, ask};
use crate::places::{self, MDNS, Place, Source, Suggestion};
use crate::session::Greeting;

/// A place, who names it, and what it answers.
#[derive(Debug)]
pub(super) struct Asked {
    /// Where it is.
    pub(super) place: Place,
    /// The sources that name it.
    pub(super) sources: Vec<String>,
    /// Whether a person has named it: then it is meant to answer.
    pub(super) is_named: bool,
    /// What it has answered.
    pub(super) answer: Result<Answer, Fault>,
}

/// A place that has not been asked.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    place: Place,
    sources: Vec<String>,
    is_named: bool,
}

/// What each source names, the last that it has said within `limit`. mDNS has a second of its own.
pub(super) async fn gather(sources: Vec<Box<dyn Source>>, limit: Duration) -> Vec<Suggestion> {
    let (suggest, mut suggestions) = mpsc::channel(DRIVER_QUEUE);
    let names: Vec<_> = sources.iter().map(|source| source.name().to_owned()).collect();
    let mut watchers = JoinSet::new();
    places::watch(sources, &mut watchers, &suggest);
    let begun = Instant::now();
    let listen = begun + Duration::from_millis(DOCTOR_LISTEN_MS);
    let mut told: BTreeMap<String, Suggestion> = BTreeMap::new();
    loop {
        let is_told = names.iter().all(|name| name == MDNS || told.contains_key(name));
        let has_listened = Instant::now() >= listen || !names.iter().any(|name| name == MDNS);
        if is_told && has_listened {
            break;
        }
        let until = if is_told { listen } else { begun + limit.max(listen - begun) };
        match tokio::time::timeout_at(until, suggestions.recv()).await {
            Ok(Some(suggestion)) => {
                told.insert(suggestion.source.clone(), suggestion);
            }
            Ok(None) => break,
            Err(_) if is_told => {}
            Err(_) => break,
        }
    }
    watchers.shutdown().await;
    told.into_values().collect()
}

/// Asks all places, some at a time; in the order of the suggestions.
pub(super) async fn ask_all(suggestions: &[Suggestion], greeting: &Greeting) -> Vec<Asked> {
    let room = Arc::new(Semaphore::new(DOCTOR_ASKED_MAX));
    let mut asking = JoinSet::new();
    for (number, named) in merge(suggestions).into_iter().enumerate() {
        let (room, greeting) = (room.clone(), greeting.clone());
        asking.spawn(async move {
            // It is closed by nobody.
            let _turn = room.acquire().await;
            let answer = ask(named.place.addresses.clone(), greeting).await;
            let Named { place, sources, is_named } = named;
            (number, Asked { place, sources, is_named, answer })
        });
    }
    let mut asked = asking.join_all().await;
    asked.sort_by_key(|(number, _)| *number);
    asked.into_iter().map(|(_, asked)| asked).collect()
}

/// Each place once, with all who name it.
fn merge(suggestions: &[Suggestion]) -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    for suggestion in suggestions {
        for place in &suggestion.places {
            let source = suggestion.source.clone();
            if let Some(named) = all.iter_mut().find(|named| named.place.is_same(place)) {
                named.sources.push(source);
                named.is_named |= !suggestion.hints;
            } else if all.len() < WORKERS_MAX {
                let (place, sources) = (place.clone(), vec![source]);
                all.push(Named { place, sources, is_named: !suggestion.hints });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_two_sources_is_asked_once() {
        let suggestion = |source: &str, hints, addresses: &[&str]| Suggestion {
            source: source.to_owned(),
            places: addresses.iter().map(|a| Place::at((*a).to_owned())).collect(),
            hints,
            unused: Vec::new(),
            trouble: None,
        };
        let merged = merge(&[
            suggestion("mDNS", true, &["10.0.0.1:7433", "10.0.0.2:7433"]),
            suggestion("--worker", false, &["10.0.0.2:7433"]),
        ]);
        let shown: Vec<_> =
            merged.iter().map(|m| (m.place.shown(), m.sources.join(","), m.is_named)).collect();
        let want = [
            ("10.0.0.1:7433", "mDNS".to_owned(), false),
            ("10.0.0.2:7433", "mDNS,--worker".to_owned(), true),
        ];
        assert_eq!(shown, want);
    }
}
