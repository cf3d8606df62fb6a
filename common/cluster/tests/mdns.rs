//! Who is announced is heard of, on a network of the test's own: hosts are network namespaces at a
//! switch that is one too, so that nothing is sent to the machine's network.

use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode};
use hickory_resolver::proto::rr::rdata::{A, PTR, SRV, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use widemap_cluster::mdns::{Announcer, Browser, Heard, Instance, MdnsError, Service};
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What a story on a machine without load must take no longer than; tests share theirs.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_worker_is_found_at_once_with_its_record_and_its_useful_addresses() {
    on_a_network("found", async |network| {
        // A bridge for containers, whose address means nothing elsewhere.
        network.ip(1, &["link", "add", "docker0", "type", "bridge"]);
        network.ip(1, &["address", "add", "172.17.0.1/16", "dev", "docker0"]);
        network.ip(1, &["link", "set", "docker0", "up"]);
        network.ip(1, &["address", "add", "2001:db8::1/64", "dev", "eth0", "nodad"]);
        network.ip(2, &["address", "add", "2001:db8::2/64", "dev", "eth0", "nodad"]);
        let _ann = network.announce(1, "ann", 7433);
        // One after the other, within the second in which mDNS does not answer twice to all.
        for _ in 0..3 {
            let started = Instant::now();
            let mut browser = browse();
            let found = found(&mut browser, "ann").await;
            let took = started.elapsed();
            assert!(took < Duration::from_millis(500), "{took:?}");
            assert_eq!((&found.announcement, found.port), (&announcement("ann"), 7433));
            let both = ["10.0.0.1", "2001:db8::1"].map(|text| text.parse().expect("an address"));
            let mut known = found.addresses;
            while known != both {
                assert!(known.iter().all(|address| both.contains(address)), "{known:?}");
                known = self::found(&mut browser, "ann").await.addresses;
            }
            browser.stop().await;
        }
    });
}

#[test]
fn a_worker_that_starts_or_leaves_later_is_heard_within_a_second() {
    on_a_network("later", async |network| {
        let mut browser = browse();
        // Past the first questions: it is heard because it says so.
        nothing(&mut browser, Duration::from_millis(1_500)).await;
        let started = Instant::now();
        let ann = network.announce(1, "ann", 7433);
        let instance = found(&mut browser, "ann").await.instance;
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());

        let leaves = Instant::now();
        ann.goodbye().await;
        assert!(leaves.elapsed() < Duration::from_millis(700), "{:?}", leaves.elapsed());
        let heard = until(&mut browser, |heard| matches!(heard, Heard::Gone(_)).then_some(heard));
        assert_eq!(heard.await, Heard::Gone(instance));
        assert!(leaves.elapsed() < Duration::from_millis(1_500), "{:?}", leaves.elapsed());
    });
}

#[test]
fn two_workers_on_one_machine_are_two_even_where_one_has_but_one_address() {
    on_a_network("two", async |network| {
        network.ip(1, &["address", "add", "10.0.0.9/24", "dev", "eth0"]);
        let _ann = network.announce(1, "ann", 7433);
        let only = "10.0.0.9".parse().expect("an address");
        let _bob = network.on(1, || announcer("bob", 7434, only)).expect("it is announced");
        let mut browser = browse();
        let (mut ann, mut bob) = (Vec::new(), Vec::new());
        while ann.len() < 2 || bob.is_empty() {
            let found = found_any(&mut browser).await;
            match found.announcement.name.as_str() {
                "ann" => ann = found.addresses,
                _ => bob = found.addresses,
            }
        }
        assert_eq!(bob, [only]);
        assert!(ann.contains(&only), "{ann:?}");
    });
}

#[test]
fn without_a_network_it_says_so_and_goes_on_when_there_is_one() {
    on_a_network("link", async |network| {
        network.ip(1, &["link", "set", "eth0", "down"]);
        network.ip(2, &["link", "set", "eth0", "down"]);
        let _ann = network.announce(1, "ann", 7433);
        let mut browser = browse();
        let trouble = until(&mut browser, |heard| match heard {
            Heard::Trouble(why) => Some(why),
            _ => None,
        });
        let trouble = trouble.await;
        assert!(trouble.contains("no interface leads to another machine"), "{trouble}");
        network.ip(2, &["link", "set", "eth0", "up"]);
        network.ip(1, &["link", "set", "eth0", "up"]);
        found(&mut browser, "ann").await;
    });
}

#[test]
fn what_nobody_could_reach_is_not_announced() {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let error = announcer("ann", 7433, loopback).expect_err("nobody could reach it");
    assert!(matches!(error, MdnsError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("0.0.0.0"), "{error}");
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_so() {
    on_a_network("port", async |_| {
        let taken = UdpSocket::bind("0.0.0.0:5353").expect("it is free");
        let error = Browser::start(Service::Worker, &[]).expect_err("it is taken");
        assert!(matches!(error, MdnsError::Port { .. }), "{error}");
        drop(taken);
        // A process that another test is about to start may have it open for a moment.
        eventually(
            "it is free again",
            || Browser::start(Service::Worker, &[]).map(drop),
            Result::is_ok,
        );
    });
}

#[test]
fn no_thread_is_left_when_they_are_dropped() {
    on_a_network("threads", async |network| {
        let mut browser = browse();
        let ann = network.on(2, || announcer("ann", 7433, ANY)).expect("it is announced");
        found(&mut browser, "ann").await;
        assert_eq!(daemon_threads(), 2);
        drop((browser, ann));
        eventually("their threads end", daemon_threads, |&threads| threads == 0);
    });
}

#[test]
fn an_announcement_that_cannot_be_read_is_told_of() {
    on_a_network("malformed", async |network| {
        let mut browser = browse();
        let socket = network.on(3, || UdpSocket::bind("10.0.0.3:0")).expect("it is free");
        let said = loop {
            // Whoever has not begun to listen does not hear the first ones.
            let packet = false_announcement(7, "many\u{1b}[31m");
            socket.send_to(&packet, "224.0.0.251:5353").expect("it is sent");
            let wait = Duration::from_millis(50);
            if let Ok(heard) = tokio::time::timeout(wait, browser.next()).await {
                break heard;
            }
        };
        let Heard::Malformed { instance, why } = said else { panic!("{said:?}") };
        assert_eq!(instance, "false-7");
        let wanted = r#"`slots` of the announcement is "many\x1b[31m", not"#;
        assert!(why.to_string().starts_with(wanted), "{why}");
    });
}

#[test]
fn ten_thousand_false_announcements_neither_hide_a_worker_nor_fill_the_memory() {
    const FALSE: u32 = 10_000;
    /// What of it comes while nobody follows.
    const MEANWHILE: u32 = 6_000;
    /// What may wait at the port before the next ones are sent: the system would drop the rest.
    const WAITING_BYTES: u64 = 16 * 1024;
    on_a_network("flood", async |network| {
        let mut browser = browse();
        let before = resident_bytes();
        let socket = network.on(3, || UdpSocket::bind("10.0.0.3:0")).expect("it is free");
        let sent = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&sent);
        let flood = thread::spawn(move || {
            for number in 0..FALSE {
                let packet = false_announcement(number, "1");
                socket.send_to(&packet, "224.0.0.251:5353").expect("it is sent");
                if number % 20 == 0 {
                    eventually("they are read", unread_bytes, |&bytes| bytes < WAITING_BYTES);
                }
                counted.store(number + 1, Ordering::SeqCst);
            }
        });
        found(&mut browser, "false").await;
        // Its process is busy with something else meanwhile, and so cannot follow.
        let heard = sent.load(Ordering::SeqCst);
        let all = || sent.load(Ordering::SeqCst) - heard;
        eventually("many have come", all, |&more| more >= MEANWHILE.min(FALSE - heard));
        until(&mut browser, |heard| matches!(heard, Heard::Trouble(_)).then_some(())).await;
        let _ann = network.announce(1, "ann", 7433);
        found(&mut browser, "ann").await;
        while !flood.is_finished() {
            let _ = tokio::time::timeout(Duration::from_millis(10), browser.next()).await;
        }
        flood.join().expect("it sends all");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 128 * 1024 * 1024, "{grown} bytes");
        // Who comes after the flood is heard as well.
        let _bob = network.announce(1, "bob", 7434);
        found(&mut browser, "bob").await;
    });
}

fn announcement(name: &str) -> Announcement {
    let incarnation = Incarnation(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    let cluster = "0011223344556677".parse().ok();
    Announcement { name: name.to_owned(), protocol: (1, 0), incarnation, slots: 8, cluster }
}

fn announcer(name: &str, port: u16, listen: IpAddr) -> Result<Announcer, MdnsError> {
    Announcer::start(Service::Worker, &announcement(name), port, listen, &[])
}

fn browse() -> Browser {
    Browser::start(Service::Worker, &[]).expect("mDNS works here")
}

async fn found_any(browser: &mut Browser) -> Instance {
    let heard = |heard| match heard {
        Heard::Found(instance) => Some(instance),
        _ => None,
    };
    until(browser, heard).await
}

async fn found(browser: &mut Browser, name: &str) -> Instance {
    let heard = |heard| match heard {
        Heard::Found(instance) if instance.announcement.name == name => Some(instance),
        _ => None,
    };
    until(browser, heard).await
}

/// Listens until it is heard, and says what was heard instead if that takes too long.
async fn until<T>(browser: &mut Browser, mut wanted: impl FnMut(Heard) -> Option<T>) -> T {
    let mut last = None;
    let listening = async {
        loop {
            let heard = browser.next().await;
            last = Some(heard.clone());
            if let Some(found) = wanted(heard) {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(2 * SOON, listening).await;
    found.unwrap_or_else(|_| panic!("the last that was heard is {last:?}"))
}

/// Waits for a condition of the outside world, on this thread.
fn eventually<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    holds: impl Fn(&T) -> bool,
) {
    let started = Instant::now();
    loop {
        let seen = look();
        if holds(&seen) {
            return;
        }
        assert!(started.elapsed() < 2 * SOON, "{what}: still {seen:?}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

async fn nothing(browser: &mut Browser, lasting: Duration) {
    if let Ok(heard) = tokio::time::timeout(lasting, browser.next()).await {
        panic!("{heard:?}");
    }
}

fn false_announcement(number: u32, slots: &str) -> Vec<u8> {
    let name = |text: String| Name::from_ascii(text).expect("a name");
    let instance = name(format!("false-{number}._widemap._tcp.local."));
    let host = name(format!("false-{number}.local."));
    let (id, slots) = (format!("id={number:016x}"), format!("slots={slots}"));
    let text = vec![&b"v=1.0"[..], id.as_bytes(), b"name=false", slots.as_bytes()];
    let text = TXT::from_bytes(text);
    let [_, second, third, fourth] = number.to_be_bytes();
    let records = [
        (name("_widemap._tcp.local.".to_owned()), RData::PTR(PTR(instance.clone()))),
        (instance.clone(), RData::SRV(SRV::new(0, 0, 7433, host.clone()))),
        (instance, RData::TXT(text)),
        (host, RData::A(A::new(10, second, third, fourth))),
    ];
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    let records = records.into_iter().map(|(name, data)| Record::from_rdata(name, 4_500, data));
    message.answers.extend(records);
    message.to_vec().expect("it fits")
}

/// Those of this host: other tests have theirs on other hosts.
fn daemon_threads() -> usize {
    let here = std::fs::read_link("/proc/thread-self/ns/net").expect("the kernel tells it");
    let threads = std::fs::read_dir("/proc/self/task").expect("the kernel tells them");
    let is_daemon = |thread: &std::path::Path| {
        let name = std::fs::read_to_string(thread.join("comm"));
        let host = std::fs::read_link(thread.join("ns/net"));
        name.is_ok_and(|name| name == "mDNS_daemon\n") && host.is_ok_and(|host| host == here)
    };
    threads.flatten().filter(|thread| is_daemon(&thread.path())).count()
}

/// What waits to be read at the port of mDNS on this host.
fn unread_bytes() -> u64 {
    let sockets =
        std::fs::read_to_string("/proc/thread-self/net/udp").expect("the kernel tells it");
    let unread = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // `sl local_address rem_address st tx_queue:rx_queue`, all in hexadecimal digits.
        let is_mdns = fields.get(1)?.ends_with(":14E9");
        let (_, waiting) = fields.get(4)?.split_once(':')?;
        u64::from_str_radix(waiting, 16).ok().filter(|_| is_mdns)
    };
    sockets.lines().filter_map(unread).max().unwrap_or(0)
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells it");
    let row = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = row.and_then(|row| row.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// A switch and three hosts at it, `10.0.0.1` to `10.0.0.3`, removed when it is dropped.
struct Network {
    name: String,
}

/// Runs a story on the second host of a network, or says why it cannot.
fn on_a_network<F>(test: &str, story: F)
where
    F: AsyncFnOnce(&Network) + Send + 'static,
{
    if !has_namespaces(test) {
        return;
    }
    let network = Network::new();
    let host = thread::spawn(move || {
        network.enter(2);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let story: std::pin::Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(story(&network));
        runtime.expect("a runtime").block_on(story);
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

fn has_namespaces(test: &str) -> bool {
    let has_ip = Command::new("ip").arg("netns").output().is_ok_and(|done| done.status.success());
    let is_root = rustix::process::geteuid().is_root();
    if has_ip && is_root {
        return true;
    }
    let must_run = std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_some();
    assert!(!must_run, "{test} needs `ip netns` and root, and must not be skipped here");
    println!("skipped: {test} needs `ip netns` and root");
    false
}

impl Network {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self { name: format!("widemap-mdns-{}-{number}", std::process::id()) };
        let switch = &network.name;
        ip(&["netns", "add", switch]);
        ip(&["-n", switch, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", switch, "link", "set", "switch", "up"]);
        for number in 1..=3 {
            let (host, port) = (network.host(number), format!("port{number}"));
            ip(&["netns", "add", &host]);
            ip(&["-n", &host, "link", "set", "lo", "up"]);
            let cable = ["link", "add", &port, "netns", switch, "type", "veth"];
            ip(&[&cable[..], &["peer", "name", "eth0", "netns", &host]].concat());
            ip(&["-n", switch, "link", "set", &port, "master", "switch", "up"]);
            ip(&["-n", &host, "address", "add", &format!("10.0.0.{number}/24"), "dev", "eth0"]);
            ip(&["-n", &host, "link", "set", "eth0", "up"]);
        }
        network
    }

    fn host(&self, number: u32) -> String {
        format!("{}-{number}", self.name)
    }

    fn ip(&self, host: u32, arguments: &[&str]) {
        ip(&[&["-n", &self.host(host)], arguments].concat());
    }

    /// Moves this thread to a host, and with it what it starts.
    fn enter(&self, host: u32) {
        let path = format!("/run/netns/{}", self.host(host));
        let namespace = File::open(path).expect("it is there");
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).expect("root may");
    }

    /// Starts something on another host than the second.
    fn on<T>(&self, host: u32, start: impl FnOnce() -> T) -> T {
        self.enter(host);
        let started = start();
        self.enter(2);
        started
    }

    fn announce(&self, host: u32, name: &str, port: u16) -> Announcer {
        self.on(host, || announcer(name, port, ANY)).expect("mDNS works here")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [self.host(1), self.host(2), self.host(3), self.name.clone()] {
            // A panic here would hide the one that may be under way.
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments:?}: {said}");
}
