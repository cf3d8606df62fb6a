//! Everything at once: workers are killed, stopped, drained, started again, cut off and reset at
//! random while maps of all kinds run, and each output must be that of a single process.
//!
//! `WIDEMAP_CHAOS_SECONDS` says for how long, `WIDEMAP_CHAOS_SEED` which faults, in which order.

use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use widemap_tests::{
    Host, MapProcess, Network, Way, WorkerProcess, eventually, processes_with, run, widemap,
};

use crate::support::SHORT;

const TEST: &str = "no_fault_shows_in_the_output";
const NAMES: [&str; 3] = ["ann", "bob", "cid"];

/// Faults go on for so long during one map; then all heals, and it must end.
const FAULTS: Duration = Duration::from_secs(20);

/// What happened, printed if the test fails.
struct Story {
    seed: u64,
    began: Instant,
    events: Vec<String>,
}

impl Story {
    fn tell(&mut self, event: &str) {
        self.events.push(format!("{:7.3} {event}", self.began.elapsed().as_secs_f64()));
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("WIDEMAP_CHAOS_SEED={} does the same again:", self.seed);
            println!("{}", self.events.join("\n"));
        }
    }
}

/// Something that is wrong with a worker for a while.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Stopped,
    Draining,
    Dropped(Way),
    Lossy,
    Reset,
}

/// Where a worker runs, and what is wrong there until when.
struct Place {
    name: &'static str,
    host: Option<Host>,
    worker: WorkerProcess,
    address: String,
    fault: Option<(Fault, Instant)>,
}

impl Place {
    fn new(name: &'static str, host: Option<Host>) -> Self {
        let worker = start(name, host.as_ref(), "127.0.0.1:0");
        let address = worker.address().to_owned();
        Self { name, host, worker, address, fault: None }
    }

    fn strike(&mut self, rng: &mut Rng, story: &mut Story) {
        let kinds = if self.host.is_some() { 8 } else { 3 };
        let (fault, longest_ms) = match rng.u32(0..kinds) {
            0 => (Fault::Killed, 1500),
            1 => (Fault::Stopped, 4000),
            2 => (Fault::Draining, 1500),
            3 => (Fault::Dropped(Way::In), 4000),
            4 => (Fault::Dropped(Way::Out), 4000),
            5 => (Fault::Dropped(Way::Both), 4000),
            6 => (Fault::Lossy, 3000),
            _ => (Fault::Reset, 1500),
        };
        let time = Duration::from_millis(rng.u64(0..longest_ms));
        story.tell(&format!("{}: {fault:?} for {time:?}", self.name));
        match (fault, &self.host) {
            (Fault::Killed, _) => self.worker.kill(),
            (Fault::Stopped, _) => self.worker.signal(Signal::STOP),
            (Fault::Draining, _) => self.worker.signal(Signal::TERM),
            (Fault::Dropped(way), Some(host)) => host.drop_packets(way),
            (Fault::Lossy, Some(host)) => host.lose_packets(Way::Both, 30),
            (Fault::Reset, Some(host)) => host.reset_connections(),
            (_, None) => unreachable!("without hosts there are no faults of a network"),
        }
        self.fault = Some((fault, Instant::now() + time));
    }

    /// Ends a fault whose time is over, or that must be over now.
    fn heal(&mut self, at_once: bool, story: &mut Story) {
        let Some((fault, until)) = self.fault else { return };
        if Instant::now() < until && !at_once {
            return;
        }
        match (fault, &self.host) {
            // It is still at it.
            (Fault::Draining, _) if !self.worker.has_ended() => return,
            (Fault::Killed | Fault::Draining, host) => {
                self.worker = start(self.name, host.as_ref(), &self.address);
            }
            (Fault::Stopped, _) => self.worker.signal(Signal::CONT),
            (_, host) => host.iter().for_each(Host::heal),
        }
        story.tell(&format!("{}: well again", self.name));
        self.fault = None;
    }
}

fn start(name: &str, host: Option<&Host>, listen: &str) -> WorkerProcess {
    let options = ["--timers", SHORT, "--drain-timeout", "500ms"];
    match host {
        Some(host) => WorkerProcess::start_on(host, name, 2, &options),
        None => WorkerProcess::start_with(name, 2, &[&["--listen", listen], &options[..]].concat()),
    }
}

/// A map of a random kind.
struct Kind {
    words: Vec<String>,
    input: String,
    pause: String,
    is_json: bool,
}

impl Kind {
    fn random(rng: &mut Rng, marker: &str) -> Self {
        let (options, items): (&[&str], _) = match rng.u32(0..4) {
            0 => (&[], 1..=rng.u32(50..400)),
            1 => (&["--builtin", "square"], 1..=rng.u32(1_000..400_000)),
            2 => (&["--builtin", "sleep"], 1..=rng.u32(50..200)),
            _ => (&["--pipe", "--block", "2K"], 1..=rng.u32(10_000..100_000)),
        };
        let script = match options.first() {
            None => Some("echo $1"),
            Some(&"--pipe") => Some("cat"),
            Some(_) => None,
        };
        let is_json = rng.bool();
        let mut words = vec!["--format", if is_json { "json" } else { "raw" }];
        words.extend(options);
        let script = script.map(|what| format!("sleep $PAUSE; : {marker}; {what}"));
        words.extend(script.iter().flat_map(|script| ["--", "sh", "-c", script, "sh"]));
        Self {
            words: words.into_iter().map(str::to_owned).collect(),
            input: items.map(|n| format!("{n}\n")).collect(),
            pause: format!("PAUSE=0.0{}", rng.u32(2..9)),
            is_json,
        }
    }

    /// `map` somewhere; no number of deaths makes an item their cause here.
    fn command(&self, pause: &str, places: &[&str]) -> Command {
        let options = ["map", "--crash-limit", "1000", "--timers", SHORT, "--env", pause];
        let words = self.words.iter().map(String::as_str);
        widemap(&options.into_iter().chain(places.iter().copied()).chain(words).collect::<Vec<_>>())
    }

    /// What a single process prints, which need not pause.
    fn oracle(&self) -> Vec<u8> {
        let done = run(self.command("PAUSE=0", &["--local", "1"]), self.input.as_bytes()).exits(0);
        self.normal(&done.stdout)
    }

    /// The output without what may differ from run to run.
    fn normal(&self, output: &[u8]) -> Vec<u8> {
        if !self.is_json {
            return output.to_vec();
        }
        let lines = std::str::from_utf8(output).unwrap().lines();
        let normal = lines.map(|line| {
            let mut object: Value = serde_json::from_str(line).unwrap();
            for name in ["worker", "attempts", "seconds"] {
                object.as_object_mut().unwrap().remove(name);
            }
            format!("{object}\n")
        });
        normal.collect::<String>().into_bytes()
    }
}

/// Issue 3: a random run, short unless told otherwise.
#[test]
fn no_fault_shows_in_the_output() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(number("WIDEMAP_CHAOS_SECONDS").unwrap_or(10));
    let seed = number("WIDEMAP_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let mut story = Story { seed, began: Instant::now(), events: Vec::new() };
    // Without a network of their own the workers are on loopback, and nothing is cut.
    let mut network = Network::new(TEST);
    let home = network.as_mut().map(Network::host);
    let mut places = NAMES.map(|name| Place::new(name, network.as_mut().map(Network::host)));
    let marker = format!("chaos-{}", std::process::id());
    let (mut maps, mut faults) = (0, 0);
    while story.began.elapsed() < time {
        let kind = Kind::random(&mut rng, &marker);
        story.tell(&format!("{} items: {}", kind.input.lines().count(), kind.words.join(" ")));
        let want = kind.oracle();
        let addresses: Vec<_> =
            places.iter().flat_map(|place| ["--worker", &place.address]).collect();
        let command = kind.command(&kind.pause, &addresses);
        let command = match &home {
            Some(home) => home.inside(&command),
            None => command,
        };
        let mut map = MapProcess::start(command, kind.input.clone());
        while map.is_running() {
            let heals = map.elapsed() > FAULTS;
            places.iter_mut().for_each(|place| place.heal(heals, &mut story));
            if !heals && rng.bool() {
                let place = &mut places[rng.usize(0..NAMES.len())];
                if place.fault.is_none() {
                    place.strike(&mut rng, &mut story);
                    faults += 1;
                }
            }
            assert!(map.elapsed() < Duration::from_secs(100), "it hangs: {}", map.said());
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let done = map.finish();
        story.tell(&format!("ended with {}: {}", done.status, done.stderr.trim_end()));
        assert_eq!(done.status, 0, "{}", done.stderr);
        assert!(kind.normal(&done.stdout) == want, "the output is not that of a single process");
        maps += 1;
    }
    drop(places);
    eventually("nothing that ran is left", || processes_with(&marker), Vec::is_empty);
    println!("{maps} maps, {faults} faults, seed {seed}");
}
