//! What is only heard decides nothing. The links of these fleets are never polled: nothing is dialled.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use widemap_common::limits::HINTED_LINKS_MAX;
use widemap_common::time::Timers;
use widemap_proto::VERSION;

use super::*;
use crate::places::Suggestion;
use crate::session::Trust;

const FLAG: &str = "--worker";
const MDNS: &str = "mDNS";

fn fleet() -> Fleet {
    let greeting = Greeting::of_visitor(Trust::default(), Timers::default());
    let (events, _) = mpsc::channel(1);
    Fleet::new(greeting, None, [FLAG, MDNS].map(str::to_owned), events)
}

fn place(addresses: &[&str], incarnation: Option<u64>) -> Place {
    let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
    Place { addresses, incarnation: incarnation.map(Incarnation) }
}

fn hello(incarnation: u64) -> WorkerHello {
    WorkerHello {
        version: VERSION,
        build: "test".to_owned(),
        name: format!("w{incarnation}"),
        incarnation: Incarnation(incarnation),
        slots: 1,
        runtimes: Vec::new(),
        labels: BTreeMap::new(),
        functions: Vec::new(),
        left_out: None,
        clock_ms: None,
    }
}

impl Fleet {
    fn told(&mut self, source: &str, places: &[Place]) {
        let suggestion = Suggestion {
            source: source.to_owned(),
            places: places.to_vec(),
            hints: source == MDNS,
            unused: Vec::new(),
            trouble: None,
        };
        self.follow(suggestion);
    }

    /// The addresses of each link.
    fn dialled(&self) -> Vec<Vec<&str>> {
        let mut dialled: Vec<Vec<&str>> = Vec::new();
        for state in self.links.values() {
            dialled.push(state.place.addresses.iter().map(String::as_str).collect());
        }
        dialled.sort();
        dialled
    }

    /// This life of a worker answers at an address of the place that begins with `first`.
    fn answers(&mut self, first: &str, address: &str, incarnation: u64) -> Vec<Event> {
        let mut links = self.links.iter();
        let (&link, state) =
            links.find(|(_, state)| state.place.shown() == first).expect("it is dialled");
        let stream = state.link.outbox.begin_stream();
        let mut events = Vec::new();
        self.attached(
            Time::ZERO,
            link,
            stream,
            address.to_owned(),
            hello(incarnation),
            &mut events,
        );
        events
    }
}

#[tokio::test]
async fn a_lie_about_who_is_somewhere_keeps_nobody_from_being_dialled() {
    let mut fleet = fleet();
    fleet.told(FLAG, &[place(&["a:1"], None)]);
    fleet.answers("a:1", "a:1", 1);
    // Somebody says that the worker at `a` is at `b`, too.
    fleet.told(MDNS, &[place(&["b:1"], Some(1))]);
    assert_eq!(fleet.dialled(), [["a:1"]]);
    // It is another one that is there: by its own word, or by that of a person.
    fleet.told(MDNS, &[place(&["b:1"], Some(1)), place(&["b:1"], Some(2))]);
    assert_eq!(fleet.dialled(), [["a:1"], ["b:1"]]);
    fleet.told(FLAG, &[place(&["a:1"], None), place(&["c:1"], None)]);
    assert_eq!(fleet.dialled(), [["a:1"], ["b:1"], ["c:1"]]);
}

#[tokio::test]
async fn what_is_only_heard_earns_no_work_for_one_that_is_named_no_more() {
    let mut fleet = fleet();
    fleet.told(FLAG, &[place(&["a:1"], None)]);
    fleet.answers("a:1", "a:1", 1);
    fleet.told(MDNS, &[place(&["b:1"], Some(1))]);
    let worker = fleet.workers().next().expect("it is attached").0;
    assert_eq!(fleet.credit(worker).slots, 1);
    fleet.told(FLAG, &[]);
    assert_eq!(fleet.credit(worker).slots, 0);
}

#[tokio::test]
async fn a_place_of_many_addresses_stands_for_no_other() {
    let mut fleet = fleet();
    fleet.told(MDNS, &[place(&["a:1", "b:1"], Some(9))]);
    let all = [place(&["a:1", "b:1"], Some(9)), place(&["a:1"], Some(1)), place(&["b:1"], Some(2))];
    fleet.told(MDNS, &all);
    assert_eq!(fleet.dialled(), [vec!["a:1"], vec!["a:1", "b:1"], vec!["b:1"]]);
}

#[tokio::test]
async fn no_announcement_takes_the_stream_of_a_worker_that_is_attached() {
    let mut fleet = fleet();
    fleet.told(MDNS, &[place(&["a:1", "a6:1"], Some(1))]);
    fleet.answers("a:1", "a:1", 1);
    let own = place(&["a:1", "a6:1"], Some(1));
    fleet.told(MDNS, &[own, place(&["a:1"], Some(7)), place(&["a:1", "x:1"], Some(8))]);
    assert_eq!(fleet.dialled(), [vec!["a:1", "a6:1"], vec!["x:1"]]);
}

#[tokio::test]
async fn another_life_is_a_proof_of_death_only_at_the_same_address() {
    let mut fleet = fleet();
    fleet.told(FLAG, &[place(&["name:1"], None)]);
    fleet.answers("name:1", "10.0.0.1:1", 1);
    let events = fleet.answers("name:1", "10.0.0.2:1", 2);
    assert!(matches!(events[..], [Event::WorkerCut { .. }]), "{events:?}");
    let events = fleet.answers("name:1", "10.0.0.2:1", 3);
    assert!(
        matches!(events[..], [Event::WorkerDead { proof: DeathProof::Proved, .. }]),
        "{events:?}"
    );
}

#[tokio::test]
async fn other_places_of_a_worker_that_cannot_be_reached_are_tried() {
    let mut fleet = fleet();
    fleet.told(FLAG, &[place(&["a:1"], None), place(&["b:1"], None)]);
    fleet.answers("a:1", "a:1", 1);
    fleet.answers("b:1", "b:1", 1);
    assert_eq!(fleet.dialled(), [["b:1"]], "one worker has one link");
    let (&link, _) = fleet.links.iter().next().expect("there is one");
    let mut events = Vec::new();
    fleet.cut(Time::ZERO, link, "gone".to_owned(), false, &mut events);
    fleet.unreachable(Time::ZERO, link, DialError::NoRoute, &mut events);
    assert_eq!(fleet.dialled(), [["a:1"], ["b:1"]]);
    fleet.answers("a:1", "a:1", 1);
    assert_eq!(fleet.dialled(), [["a:1"]]);
    assert_eq!(fleet.workers().count(), 1);
}

#[tokio::test]
async fn a_worker_that_has_left_is_dialled_no_more_though_it_is_still_announced() {
    let mut fleet = fleet();
    let both = [place(&["a:1"], Some(1)), place(&["b:1"], Some(2))];
    fleet.told(MDNS, &both);
    fleet.answers("a:1", "a:1", 1);
    let (&link, _) =
        fleet.links.iter().find(|(_, state)| state.place.shown() == "a:1").expect("it is dialled");
    let worker = fleet.worker_of(link).expect("it is attached");
    fleet.worker_mut(worker).expect("it is known").is_leaving = true;
    let mut events = Vec::new();
    fleet.cut(Time::ZERO, link, "it has ended".to_owned(), true, &mut events);
    assert!(matches!(events[..], [Event::WorkerDead { proof: DeathProof::Drained, .. }]));
    assert_eq!(fleet.dialled(), [["b:1"]]);
    fleet.told(MDNS, &both);
    assert_eq!(fleet.dialled(), [["b:1"]]);
    // Its next life is another one, and whom a person names is dialled in any case.
    fleet.told(MDNS, &[place(&["a:1"], Some(3))]);
    assert_eq!(fleet.dialled(), [["a:1"]]);
    fleet.told(FLAG, &[place(&["a:1"], None), place(&["c:1"], Some(1))]);
    assert_eq!(fleet.dialled(), [["a:1"], ["c:1"]]);
}

#[tokio::test]
async fn an_announced_place_that_hangs_up_makes_way_for_the_next() {
    let mut fleet = fleet();
    let names: Vec<_> = (0..=HINTED_LINKS_MAX).map(|number| format!("h{number}:1")).collect();
    let places: Vec<_> = names.iter().map(|name| place(&[name.as_str()], None)).collect();
    fleet.told(MDNS, &places);
    let dialled = |fleet: &Fleet| -> BTreeSet<String> {
        fleet.links.values().map(|state| state.place.shown().to_owned()).collect()
    };
    let before = dialled(&fleet);
    assert_eq!(before.len(), HINTED_LINKS_MAX);
    let (&link, state) = fleet.links.iter().next().expect("there are many");
    let hung_up = state.place.shown().to_owned();
    fleet.cut(Time::ZERO, link, "it hung up".to_owned(), false, &mut Vec::new());
    let after = dialled(&fleet);
    assert_eq!(after.len(), HINTED_LINKS_MAX);
    assert!(!after.contains(&hung_up));
    let next = names.iter().find(|&name| !before.contains(name)).expect("one has waited");
    assert!(after.contains(next));
    assert_eq!(fleet.untried(), 1);
}

/// Tasks end when they are polled, and are joined when the next one starts.
async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_tasks_of_links_are_joined_as_they_end() {
    let mut fleet = fleet();
    for number in 1..=5 {
        fleet.told(FLAG, &[place(&[&format!("h{number}:1")], None)]);
        assert_eq!(fleet.tasks.len(), 1);
        // It is let go, and its task ends at its next turn.
        fleet.told(FLAG, &[]);
        turns().await;
    }
}

#[tokio::test]
#[should_panic(expected = "a bug in a link")]
async fn a_panic_in_the_task_of_a_link_comes_out() {
    let mut fleet = fleet();
    fleet.tasks.spawn(async { panic!("a bug in a link") });
    turns().await;
    fleet.told(FLAG, &[place(&["a:1"], None)]);
}
