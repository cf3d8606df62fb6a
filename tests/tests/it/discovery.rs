//! Workers that announce themselves on the network: who has the key is found and used without a flag,
//! and nothing that anybody announces does harm.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode};
use hickory_resolver::proto::rr::rdata::{A, PTR, SRV, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record};
use rustix::process::Signal;
use serde_json::Value;
use widemap_cluster::mdns::{Announcer, Service};
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;
use widemap_tests::{
    Host, MapProcess, Network, Way, WorkerProcess, always_for, announced_worker, eventually,
    eventually_within, run, widemap,
};

use crate::support::{Key, Log, announced, counted, map, numbers};

/// Issue 5, scenarios 1 and 4: five workers that were told nothing but their key; one of them is
/// killed without a word, one is added, and one with another key stands by.
#[test]
fn workers_with_one_key_find_each_other_and_come_and_go() {
    let test = "workers_with_one_key_find_each_other_and_come_and_go";
    let Some(mut network) = Network::new(test) else { return };
    let (key, other, log) = (Key::new(), Key::new(), Log::new());
    let home = network.host();
    let names = ["ann", "bob", "cid", "dot", "eve"];
    let mut workers = names.map(|name| announced(&network.host(), name, 1, &key, &[]));
    let _stranger = announced(&network.host(), "stranger", 1, &other, &[]);
    let late = network.host();
    let command = map(&[&["--key", key.path(), "--chunk", "1"]], &log.naming("sleep 0.05"));
    let map = MapProcess::start(home.inside(&command), numbers(1..=500));
    eventually("all five are used", || log.names(), |used| used.len() == names.len());
    println!("five workers are found and used {:.2?} after the start", map.elapsed());
    workers[4].kill();
    let started = Instant::now();
    let _fay = announced(&late, "fay", 1, &key, &[]);
    let what = "who joins gets work";
    eventually_within(
        Duration::from_secs(5),
        what,
        || log.names(),
        |used| used.contains_key("fay"),
    );
    println!("a worker that joins gets work {:.2?} after its start", started.elapsed());
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=500));
    assert_eq!(counted(&done, "lost"), 1, "{}", done.stderr);
    assert!(!log.names().contains_key("stranger"), "{:?}", log.names());
}

/// A network on which somebody is to be found of each kind, and is not used for each reason.
struct Village {
    home: Host,
    key: Key,
    other: Key,
    silent: Host,
    _workers: Vec<WorkerProcess>,
    _announcers: Vec<Announcer>,
    _network: Network,
}

impl Village {
    fn new(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let (key, other, home, silent) = (Key::new(), Key::new(), network.host(), network.host());
        silent.drop_packets(Way::Both);
        let shown = ["--label", "gpu=a100", "--label", "zone=b"];
        let mut workers = vec![
            announced(&network.host(), "ann", 2, &key, &shown),
            announced(&network.host(), "bob", 1, &key, &["--allow", "exec,pipe"]),
            announced(&network.host(), "stranger", 1, &other, &[]),
        ];
        let open = ["--insecure", "--listen", "0.0.0.0:7433"];
        workers
            .push(WorkerProcess::spawn(network.host().inside(&announced_worker("open", 1, &open))));
        let announcers = [("newer", 9, 7433), ("gone", 1, 7499)];
        let announcers = announcers.map(|(name, major, port)| {
            let announcement = Announcement {
                name: name.to_owned(),
                protocol: (major, 0),
                incarnation: Incarnation(u64::from(port)),
                slots: 1,
                cluster: key.cluster().parse().ok(),
            };
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let start = || Announcer::start(Service::Worker, &announcement, port, any, &[]);
            network.host().on(start).expect("mDNS works there")
        });
        let announcers = announcers.into();
        Some(Self {
            home,
            key,
            other,
            silent,
            _workers: workers,
            _announcers: announcers,
            _network: network,
        })
    }

    /// What `widemap workers` lists, sorted, with what changes from run to run replaced.
    fn lists(&self, options: &[&str]) -> String {
        let places = ["--mdns", "--worker", "10.9.9.9", "--worker", self.silent.address()];
        let trust = ["--key", self.key.path(), "--timers", "connect_ms=500"];
        let listing = widemap(&[&["workers"], &places[..], &trust, options].concat());
        let done = run(self.home.inside(&listing), b"").exits(0);
        assert_eq!(done.stderr, "");
        let text = done.text().replace(&self.other.cluster(), "OTHER-CLUSTER");
        text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }
}

#[test]
fn a_listing_tells_who_is_there_and_why_somebody_is_not_used() {
    let test = "a_listing_tells_who_is_there_and_why_somebody_is_not_used";
    let Some(village) = Village::new(test) else { return };
    let listed = village.lists(&[]);
    let (head, rows) = listed.split_once('\n').unwrap();
    let plain = |row: &str| {
        let cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        let cells = cells.map(|cell| if cell.ends_with(" ms") { "# ms" } else { cell });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    let mut rows: Vec<_> = rows.lines().map(plain).collect();
    rows.sort();
    insta::assert_snapshot!(plain(head) + &rows.concat());

    let listed = village.lists(&["--format", "json"]);
    let mut rows: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in rows.iter_mut().filter(|row| !row["name"].is_null()) {
        let round_trip = row["round_trip_ms"].take();
        assert!(round_trip.as_f64().is_some_and(|ms| ms > 0.0), "{row}");
    }
    let mut rows: Vec<_> = rows.iter().map(|row| row.to_string() + "\n").collect();
    rows.sort();
    insta::assert_snapshot!(rows.concat());
}

/// Scenario 48: by mDNS, by flag, and under three addresses it is one worker, before and after a cut.
#[test]
fn one_worker_under_many_names_is_one_worker() {
    let Some(mut network) = Network::new("one_worker_under_many_names_is_one_worker") else {
        return;
    };
    let (key, log) = (Key::new(), Log::new());
    let (home, host) = (network.host(), network.host());
    for address in ["10.0.0.102/24", "10.0.0.202/24", "fd00::102/64"] {
        host.add_address(address);
    }
    home.add_address("fd00::1/64");
    let _ann = announced(&host, "ann", 2, &key, &["--listen", "[::]:7433"]);
    let addresses = [host.address(), "10.0.0.102", "10.0.0.202"];
    let places: Vec<_> = addresses.into_iter().flat_map(|address| ["--worker", address]).collect();
    let options: [&[&str]; 3] = [
        &["--key", key.path(), "--mdns", "--chunk", "1"],
        &places,
        &["--timers", "redial_max_ms=300"],
    ];
    let map =
        MapProcess::start(home.inside(&map(&options, &log.noting("sleep 0.1"))), numbers(1..=60));
    let begun = |count: usize| eventually("it goes on", || log.runs(), |&runs| runs >= count);
    begun(10);
    host.reset_connections();
    always_for(
        Duration::from_millis(600),
        "nobody is lost",
        || map.said(),
        |s| !s.contains("lost"),
    );
    host.heal();
    let before = begun(20);
    begun(before + 4);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=60));
    assert_eq!(log.runs(), 60, "each item runs once: {}", done.stderr);
    assert_eq!((counted(&done, "lost"), counted(&done, "retried")), (0, 0), "{}", done.stderr);
    let counts = done.stderr.contains("1 worker, 2 slots");
    assert!(counts && !done.stderr.contains("2 workers"), "{}", done.stderr);
}

/// A worker that is told to end says so, and is not asked for any more.
#[test]
fn a_worker_that_said_goodbye_is_not_dialled_again() {
    let test = "a_worker_that_said_goodbye_is_not_dialled_again";
    let Some(mut network) = Network::new(test) else { return };
    let (key, log) = (Key::new(), Log::new());
    let (home, host) = (network.host(), network.host());
    let mut ann = announced(&host, "ann", 1, &key, &[]);
    let _bob = announced(&network.host(), "bob", 1, &key, &[]);
    let options = ["--key", key.path(), "--chunk", "1", "--timers", "redial_max_ms=300"];
    let map = MapProcess::start(
        home.inside(&map(&[&options], &log.naming("sleep 0.1"))),
        numbers(1..=80),
    );
    eventually("both are used", || log.names(), |used| used.len() == 2);
    ann.signal(Signal::TERM);
    assert_eq!(ann.exit_status(), 0);
    let listener = host.on(|| TcpListener::bind((host.address(), 7433))).unwrap();
    listener.set_nonblocking(true).unwrap();
    // Whoever hears a goodbye by mDNS takes it for one after a second, and the session has said it.
    let knocks = || listener.accept().is_ok();
    always_for(Duration::from_millis(1_500), "nobody knocks", knocks, |&knocked| !knocked);
    assert!(log.runs() < 80, "the map goes on meanwhile");
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=80));
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

/// Whether a worker lives its session tells, not mDNS.
#[test]
fn a_network_that_falls_silent_takes_no_worker_away() {
    let test = "a_network_that_falls_silent_takes_no_worker_away";
    let Some(mut network) = Network::new(test) else { return };
    let (key, log) = (Key::new(), Log::new());
    let home = network.host();
    let _workers = ["ann", "bob"].map(|name| announced(&network.host(), name, 1, &key, &[]));
    let options = ["--key", key.path(), "--chunk", "1"];
    let map = MapProcess::start(
        home.inside(&map(&[&options], &log.naming("sleep 0.1"))),
        numbers(1..=80),
    );
    let both = |more: usize| {
        let before = log.names();
        let more_of = |used: &std::collections::BTreeMap<String, usize>, name: &str| {
            used.get(name).copied().unwrap_or_default()
                >= before.get(name).copied().unwrap_or_default() + more
        };
        let are = |used: &_| ["ann", "bob"].iter().all(|name| more_of(used, name));
        eventually("both are used", || log.names(), are);
    };
    both(2);
    home.silence_mdns();
    both(15);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=80));
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

/// Ports of a host that answers and never proves itself.
const TARPITS: u16 = 300;

/// Scenario 45: ten thousand announcements that copy the cluster's name and lead nowhere, to a host
/// that refuses, or to one that answers and never proves itself.
///
/// 512 of them are tried at a time, each for as long as a connection may take: here 0.3 s, so that a
/// worker which is announced after all of them waits six seconds for its turn at the most, in the
/// field, with 3 s each, a minute.
#[test]
fn ten_thousand_false_announcements_only_delay_the_true_ones() {
    let test = "ten_thousand_false_announcements_only_delay_the_true_ones";
    let Some(mut network) = Network::new(test) else { return };
    let (key, log) = (Key::new(), Log::new());
    let (home, liar) = (network.host(), network.host());
    let (ann, bob) = (network.host(), network.host());
    // The system answers there, and nobody takes what comes.
    let tar = |port: u16| liar.on(|| TcpListener::bind((liar.address(), port))).unwrap();
    let _tarpits: Vec<_> = (7_000..7_000 + TARPITS).map(tar).collect();
    let options = ["--key", key.path(), "--chunk", "1", "--timers", "connect_ms=300"];
    let map = MapProcess::start(
        home.inside(&map(&[&options], &log.naming("sleep 0.05"))),
        numbers(1..=60),
    );
    // It tells what it has heard, when it gives up.
    let witness = crate::support::map(&[&options, &["--wait-workers", "4s"]], &["echo"]);
    let witness = MapProcess::start(home.inside(&witness), "1\n");
    map.says("waiting for a worker");
    witness.says("waiting for a worker");
    let flood_began = Instant::now();
    let socket = liar.on(|| UdpSocket::bind((liar.address(), 0))).unwrap();
    let cluster = key.cluster();
    for number in 0..10_000 {
        let (address, port) = match number % 3 {
            0 => (format!("10.0.0.{}", 100 + number % 100), 10_000 + number),
            1 => (liar.address().to_owned(), 10_000 + number),
            _ => (liar.address().to_owned(), 7_000 + number % TARPITS),
        };
        let packet = false_announcement(number, &cluster, address.parse().unwrap(), port);
        socket.send_to(&packet, "224.0.0.251:5353").unwrap();
        if number % 20 == 0 {
            // As fast as the kernel passes it on; more would only be lost on the way.
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
    println!("ten thousand were sent in {:.2?}", flood_began.elapsed());
    let told = witness.finish().exits(3).stderr;
    let more = told.lines().find_map(|line| line.trim().strip_suffix(" more that are announced"));
    println!("beside those that were tried, {} were heard of", more.unwrap_or("none"));
    let more: usize = more.and_then(|more| more.parse().ok()).unwrap_or_default();
    assert!(more > 1_000, "the announcements are not heard: {told}");
    let started = Instant::now();
    let _ann = announced(&ann, "ann", 1, &key, &[]);
    let _bob = announced(&bob, "bob", 1, &key, &[]);
    let bound = Duration::from_secs(60);
    eventually_within(bound, "both are used", || log.names(), |used| used.len() == 2);
    println!("the true ones were used {:.2?} after their start", started.elapsed());
    let (done, memory_peak) = map.finish_measured();
    let done = done.exits(0);
    assert_eq!(done.text(), numbers(1..=60));
    println!("the coordinator had {} MiB at the most", memory_peak >> 20);
    assert!(memory_peak < 256 << 20, "{memory_peak} bytes");
}

fn false_announcement(number: u16, cluster: &str, address: Ipv4Addr, port: u16) -> Vec<u8> {
    let name = |text: String| Name::from_ascii(text).unwrap();
    let instance = name(format!("false-{number}._widemap._tcp.local."));
    let host = name(format!("false-{number}.local."));
    let text = [
        "v=1.0".to_owned(),
        format!("id={number:016x}"),
        format!("name=false-{number}"),
        "slots=64".to_owned(),
        format!("cluster={cluster}"),
    ];
    let text = TXT::new(text.to_vec());
    let records = [
        (name("_widemap._tcp.local.".to_owned()), RData::PTR(PTR(instance.clone()))),
        (instance.clone(), RData::SRV(SRV::new(0, 0, port, host.clone()))),
        (instance, RData::TXT(text)),
        (host, RData::A(A(address))),
    ];
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    let records = records.into_iter().map(|(name, data)| Record::from_rdata(name, 4_500, data));
    message.answers.extend(records);
    message.to_vec().unwrap()
}

/// Only told: how soon the first result comes on a network that nobody was told of.
#[test]
fn the_first_result_of_announced_workers_comes_soon() {
    let test = "the_first_result_of_announced_workers_comes_soon";
    let Some(mut network) = Network::new(test) else { return };
    let key = Key::new();
    let home = network.host();
    let hosts = ["ann", "bob", "cid"].map(|name| (name, network.host()));
    let _workers = hosts.map(|(name, host)| announced(&host, name, 1, &key, &[]));
    for _ in 0..3 {
        let command = map(&[&["--key", key.path()]], &["echo"]);
        let mut map = MapProcess::start_unread(home.inside(&command), "1\n");
        let mut first = [0; 2];
        std::io::Read::read_exact(&mut map.stdout(), &mut first).unwrap();
        println!("by mDNS the first result came after {:.2?}", map.elapsed());
        let _ = map.finish().exits(0);
    }
}
