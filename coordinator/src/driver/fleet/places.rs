//! What the sources say, and which links follow from it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use widemap_common::ids::{Incarnation, WorkerId};
use widemap_common::limits::{ECHOES_MAX, HINTED_LINKS_MAX, WORKERS_MAX};
use widemap_common::time::Time;
use widemap_proto::session::Credit;

use super::hints::Hint;
use super::{Echo, Fleet, LinkState, LinkStatus, Worker};
use crate::error::Mismatch;
use crate::places::{Place, Suggestion, Unused};
use crate::session::{Dial, LinkId};

/// The sources that name a place, and how they stand to it now.
pub(super) type Named = BTreeMap<String, Standing>;

/// Whether a source still names a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does.
    Current,
    /// It did, and only suggests: whether a worker lives there its session tells.
    Lapsed,
}

/// What a source said last.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// Whether it has said anything.
    heard: bool,
    /// Whether it only suggests.
    hints: bool,
    places: usize,
    unused: Vec<Unused>,
    trouble: Option<String>,
}

/// A place named by one source.
pub(super) fn named_by(source: String) -> Named {
    Named::from([(source, Standing::Current)])
}

impl Fleet {
    /// Follows a source: dials what is new in it; what no source names any more is let go once no
    /// worker is attached there.
    /// Returns the credit of the workers for which it has changed: nothing where no source names them.
    pub(crate) fn follow(&mut self, suggestion: Suggestion) -> Vec<(WorkerId, Credit)> {
        let before = self.named();
        let Suggestion { source, places, hints, unused, trouble } = suggestion;
        self.lapse(&source, hints, &places);
        let state = SourceState { heard: true, hints, places: places.len(), unused, trouble };
        self.sources.insert(source.clone(), state);
        let unknown = self.adopt(&source, hints, places);
        if hints {
            self.hints.replace(&source, unknown);
            self.try_hints();
        } else {
            for place in unknown {
                self.dial(source.clone(), place);
            }
        }
        self.let_go();
        let after = self.named();
        let changed = after.symmetric_difference(&before);
        changed.map(|&worker| (worker, self.credit(worker))).collect()
    }

    /// Places that a source does not name any more.
    fn lapse(&mut self, source: &str, hints: bool, places: &[Place]) {
        let current: HashSet<&str> =
            places.iter().flat_map(|place| &place.addresses).map(String::as_str).collect();
        let is_current =
            |place: &Place| place.addresses.iter().any(|address| current.contains(&**address));
        let links = self.links.values_mut().map(|state| {
            let lives = matches!(state.status, LinkStatus::Attached(_) | LinkStatus::Cut(..));
            (&state.place, &mut state.named, lives)
        });
        let echoes = self.echoes.iter_mut().map(|echo| (&echo.place, &mut echo.named, echo.proved));
        for (place, named, lives) in links.chain(echoes) {
            if is_current(place) || !named.contains_key(source) {
                continue;
            }
            if hints && lives {
                named.insert(source.to_owned(), Standing::Lapsed);
            } else {
                named.remove(source);
            }
        }
    }

    /// The lives of workers that have said that they leave, and have: none of them comes back.
    fn left(&self) -> HashSet<Incarnation> {
        let gone = |worker: &&Worker| worker.is_leaving && !worker.is_or_may_be_alive();
        self.workers.values().filter(gone).map(|worker| worker.hello.incarnation).collect()
    }

    /// Nobody is dialled who has left: an announcement stays known for a second after its goodbye.
    pub(super) fn forget_left(&mut self) {
        let (left, sources) = (self.left(), &self.sources);
        let is_hint = |name: &String| sources.get(name).is_some_and(|state| state.hints);
        let links = self.links.values_mut().map(|state| (&state.place, &mut state.named));
        let echoes = self.echoes.iter_mut().map(|echo| (&echo.place, &mut echo.named));
        for (place, named) in links.chain(echoes) {
            if place.incarnation.is_some_and(|incarnation| left.contains(&incarnation)) {
                named.retain(|name, _| !is_hint(name));
            }
        }
    }

    /// Notes the source with the places that have a link or lead to a worker that is attached;
    /// returns the others. What is only heard may be a lie: it may not stand for a place that somebody
    /// else names, nor lead to a worker that is attached already.
    fn adopt(&mut self, source: &str, hints: bool, places: Vec<Place>) -> Vec<Place> {
        let links = self.links.iter().map(|(&id, state)| (state.place.addresses.clone(), id));
        let links: HashMap<Vec<String>, LinkId> = links.collect();
        let (taken, left) = match hints {
            true => (self.taken(), self.left()),
            false => (HashSet::new(), HashSet::new()),
        };
        let mut unknown = Vec::new();
        for mut place in places {
            if place.incarnation.is_some_and(|incarnation| left.contains(&incarnation)) {
                continue;
            }
            let link = links.get(&place.addresses).and_then(|id| self.links.get_mut(id));
            if let Some(state) = link {
                state.named.insert(source.to_owned(), Standing::Current);
                continue;
            }
            let of_worker = place.incarnation.and_then(|i| self.attached_by_incarnation(i));
            let is_same = |echo: &&mut Echo| {
                echo.place.addresses == place.addresses
                    && (echo.proved || Some(echo.worker) == of_worker)
            };
            if let Some(echo) = self.echoes.iter_mut().find(is_same) {
                echo.named.insert(source.to_owned(), Standing::Current);
                continue;
            }
            if let Some(worker) = of_worker {
                // So it says. It is dialled when that worker is gone.
                self.echo(place, named_by(source.to_owned()), worker, false);
                continue;
            }
            place.addresses.retain(|address| !taken.contains(address));
            if !place.addresses.is_empty() {
                unknown.push(place);
            }
        }
        unknown
    }

    /// Addresses through which workers are attached, or were before another address of theirs was.
    fn taken(&self) -> HashSet<String> {
        let attached = |state: &LinkState| match state.status {
            LinkStatus::Attached(_) => state.reached.clone(),
            _ => None,
        };
        let proved = self.echoes.iter().filter(|echo| echo.proved);
        let proved = proved.flat_map(|echo| echo.place.addresses.iter().cloned());
        self.links.values().filter_map(attached).chain(proved).collect()
    }

    fn attached_by_incarnation(&self, incarnation: Incarnation) -> Option<WorkerId> {
        let worker = self.by_incarnation(incarnation)?;
        self.workers.get(&worker)?.is_attached().then_some(worker)
    }

    /// Starts a link to a place.
    fn dial(&mut self, source: String, place: Place) {
        if self.links.len() >= WORKERS_MAX {
            if let Some(state) = self.sources.get_mut(&source) {
                let trouble = format!("more than {WORKERS_MAX} places; the rest is not used");
                state.trouble = Some(trouble);
            }
            return;
        }
        let dial = Dial::Addresses(place.addresses.clone());
        self.start_link(place, dial, named_by(source));
    }

    /// Dials what was announced, so many at a time.
    pub(super) fn try_hints(&mut self) {
        if !self.hints.is_waited_for() {
            return;
        }
        let is_tried = |&(&id, _): &(&LinkId, &LinkState)| self.is_only_hinted(id);
        let mut tried = self.links.iter().filter(is_tried).count();
        while tried < HINTED_LINKS_MAX
            && let Some(Hint { source, place }) = self.hints.next()
        {
            self.dial(source, place);
            tried += 1;
        }
    }

    /// A place has not answered: another one is tried in its stead, if one waits.
    pub(super) fn make_way(&mut self, now: Time, link: LinkId) {
        if !self.hints.is_waited_for() || !self.is_only_hinted(link) {
            return;
        }
        if let Some(state) = self.links.remove(&link) {
            state.link.stop.cancel();
            if let Some((source, _)) = state.named.into_iter().next() {
                self.hints.rest(now, Hint { source, place: state.place });
            }
        }
        self.try_hints();
    }

    /// Whether nobody vouches for a place, and no worker is known to be there.
    fn is_only_hinted(&self, link: LinkId) -> bool {
        let hints = |name: &String| self.sources.get(name).is_some_and(|state| state.hints);
        self.links.get(&link).is_some_and(|state| {
            let settled = matches!(
                state.status,
                LinkStatus::Attached(_) | LinkStatus::Cut(..) | LinkStatus::Refused(_)
            );
            !settled && state.named.keys().all(hints)
        })
    }

    /// A place leads to a worker that is attached through another, or is said to.
    pub(super) fn echo(&mut self, place: Place, named: Named, worker: WorkerId, proved: bool) {
        let of_worker = self.echoes.iter().filter(|echo| echo.worker == worker).count();
        if proved || of_worker < ECHOES_MAX {
            let status = LinkStatus::Alias(worker);
            self.echoes.push(Echo { place, named, worker, status, proved });
        }
    }

    /// A worker is gone, or cannot be reached: its other places may lead to it, or to another one now.
    pub(super) fn revive_echoes(&mut self, worker: WorkerId) {
        let (revived, kept): (Vec<_>, _) =
            std::mem::take(&mut self.echoes).into_iter().partition(|echo| echo.worker == worker);
        self.echoes = kept;
        for Echo { place, mut named, .. } in revived {
            named.retain(|_, standing| *standing == Standing::Current);
            let same = |state: &&mut LinkState| state.place.addresses == place.addresses;
            if let Some(state) = self.links.values_mut().find(same) {
                state.named.extend(named);
                continue;
            }
            let is_hint = |name: &String| self.sources.get(name).is_some_and(|state| state.hints);
            match named.keys().next().cloned() {
                None => {}
                Some(source) if named.keys().all(is_hint) => {
                    self.hints.put(Hint { source, place });
                }
                Some(_) => {
                    let dial = Dial::Addresses(place.addresses.clone());
                    self.start_link(place, dial, named);
                }
            }
        }
        self.try_hints();
    }

    /// Ends links that nobody names and through which no worker lives. Nothing is said there: a
    /// session that was opened meanwhile may be one that goes on through another link.
    pub(super) fn let_go(&mut self) {
        self.links.retain(|_, state| {
            let needed = !state.named.is_empty()
                || matches!(state.status, LinkStatus::Attached(_) | LinkStatus::Cut(..));
            if !needed {
                state.link.stop.cancel();
            }
            needed
        });
        self.echoes.retain(|echo| !echo.named.is_empty());
    }

    /// Attached workers that a source names.
    fn named(&self) -> BTreeSet<WorkerId> {
        let through = |state: &LinkState| match state.status {
            LinkStatus::Attached(worker) if !state.named.is_empty() => Some(worker),
            _ => None,
        };
        let echoes = self.echoes.iter().filter(|echo| echo.proved && !echo.named.is_empty());
        self.links.values().filter_map(through).chain(echoes.map(|echo| echo.worker)).collect()
    }

    /// What a worker may be given: nothing once no source names it.
    pub(crate) fn credit(&self, worker: WorkerId) -> Credit {
        let nothing = Credit { slots: 0, queue: 0 };
        let Some(entry) = self.workers.get(&worker) else { return nothing };
        let by_link = self.links.get(&entry.link).is_some_and(|state| !state.named.is_empty());
        let by_echo = self
            .echoes
            .iter()
            .any(|echo| echo.proved && echo.worker == worker && !echo.named.is_empty());
        match by_link || by_echo {
            true => Credit { slots: self.slots(entry.credit.slots), ..entry.credit },
            false => nothing,
        }
    }

    /// Every place: the address, who names it, what is known.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, Vec<&str>, &LinkStatus)> {
        let links = self.links.values().map(|state| (&state.place, &state.named, &state.status));
        let echoes = self.echoes.iter().map(|echo| (&echo.place, &echo.named, &echo.status));
        links.chain(echoes).map(|(place, named, status)| {
            (place.shown(), named.keys().map(String::as_str).collect(), status)
        })
    }

    /// Every source that names a place, and this machine.
    pub(crate) fn sources(&self) -> Vec<&str> {
        let named: BTreeSet<&str> = self.places().flat_map(|(_, sources, _)| sources).collect();
        named.into_iter().collect()
    }

    /// Whether every source has said something.
    pub(crate) fn all_sources_heard(&self) -> bool {
        self.sources.values().all(|state| state.heard)
    }

    /// Whether every source has named all that it will name for now.
    pub(crate) fn are_all_named(&self) -> bool {
        self.sources.values().all(|state| state.heard && !state.hints)
    }

    /// Whether nobody but this machine is asked.
    pub(crate) fn is_here_only(&self) -> bool {
        self.sources.is_empty() && self.links.values().all(|state| state.embedded)
    }

    /// What sources say beside places that can be dialled: what each names and why it is not used.
    pub(crate) fn remarks(&self) -> Vec<(&str, Option<&str>, String)> {
        let mut remarks = Vec::new();
        for (source, state) in &self.sources {
            for Unused { place, why } in &state.unused {
                remarks.push((source.as_str(), Some(place.as_str()), why.clone()));
            }
            match &state.trouble {
                Some(trouble) => remarks.push((source, None, trouble.clone())),
                None if !state.heard => remarks.push((source, None, "no answer yet".to_owned())),
                None if state.places == 0 && state.unused.is_empty() => {
                    let nobody = match state.hints {
                        true => "no worker is announced there",
                        false => "it names no worker",
                    };
                    remarks.push((source, None, nobody.to_owned()));
                }
                None => {}
            }
        }
        remarks
    }

    /// What is amiss where somebody is there and is not trusted, or does not trust this side.
    pub(crate) fn meets_distrust(&self) -> Option<Mismatch> {
        let met = |state: &LinkState| match &state.status {
            LinkStatus::Unreachable(error) => error.mismatch(),
            _ => None,
        };
        let heard = |state: &SourceState| state.hints && !state.unused.is_empty();
        let met = self.links.values().find_map(met);
        met.or_else(|| self.sources.values().any(heard).then_some(Mismatch::Key))
    }

    /// How many announced places wait for their turn.
    pub(crate) fn untried(&self) -> usize {
        self.hints.len()
    }
}
