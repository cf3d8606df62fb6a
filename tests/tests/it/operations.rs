//! A service as whoever runs it sees it: health, metrics, the service manager, the log.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use widemap_tests::{Run, WorkerProcess, binary, eventually, needs, run, widemap, worker};

use crate::support::{Key, numbers, places};

/// A coordinator that tells its metrics, and its directory.
struct Service {
    process: WorkerProcess,
    _directory: TempDir,
}

impl Service {
    fn start(workers: &[&WorkerProcess], change: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = widemap(&["serve", "--listen", "127.0.0.1:0", "--no-mdns", "--data"]);
        command.arg(directory.path().join("data")).args(["--http", "127.0.0.1:0"]);
        command.args(places(workers));
        change(&mut command);
        Self { process: WorkerProcess::spawn(command), _directory: directory }
    }

    /// What is told at a path to who asks for this host: the status and the rest.
    fn get(&self, path: &str, host: &str) -> (u16, String) {
        let said = self.process.said();
        let told = said.lines().find_map(|line| line.split_once("http://")).unwrap().1;
        let address = told.split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    fn ask(&self, arguments: &[&str], input: &str) -> Run {
        let mut command = widemap(arguments);
        command.env("WIDEMAP_COORDINATOR", self.process.address());
        run(command, input.as_bytes())
    }
}

#[test]
fn metrics_count_what_was_run_and_health_says_so() {
    let ann = WorkerProcess::start("ann", 2);
    let service = Service::start(&[&ann], |_| ());
    let words = ["map", "--retries", "1", "--", "sh", "-c", "test $1 != 3", "sh"];
    let _ = service.ask(&words, &numbers(1..=5)).exits(1);
    let has = |line: &str, text: &str| text.lines().any(|told| told == line);
    // They are told a few times a second.
    let metrics = || service.get("/metrics", "localhost").1;
    let text = eventually("the job's end is told", metrics, |text| {
        has("widemap_jobs_ended_total{outcome=\"complete\"} 1", text)
    });
    for line in [
        "widemap_items_total{outcome=\"ok\"} 4",
        "widemap_items_total{outcome=\"failed\"} 1",
        "widemap_items_retried_total 1",
        "widemap_workers{state=\"attached\"} 1",
        "widemap_slots 2",
        "widemap_jobs{state=\"open\"} 0",
    ] {
        assert!(has(line, &text), "{line}\n{text}");
    }
    let commits = text.lines().find_map(|line| {
        line.strip_prefix("widemap_journal_commit_seconds_count ")?.parse::<u64>().ok()
    });
    assert!(commits.unwrap() >= 1, "{text}");
    assert_eq!(service.get("/healthz", "127.0.0.1").0, 200);
    assert_eq!(service.get("/readyz", "localhost:80").0, 200);
    assert_eq!(service.get("/metrics", "evil.example").0, 421);
    assert_eq!(service.get("/", "localhost").0, 404);
}

/// A service manager that listens.
struct Heard {
    socket: UnixDatagram,
    directory: TempDir,
    heard: Vec<String>,
}

impl Heard {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, directory, heard: Vec::new() }
    }

    fn surround(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        command.env("WATCHDOG_USEC", "500000");
    }

    fn hears(&mut self, wanted: &str) {
        while !self.heard.iter().any(|told| told.lines().any(|line| line == wanted)) {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).unwrap_or_else(|error| {
                panic!("{wanted} is not heard ({error}), but {:?}", self.heard);
            });
            self.heard.push(String::from_utf8_lossy(&message[..length]).into_owned());
        }
    }
}

#[test]
fn a_service_manager_hears_of_a_workers_life_too() {
    let mut manager = Heard::new();
    let mut command = worker("ann", 1, &["--listen", "127.0.0.1:0"]);
    manager.surround(&mut command);
    let ann = WorkerProcess::spawn(command);
    manager.hears("READY=1");
    manager.heard.clear();
    // Again and again.
    for _ in 0..2 {
        manager.hears("WATCHDOG=1");
        manager.heard.clear();
    }
    ann.signal(Signal::TERM);
    manager.hears("STOPPING=1");
}

#[test]
fn a_service_manager_hears_of_the_beginning_the_life_and_the_end() {
    let mut manager = Heard::new();
    let ann = WorkerProcess::start("ann", 3);
    let mut service = Service::start(&[&ann], |command| {
        manager.surround(command);
    });
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    manager.hears("STATUS=0 jobs, 1 worker, 3 slots");
    service.process.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!(service.process.exit_status(), 0);
}

#[test]
fn a_key_that_a_service_manager_hands_over_is_used() {
    let (key, directory) = (Key::new(), tempfile::tempdir().unwrap());
    let given = directory.path().join("widemap-key");
    std::fs::copy(key.path(), &given).unwrap();
    // As an access list for the service's user shows.
    std::fs::set_permissions(&given, std::fs::Permissions::from_mode(0o440)).unwrap();
    let service = Service::start(&[], |command| {
        command.env("CREDENTIALS_DIRECTORY", directory.path()).args(["--local", "1"]);
    });
    service.process.says(&format!("cluster {}", key.cluster()));
    let mut show = widemap(&["key", "show"]);
    show.env("CREDENTIALS_DIRECTORY", directory.path());
    assert_eq!(run(show, b"").exits(0).text().trim(), key.cluster());
    std::fs::set_permissions(&given, std::fs::Permissions::from_mode(0o444)).unwrap();
    let mut show = widemap(&["key", "show"]);
    show.env("CREDENTIALS_DIRECTORY", directory.path());
    assert!(run(show, b"").exits(2).stderr.contains("widemap-key"));
}

#[test]
fn a_service_logs_its_jobs_as_json_if_that_is_wanted() {
    let ann = WorkerProcess::start("ann", 1);
    let service = Service::start(&[&ann], |command| {
        command.args(["--log-format", "json"]);
    });
    let _ = service.ask(&["map", "--builtin", "square"], "3\n").exits(0);
    service.process.says("\"ended\"");
    let said = service.process.said();
    let logged: Vec<serde_json::Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ended = logged.iter().find(|event| event["fields"]["message"] == "ended").unwrap();
    assert_eq!((&ended["level"], &ended["fields"]["ok"]), (&"INFO".into(), &1.into()), "{ended}");
    assert!(ended["timestamp"].is_string());
}

const UNITS: [&str; 2] = ["widemap-serve", "widemap-worker"];

fn unit(name: &str) -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    std::fs::read_to_string(root.join(format!("deploy/systemd/{name}.service"))).unwrap()
}

#[test]
fn the_units_use_options_that_there_are() {
    for name in UNITS {
        let unit = unit(name);
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let (program, options) = line.split_once(' ').unwrap();
        let mut command = Command::new(binary(program.rsplit('/').next().unwrap()));
        // What it does not know it says before it helps.
        command.args(options.split(' ')).arg("--help");
        let _ = run(command, b"").exits(0);
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !needs("systemd_finds_nothing_wrong_with_the_units", "systemd-analyze") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for name in UNITS {
        // It wants the program to be where the unit says.
        let installed = format!("/usr/local/bin/{name}").replace("-serve", "");
        let built = binary(installed.rsplit('/').next().unwrap());
        let path = directory.path().join(format!("{name}.service"));
        let found = |unit: &str| {
            std::fs::write(&path, unit.replace(&installed, built.to_str().unwrap())).unwrap();
            let mut verify = Command::new("systemd-analyze");
            verify.arg("verify").arg(&path);
            let verified = run(verify, b"");
            // What it has to say of other units of this host is not asked here.
            let lines = verified.stderr.lines();
            Vec::from_iter(lines.filter(|line| line.contains(name)).map(str::to_owned))
        };
        assert_eq!(found(&unit(name)), [""; 0]);
        // A key that it does not know it names, and exits with 0 all the same.
        let misspelt = found(&unit(name).replace("RestartSec=", "RestartSecs="));
        assert!(misspelt.iter().any(|line| line.contains("RestartSecs")), "{misspelt:?}");
    }
}

#[test]
fn the_units_are_as_closed_as_is_said_of_them() {
    if !needs("the_units_are_as_closed_as_is_said_of_them", "systemd-analyze") {
        return;
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = std::fs::read_to_string(root.join("deploy/README.md")).unwrap();
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let exposure = |name: &str| {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true"]);
        analyze.arg(root.join(format!("deploy/systemd/{name}.service")));
        let said = run(analyze, b"").exits(0).text().to_owned();
        let said = said.lines().last().unwrap().split_once(".service: ").unwrap().1.to_owned();
        said.split(' ').next().unwrap().to_owned()
    };
    let [serve, worker] = UNITS.map(exposure);
    let told = format!("the exposure of the coordinator {serve} and that of the worker {worker} ");
    assert!(page.contains(&told), "{told}");
}
