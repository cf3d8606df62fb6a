//! Where a map runs, decided from what is said.

use super::*;

fn workers(name: &str) -> Level {
    Level { workers: fixed(name.to_owned(), vec!["ann:7433".to_owned()]), ..Level::default() }
}

fn nothing() -> Level {
    Level::default()
}

#[test]
fn the_highest_level_that_names_a_place_replaces_the_lower_ones() {
    let (flags, environment, file) = (workers("flag"), workers("variable"), workers("file"));
    let of = |levels: [&Level; 3]| decide(&levels.map(Clone::clone), false, false, false).unwrap();
    assert_eq!(of([&flags, &environment, &file]), flags);
    assert_eq!(of([&nothing(), &environment, &file]), environment);
    assert_eq!(of([&nothing(), &nothing(), &file]), file);
    let local = Level { local: Some(2), ..nothing() };
    assert_eq!(of([&local, &environment, &file]), local);
}

#[test]
fn a_named_place_turns_mdns_off_unless_it_is_asked_for() {
    let of = |flags: Level| decide(&[flags, nothing(), nothing()], true, false, false).unwrap();
    assert!(!of(workers("flag")).mdns);
    assert!(!of(Level { local: Some(1), ..nothing() }).mdns);
    let both = Level { mdns: true, ..workers("flag") };
    assert_eq!(of(both.clone()), both);
    assert!(of(nothing()).mdns);
}

#[test]
fn mdns_is_asked_beside_places_of_lower_levels_and_not_if_a_flag_forbids_it() {
    let mdns = Level { mdns: true, ..nothing() };
    let both = decide(&[mdns.clone(), nothing(), workers("file")], true, false, false).unwrap();
    assert_eq!(both, Level { mdns: true, ..workers("file") });
    let forbidden = decide(&[workers("flag"), nothing(), mdns.clone()], true, false, true);
    assert_eq!(forbidden.unwrap(), workers("flag"));
    let turned_off = decide(&[workers("flag"), nothing(), mdns], true, false, false);
    assert_eq!(turned_off.unwrap(), workers("flag"));
}

#[test]
fn mdns_needs_a_key_or_insecure() {
    let mdns = || [Level { mdns: true, ..nothing() }, nothing(), nothing()];
    assert!(decide(&mdns(), true, false, false).is_ok());
    assert!(decide(&mdns(), false, true, false).is_ok());
    let refused = decide(&mdns(), false, false, false).unwrap_err();
    assert!(refused.to_string().contains("widemap key new"), "{refused}");
}

#[test]
fn without_a_place_and_a_key_it_is_this_machine() {
    let nowhere = || [nothing(), nothing(), nothing()];
    assert_eq!(decide(&nowhere(), false, false, false).unwrap(), nothing());
    assert_eq!(decide(&nowhere(), false, true, false).unwrap(), nothing());
    let stuck = decide(&nowhere(), true, false, true).unwrap_err();
    assert!(matches!(stuck, MapError::NobodyToAsk));
}

#[test]
fn only_this_host_needs_no_key() {
    for (address, loopback) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("localhost:1", true),
        ("10.0.0.1:1", false),
        ("ann:1", false),
    ] {
        assert_eq!(is_loopback(address), loopback, "{address}");
    }
}
