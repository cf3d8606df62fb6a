//! Where a map runs: on another subnet, by DNS, by a watched directory; and which of all that is said
//! counts.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use widemap_tests::{
    MapProcess, NameServer, Network, Run, WorkerProcess, eventually, eventually_within, run,
    widemap, worker,
};

use crate::support::{Key, Log, announced, counted, map, numbers};

/// A worker that mDNS does not reach is used where it is named.
#[test]
fn a_worker_on_another_subnet_is_used_by_its_address() {
    let test = "a_worker_on_another_subnet_is_used_by_its_address";
    let Some(mut network) = Network::new(test) else { return };
    let (key, home, host) = (Key::new(), network.host(), network.host_beyond());
    let _ann = announced(&host, "ann", 1, &key, &[]);
    let key = ["--key", key.path()];
    let nobody = map(&[&key, &["--wait-workers", "1s"]], &["echo"]);
    let nobody = run(home.inside(&nobody), b"1\n").exits(3);
    assert!(nobody.stderr.contains("mDNS"), "{}", nobody.stderr);
    let named = map(&[&key, &["--worker", host.address()]], &["echo"]);
    let done = run(home.inside(&named), numbers(1..=20).as_bytes()).exits(0);
    assert_eq!(done.text(), numbers(1..=20));
}

/// A name of several addresses of both kinds, one of them on another subnet and added while the map runs.
#[test]
fn workers_of_a_dns_name_are_used_also_one_that_is_added() {
    let test = "workers_of_a_dns_name_are_used_also_one_that_is_added";
    let Some(mut network) = Network::new(test) else { return };
    let (key, log) = (Key::new(), Log::new());
    let (home, ann, bob) = (network.host(), network.host(), network.host());
    let far = network.host_beyond();
    home.add_address("fd00::1/64");
    bob.add_address("fd00::3/64");
    let names = NameServer::on(&home);
    home.asks_for_names(home.address());
    names.add("workers.test", ann.address());
    names.add("workers.test", "fd00::3");
    let _ann = announced(&ann, "ann", 1, &key, &["--no-mdns"]);
    let _bob = announced(&bob, "bob", 1, &key, &["--no-mdns", "--listen", "[fd00::3]:7433"]);
    let _cid = announced(&far, "cid", 1, &key, &["--no-mdns"]);
    let options = ["--key", key.path(), "--dns", "workers.test", "--chunk", "1"];
    let command = map(&[&options], &log.naming("sleep 0.1"));
    let map = MapProcess::start(home.inside(&command), numbers(1..=100));
    eventually("both are used", || log.names(), |used| used.len() == 2);
    names.add("workers.test", far.address());
    let added = Instant::now();
    let bound = Duration::from_secs(6);
    eventually_within(bound, "the added one is used", || log.names(), |used| used.len() == 3);
    println!("an address was used {:.2?} after it was added to a name", added.elapsed());
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=100));
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

#[test]
fn a_name_that_does_not_exist_is_told() {
    let Some(mut network) = Network::new("a_name_that_does_not_exist_is_told") else { return };
    let home = network.host();
    let _names = NameServer::on(&home);
    home.asks_for_names(home.address());
    let options = ["--insecure", "--dns", "nowhere.test", "--wait-workers", "1s"];
    let done = run(home.inside(&map(&[&options], &["echo"])), b"1\n").exits(3);
    insta::assert_snapshot!(told(&done));
}

/// Workers of `--register DIR` come and go in a directory that a map watches.
#[test]
fn workers_of_a_watched_directory_come_and_go() {
    let (log, directory) = (Log::new(), tempfile::tempdir().unwrap());
    let path = directory.path().to_str().unwrap();
    let registered = |name: &str| {
        let options = ["--listen", "127.0.0.1:0", "--register", path];
        let mut command = worker(name, 1, &options);
        command.env("USER", name);
        WorkerProcess::spawn(command)
    };
    let files = || std::fs::read_dir(path).unwrap().count();
    let mut ann = registered("ann");
    let options = ["--workers-file", path, "--chunk", "1"];
    let map = MapProcess::start(map(&[&options], &log.naming("sleep 0.05")), numbers(1..=100));
    eventually("ann is used", || log.names(), |used| used.contains_key("ann"));
    let _bob = registered("bob");
    eventually("bob is used", || log.names(), |used| used.contains_key("bob"));
    assert_eq!(files(), 2);
    ann.signal(Signal::TERM);
    assert_eq!(ann.exit_status(), 0);
    assert_eq!(files(), 1);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=100));
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

/// What a run said, without the times that differ.
fn told(done: &Run) -> String {
    let mut told = format!("exit {}\n", done.status);
    for line in done.stderr.lines() {
        let words = line.split(' ').map(|word| match word.parse::<f64>() {
            Ok(_) if word.contains('.') => "#.#",
            _ => word,
        });
        told += &(words.collect::<Vec<_>>().join(" ") + "\n");
    }
    told
}

/// A user who has said nothing yet but what a story gives: a configuration directory of its own, and
/// a host of its own for what is asked of the network.
struct User {
    directory: tempfile::TempDir,
    home: widemap_tests::Host,
    _network: Network,
}

impl User {
    fn new(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let home = network.host();
        Some(Self { directory: tempfile::tempdir().unwrap(), home, _network: network })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("widemap").join(name)
    }

    fn has_key(&self) {
        let _ = run(self.command(&["key", "new"], &[]), b"").exits(0);
    }

    fn command(&self, words: &[&str], variables: &[(&str, &str)]) -> std::process::Command {
        let mut command = widemap(words);
        command.env("XDG_CONFIG_HOME", self.directory.path());
        command.envs(variables.iter().copied());
        self.home.inside(&command)
    }

    /// What a map of one item that this user starts says, in the words of a snapshot.
    fn maps(&self, options: &[&str], variables: &[(&str, &str)]) -> String {
        let words = [&["map"], options, &["--", "echo"]].concat();
        let done = run(self.command(&words, variables), b"1\n");
        if done.status == 0 {
            assert_eq!(done.text(), "1\n");
        }
        told(&done).replace(self.directory.path().to_str().unwrap(), "CONFIG")
    }
}

#[test]
fn without_a_place_and_a_key_it_is_this_machine() {
    let Some(user) = User::new("without_a_place_and_a_key_it_is_this_machine") else { return };
    let said = user.maps(&["-j", "1"], &[]);
    assert!(said.contains("this machine only"), "{said}");
    insta::assert_snapshot!(said);
}

#[test]
fn with_a_key_and_nobody_there_the_network_was_asked() {
    let test = "with_a_key_and_nobody_there_the_network_was_asked";
    let Some(user) = User::new(test) else { return };
    user.has_key();
    let said = user.maps(&["--wait-workers", "2s"], &[]);
    assert!(said.starts_with("exit 3\n") && said.contains("mDNS: no worker is"), "{said}");
    insta::assert_snapshot!(said);
}

#[test]
fn with_a_key_and_mdns_turned_off_there_is_nobody_to_ask() {
    let test = "with_a_key_and_mdns_turned_off_there_is_nobody_to_ask";
    let Some(user) = User::new(test) else { return };
    user.has_key();
    insta::assert_snapshot!(user.maps(&["--no-mdns"], &[]));
}

#[test]
fn mdns_is_not_asked_without_a_key() {
    let Some(user) = User::new("mdns_is_not_asked_without_a_key") else { return };
    let said = user.maps(&["--mdns"], &[]);
    assert!(said.starts_with("exit 2\n"), "{said}");
    insta::assert_snapshot!(said);
}

/// Flags before the environment before the file; a named place turns mDNS off, unless it is asked for.
#[test]
fn the_highest_level_that_names_a_place_counts() {
    let Some(user) = User::new("the_highest_level_that_names_a_place_counts") else { return };
    user.has_key();
    let file = user.path("widemap.toml");
    std::fs::write(file, "workers = [\"127.0.0.1:3\"]\nwait-workers = \"400ms\"\n").unwrap();
    let variables = [("WIDEMAP_WORKERS", "127.0.0.1:2")];
    let flags = ["--worker", "127.0.0.1:1"];
    let mdns = ["--worker", "127.0.0.1:1", "--mdns"];
    let asked = |said: &str| {
        let places = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "mDNS"];
        places.into_iter().filter(|place| said.contains(place)).collect::<Vec<_>>().join(" ")
    };
    for (options, variables, want) in [
        (&flags[..], &variables[..], "127.0.0.1:1"),
        (&mdns, &variables, "127.0.0.1:1 mDNS"),
        (&[], &variables, "127.0.0.1:2"),
        (&[], &[], "127.0.0.1:3"),
    ] {
        let said = user.maps(options, variables);
        assert!(said.starts_with("exit 3\n"), "{said}");
        assert_eq!(asked(&said), want, "{said}");
    }
    insta::assert_snapshot!(user.maps(&mdns, &variables));
}

#[test]
fn a_key_that_cannot_be_used_is_told_and_never_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(user) = User::new("a_key_that_cannot_be_used_is_told_and_never_shown") else { return };
    user.has_key();
    let key = user.path("key");
    let text = std::fs::read_to_string(&key).unwrap();
    let text = text.lines().last().unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let loose = user.maps(&[], &[]);
    let as_variable = user.maps(&[], &[("WIDEMAP_KEY", text)]);
    let missing = user.maps(&["--key", "/nonexistent/key"], &[]);
    let said = [loose, as_variable, missing].concat();
    assert!(!said.contains(text), "{said}");
    insta::assert_snapshot!(said);
}

/// A key that this user cannot look at may be there: without a word that none is wanted, nothing runs
/// here.
#[test]
fn a_key_that_cannot_be_looked_at_is_no_reason_to_run_here() {
    let directory = tempfile::tempdir().unwrap();
    let hidden = directory.path().join("widemap");
    // Nobody can follow it, root neither, as others cannot enter a directory of root.
    std::os::unix::fs::symlink(&hidden, &hidden).unwrap();
    let maps = |options: &[&str]| {
        let mut command = map(&[&["-j", "1"], options], &["echo"]);
        command.env("XDG_CONFIG_HOME", directory.path());
        run(command, b"1\n")
    };
    let refused = maps(&[]).exits(2);
    assert_eq!(refused.text(), "");
    insta::assert_snapshot!(refused.stderr.replace(directory.path().to_str().unwrap(), "CONFIG"));
    for said in [["--local", "1"].as_slice(), &["--insecure"]] {
        assert_eq!(maps(said).exits(0).text(), "1\n");
    }
}
