//! `widemap doctor` on hosts that are well and on hosts that are not: network namespaces at a switch,
//! so that what is wrong with a network is really so.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use widemap_tests::{Host, Network, Run, Way, WorkerProcess, binary, run, widemap};

/// A cluster of two hosts on a network of their own: ann's has a worker, the other asks.
struct Pair {
    network: Network,
    here: Host,
    ann: Host,
    home: TempDir,
}

impl Pair {
    fn new(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let (here, ann) = (network.host(), network.host());
        let pair = Self { network, here, ann, home: tempfile::tempdir().unwrap() };
        let _made = run(pair.configured(widemap(&["key", "new"])), b"").exits(0);
        Some(pair)
    }

    /// The same command, with this test's configuration alone.
    fn configured(&self, mut command: Command) -> Command {
        command.env("XDG_CONFIG_HOME", self.home.path());
        for name in ["WIDEMAP_KEY", "WIDEMAP_WORKERS", "WIDEMAP_WORKERS_FILE", "WIDEMAP_DNS"] {
            command.env_remove(name);
        }
        command
    }

    fn key(&self) -> PathBuf {
        self.home.path().join("widemap/key")
    }

    /// A worker on a host, announced by mDNS.
    fn worker(&self, host: &Host, name: &str, key: &Path) -> WorkerProcess {
        let mut command = Command::new(binary("widemap-worker"));
        command.args(["--name", name, "--slots", "2", "--listen", "0.0.0.0:7433", "--key"]);
        command.arg(key);
        WorkerProcess::spawn(host.inside(&self.configured(command)))
    }

    fn doctor(&self, options: &[&str]) -> Run {
        let command = widemap(&[&["doctor", "--timers", "connect_ms=1000"], options].concat());
        run(self.here.inside(&self.configured(command)), b"")
    }

    /// What was said, without what differs from run to run.
    fn report(&self, run: &Run) -> String {
        let home = self.home.path().to_str().unwrap();
        let text = format!("{}{}status {}", run.text(), run.stderr, run.status);
        let key = self.home.path().join("widemap/key");
        let show = widemap(&["key", "show", "--key", key.to_str().unwrap()]);
        let cluster = self.configured(show);
        let cluster = widemap_tests::run(cluster, b"");
        let mut text = text.replace(home, "[HOME]");
        if cluster.status == 0 {
            text = text.replace(cluster.text().trim(), "[CLUSTER]");
        }
        let lines = text.lines().map(|line| {
            let words: Vec<_> = line.split(' ').map(|word| shown(line, word)).collect();
            words.join(" ")
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A word of a line, unless it is a moment or a distance of clocks.
fn shown(line: &str, word: &str) -> String {
    let has_number = word.starts_with(|c: char| c.is_ascii_digit());
    if line.contains(" clock ") && has_number { "[N]".to_owned() } else { word.to_owned() }
}

#[test]
fn a_healthy_host_has_nothing_to_do() {
    let Some(pair) = Pair::new("a_healthy_host_has_nothing_to_do") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    insta::assert_snapshot!(pair.report(&pair.doctor(&[]).exits(0)));
    let _here = pair.worker(&pair.here, "here", &pair.key());
    let done = pair.doctor(&["--format", "json", "--worker", "10.0.0.2"]).exits(0);
    let lines = done.text().lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<serde_json::Value> = lines.collect();
    assert!(lines.iter().all(|line| line["status"] == "ok" && line["do"].is_null()), "{lines:?}");
    let port = lines.iter().find(|line| line["check"] == "port").unwrap();
    assert!(port["what"].as_str().unwrap().contains("worker here, of cluster "), "{port}");
}

#[test]
fn a_key_that_others_can_read_is_a_problem_with_its_cure() {
    let Some(pair) = Pair::new("a_key_that_others_can_read") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    std::fs::set_permissions(pair.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    insta::assert_snapshot!(pair.report(&pair.doctor(&["--worker", "10.0.0.2"]).exits(3)));
}

#[test]
fn a_mistake_in_the_configuration_is_named_with_its_line() {
    let Some(pair) = Pair::new("a_mistake_in_the_configuration") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    let path = pair.home.path().join("widemap/widemap.toml");
    std::fs::write(path, "mdns = true\nworker = 'ann'\n").unwrap();
    insta::assert_snapshot!(pair.report(&pair.doctor(&[]).exits(3)));
}

#[test]
fn a_worker_with_another_key_is_told_what_to_copy() {
    let Some(pair) = Pair::new("a_worker_with_another_key") else { return };
    let other = pair.home.path().join("other");
    let _made = run(widemap(&["key", "new", other.to_str().unwrap()]), b"").exits(0);
    let _ann = pair.worker(&pair.ann, "ann", &other);
    insta::assert_snapshot!(pair.report(&pair.doctor(&["--worker", "10.0.0.2"]).exits(3)));
}

#[test]
fn a_worker_whose_packets_are_dropped_is_told_from_one_that_is_not_there() {
    let Some(mut pair) = Pair::new("a_worker_whose_packets_are_dropped") else { return };
    let (bob, nobody) = (pair.network.host(), pair.network.host());
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    let _bob = pair.worker(&bob, "bob", &pair.key());
    bob.drop_packets(Way::Both);
    let [ann, bob, nobody] = [&pair.ann, &bob, &nobody].map(Host::worker_address);
    let named = ["--worker", &ann, "--worker", &bob, "--worker", &nobody];
    insta::assert_snapshot!(pair.report(&pair.doctor(&named).exits(3)));
}

#[test]
fn a_way_that_drops_large_packets_is_told() {
    let Some(pair) = Pair::new("a_way_that_drops_large_packets") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    pair.ann.drop_large_packets(Way::In);
    insta::assert_snapshot!(pair.report(&pair.doctor(&["--worker", "10.0.0.2"]).exits(3)));
}

#[test]
fn where_multicast_is_dropped_workers_are_to_be_named() {
    let Some(pair) = Pair::new("where_multicast_is_dropped") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    // On the worker's host: it answers, and is not heard.
    pair.ann.drop_multicast(Way::Both);
    insta::assert_snapshot!(pair.report(&pair.doctor(&["--worker", "10.0.0.2"]).exits(0)));
    // On this host: it does not even hear itself.
    pair.here.drop_multicast(Way::In);
    insta::assert_snapshot!(pair.report(&pair.doctor(&[]).exits(3)));
}

#[test]
fn a_host_without_a_usable_interface_is_told_so() {
    let Some(pair) = Pair::new("a_host_without_a_usable_interface") else { return };
    let _ann = pair.worker(&pair.ann, "ann", &pair.key());
    pair.here.unplug();
    insta::assert_snapshot!(pair.report(&pair.doctor(&[]).exits(3)));
    insta::assert_snapshot!(pair.report(&pair.doctor(&["--worker", "10.0.0.2"]).exits(3)));
}

#[test]
fn what_cannot_be_understood_is_usage() {
    let home = tempfile::tempdir().unwrap();
    for options in [&["doctor", "--mdns"][..], &["doctor", "--worker", "a:b"]] {
        let mut command = widemap(options);
        command.env("XDG_CONFIG_HOME", home.path()).env_remove("WIDEMAP_KEY");
        assert!(run(command, b"").exits(2).stderr.contains(options[1]));
    }
}
