//! The port of a worker: what strangers send there, however many they are, does not disturb whom it
//! serves.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use widemap_cluster::{Identity, Role};
use widemap_common::limits::HANDSHAKES_MAX;
use widemap_tests::{
    MapProcess, Network, WorkerProcess, always_for, cpu_time, eventually, eventually_within,
    needs_root, run, worker,
};

use crate::support::{Key, Log, counted, map, numbers};

/// Whoever does not prove itself is sent away after half a second.
const QUICK: &str = "handshake_ms=500";

fn open_files(worker: &WorkerProcess) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count()
}

/// What a client that knows the cluster would begin with.
fn client_hello(key: &Key) -> Vec<u8> {
    let identity = Identity::of_key_file(Path::new(key.path()), Role::Coordinator).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = rustls::ClientConnection::new(identity.client().unwrap(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// Sends bytes and waits until it is shown the door; returns what came back.
fn knock(address: &str, bytes: &[u8], hang_up: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may have been shown the door meanwhile.
    let _ = stream.write_all(bytes);
    if hang_up {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it is not shown the door: {error}"),
    }
    answer
}

/// Scenario 42: plain text, garbage, a beginning of TLS that goes on as garbage, half a record.
#[test]
fn garbage_at_the_door_does_not_disturb_a_map() {
    let (key, log) = (Key::new(), Log::new());
    let options = ["--listen", "127.0.0.1:0", "--key", key.path(), "--timers", QUICK];
    let ann = WorkerProcess::start_with("ann", 2, &options);
    let options = ["--key", key.path(), "--worker", ann.address(), "--chunk", "1"];
    let map = MapProcess::start(map(&[&options], &log.noting("sleep 0.05")), numbers(1..=100));
    eventually("the map runs", || log.runs(), |&runs| runs > 2);
    let before = open_files(&ann);
    let hello = client_hello(&key);
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
    let http = b"GET / HTTP/1.1\r\nhost: ann\r\n\r\n".to_vec();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let goes_wrong = [&hello[..], &noise].concat();
    for sent in
        [&http, &http2, &noise, &goes_wrong, &hello[..hello.len() / 2].to_vec(), &Vec::new()]
    {
        for hang_up in [true, false] {
            let answer = knock(ann.address(), sent, hang_up);
            // TLS alerts, and the worker's half of a handshake: nothing in plain text.
            assert!(matches!(answer.first(), None | Some(0x15 | 0x16)), "{answer:?}");
        }
    }
    let what = "nothing of them is left";
    // What runs has pipes of its own, more or less of them at a time.
    eventually(what, || open_files(&ann), |&files| files <= before + 4);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=100));
    assert_eq!((counted(&done, "lost"), counted(&done, "retried")), (0, 0), "{}", done.stderr);
    assert_eq!(log.runs(), 100);
    println!("{}", ann.said());
}

/// So many connections at a time, from one host that is not the coordinator's.
const CROWD: usize = 10_000;

/// So many of them come side by side.
const QUEUES: usize = 4;

/// After so many each queue stops for a moment: whoever comes while the system has no room for one more
/// is only let in seconds later.
const TOGETHER: usize = 10;

/// Those that were pushed out count until they are gone; the rest is what the worker and its maps need.
const OPEN_FILES_MAX: usize = HANDSHAKES_MAX + 64;

/// Scenario 43: ten thousand connections that say nothing, and a coordinator that is served meanwhile.
fn a_crowd_keeps_nobody_out(test: &str, trust: &[&str]) {
    let Some(mut network) = Network::new(test) else { return };
    let (home, strangers, host) = (network.host(), network.host(), network.host());
    // This process has files for one crowd at a time.
    static CROWDED: Mutex<()> = Mutex::new(());
    let _alone = CROWDED.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, wanted).unwrap();
    let crowd_size = limit.maximum.map_or(CROWD, |most| CROWD.min(most as usize - 1_000));

    let listen = host.worker_address();
    let options = [&["--listen", &listen, "--timers", "handshake_ms=1000"], trust].concat();
    let ann = WorkerProcess::spawn(host.inside(&worker("ann", 1, &options)));
    let maps = || {
        let options = [&["--worker", &listen], trust].concat();
        let done = run(home.inside(&map(&[&options], &["echo"])), b"1\n").exits(0);
        assert_eq!(done.text(), "1\n");
    };
    let before = open_files(&ann);
    let begun = Instant::now();
    let mut files_max = 0;
    let some = || {
        let mut some = Vec::new();
        for number in 0..crowd_size / QUEUES {
            // One that is shown the door at once may be told so by a reset.
            some.extend(TcpStream::connect(&listen));
            if number % TOGETHER == 0 {
                std::thread::park_timeout(Duration::from_millis(8));
            }
        }
        some
    };
    let come = || -> Vec<TcpStream> { strangers.on(some) };
    let held = std::thread::scope(|scope| {
        let crowds = [(); QUEUES].map(|()| scope.spawn(come));
        let (mut served, mut longest) = (0, Duration::ZERO);
        while !crowds.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let asked = Instant::now();
            maps();
            served += 1;
            longest = longest.max(asked.elapsed());
            // The crowd may take long to come: it is the time of one map that counts.
            assert!(longest < Duration::from_secs(10), "{longest:?}");
            // The crowd shares the machine's cores with them: one is asked for now and then.
            let few = |files: &usize| *files < OPEN_FILES_MAX;
            let pause = Duration::from_millis(300);
            always_for(pause, "its open files are bounded", || open_files(&ann), few);
            files_max = files_max.max(open_files(&ann));
        }
        let used = cpu_time(ann.pid());
        println!("{crowd_size} came within {:.2?}, which cost {used:.2?}", begun.elapsed());
        println!("{served} maps were served meanwhile, each within {longest:.2?}");
        crowds.map(|crowd| crowd.join().unwrap())
    });
    files_max = files_max.max(open_files(&ann));
    println!("the worker had {files_max} files open at the most, {before} before");
    assert!(files_max < OPEN_FILES_MAX, "{files_max} open files");
    let bound = Duration::from_secs(10);
    // What it opened for its first job it keeps.
    let what = "those that said nothing are sent away, though they hold on";
    eventually_within(bound, what, || open_files(&ann), |&files| files < before + 8);
    drop(held);
    maps();
    println!("{}", ann.said());
    let refusals = ann.said().lines().filter(|line| line.contains("refused")).count();
    assert!((1..=4).contains(&refusals), "{}", ann.said());
}

#[test]
fn a_crowd_at_a_door_with_a_key_keeps_nobody_out() {
    let key = Key::new();
    let test = "a_crowd_at_a_door_with_a_key_keeps_nobody_out";
    a_crowd_keeps_nobody_out(test, &["--key", key.path()]);
}

#[test]
fn a_crowd_at_a_door_without_a_key_keeps_nobody_out() {
    let test = "a_crowd_at_a_door_without_a_key_keeps_nobody_out";
    a_crowd_keeps_nobody_out(test, &["--insecure"]);
}

/// Scenario 44: without a key a worker does not open a door to others, unless that is said in full.
#[test]
fn a_door_to_others_needs_a_key_or_insecure() {
    let done = run(worker("ann", 1, &["--listen", "0.0.0.0:7433"]), b"").exits(2);
    assert_eq!(done.text(), "", "it does not listen");
    // Who runs the tests as root is warned of something else.
    let own = |said: &str| {
        said.lines().filter(|line| !line.contains("as root")).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(own(&done.stderr));
    let ann = WorkerProcess::start_with("ann", 1, &["--insecure", "--listen", "127.0.0.1:0"]);
    ann.says("WARNING: --insecure: every user of this host");
    let test = "a_door_to_others_needs_a_key_or_insecure";
    if !needs_root(test) {
        return;
    }
    let Some(mut network) = Network::new(test) else { return };
    let bob = WorkerProcess::start_on(&network.host(), "bob", 1, &[]);
    bob.says("whoever reaches");
    insta::assert_snapshot!(own(&bob.said()));
}
