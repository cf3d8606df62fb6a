//! The demo of `deploy/compose.yaml`, on a real Docker: each host is a container with an address of its own, and what
//! happens to hosts happens in the middle of a job. The output is the same in each story.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use widemap_tests::{
    Demo, Docker, MapProcess, Run, eventually, eventually_within, memory_bytes, run, run_within,
};

use crate::support::{counted, numbers};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What the client says before the last of its input is read takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// 300 items of a tenth of a second.
const ITEMS: u32 = 300;

fn list() -> String {
    numbers(1..=ITEMS)
}

fn wanted() -> String {
    (1..=ITEMS).map(|number| format!("item {number}\n")).collect()
}

/// Starts the job, and waits until it is well under way.
fn job(demo: &Demo) -> MapProcess {
    let command = ["map", "--", "sh", "-c", "echo $1 >>/tmp/ran; sleep 0.1; echo item $1", "sh"];
    let map = MapProcess::start(demo.client(&command), list());
    eventually_within(
        PATIENCE,
        "a tenth of the job is done",
        || jobs(demo).first().map_or(0, |job| job["items"]["ok"].as_u64().unwrap()),
        |&done| done >= 30,
    );
    map
}

/// The items that have begun, each as often as it has.
fn ran(demo: &Demo) -> Vec<u32> {
    let of = |worker: String| {
        let words = ["exec", &worker, "cat", "/tmp/ran"];
        // One that has not begun has no such file.
        run(demo.docker().command(&words), b"").text().to_owned()
    };
    let noted: Vec<_> = demo.containers("worker").into_iter().map(of).collect();
    noted.iter().flat_map(|text| text.lines()).map(|line| line.parse().unwrap()).collect()
}

/// What the coordinator says of its jobs, the last one first.
fn jobs(demo: &Demo) -> Vec<serde_json::Value> {
    let coordinator = demo.containers("coordinator");
    let [coordinator] = &coordinator[..] else { return Vec::new() };
    let words = ["exec", coordinator, "widemap", "jobs", "--format", "json"];
    let mut ask = demo.docker().command(&words);
    // It may be about to be started again.
    let Ok(answer) = ask.output() else { return Vec::new() };
    let lines = String::from_utf8_lossy(&answer.stdout).into_owned();
    lines.lines().rev().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ended_well(map: MapProcess) -> Run {
    let done = map.finish().exits(0);
    assert_eq!(done.text(), wanted(), "{}", done.stderr);
    done
}

/// The commands of a page that are about containers, in their order.
fn commands(page: &str) -> Vec<String> {
    let page = std::fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.filter(|block| block.contains("docker compose")).map(str::to_owned).collect()
}

#[test]
fn the_demo_works_as_it_is_printed_also_with_a_killed_worker() {
    let test = "the_demo_works_as_it_is_printed_also_with_a_killed_worker";
    let Some(docker) = Docker::find(test) else { return };
    let type_in = |block: &str| run_within(PATIENCE, docker.script(block), b"");
    let items: String = (1..=200).map(|number| format!("item {number}\n")).collect();
    let readme = commands("README.md");
    let [demo] = &readme[..] else { panic!("{readme:?}") };
    let done = type_in(demo).exits(0);
    assert!(done.text().contains(&items), "{}{}", done.text(), done.stderr);

    let pages = commands("deploy/README.md");
    let [up, kill, more] = &pages[..] else { panic!("{pages:?}") };
    let done = type_in(up).exits(0);
    assert!(done.text().contains(&items), "{}{}", done.text(), done.stderr);
    let done = type_in(kill).exits(0);
    let sums: Vec<_> = done.text().lines().filter(|line| line.ends_with("  -")).collect();
    assert_eq!(sums.len(), 2, "{}", done.text());
    assert_eq!(sums[0], sums[1], "{}", done.stderr);
    assert!(done.stderr.contains("1 lost"), "{}", done.stderr);
    let done = type_in(more).exits(0);
    assert_eq!(done.text().matches("ready").count(), 5, "{}{}", done.text(), done.stderr);
    assert_eq!(done.text().matches("complete").count(), 3, "{}{}", done.text(), done.stderr);
    let left = docker.run(&["ps", "--all", "--quiet", "--filter", &docker.label()]);
    assert_eq!(left, "");
}

#[test]
fn a_killed_container_changes_nothing_in_the_output() {
    let Some(demo) = Demo::up("a_killed_container_changes_nothing_in_the_output") else { return };
    let map = job(&demo);
    let worker = &demo.containers("worker")[0];
    let _ = demo.docker().run(&["kill", worker]);
    let done = ended_well(map);
    assert_eq!(counted(&done, "lost"), 1, "{}", done.stderr);
}

#[test]
fn a_container_that_is_paused_for_a_while_is_waited_for() {
    let test = "a_container_that_is_paused_for_a_while_is_waited_for";
    let Some(demo) = Demo::up(test) else { return };
    let map = job(&demo);
    let worker = &demo.containers("worker")[0];
    let _ = demo.docker().run(&["pause", worker]);
    std::thread::sleep(Duration::from_secs(4));
    let _ = demo.docker().run(&["unpause", worker]);
    let done = ended_well(map);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

/// A map of one's own has a lease of seconds; a coordinator that serves waits for minutes, as workers do for it.
#[test]
fn a_container_that_stays_paused_is_given_up_and_its_late_results_are_ignored() {
    let test = "a_container_that_stays_paused_is_given_up_and_its_late_results_are_ignored";
    let Some(demo) = Demo::up(test) else { return };
    let words = [
        "map",
        "--dns",
        "worker",
        "--",
        "sh",
        "-c",
        "echo $1 >>/tmp/ran; sleep 0.1; echo item $1",
        "sh",
    ];
    let map = MapProcess::start(demo.client(&words), list());
    let workers = demo.containers("worker");
    eventually_within(PATIENCE, "each worker is at work", || ran(&demo).len(), |&runs| runs >= 30);
    let _ = demo.docker().run(&["pause", &workers[0]]);
    let done = ended_well(map);
    assert_eq!(counted(&done, "lost"), 1, "{}", done.stderr);
    let _ = demo.docker().run(&["unpause", &workers[0]]);
    // It is used again.
    let again = run_within(PATIENCE, demo.client(&["workers", "--dns", "worker"]), b"").exits(0);
    assert_eq!(again.text().matches("ready").count(), 3, "{}", again.text());
}

#[test]
fn a_host_that_leaves_the_network_for_a_while_runs_nothing_twice() {
    let test = "a_host_that_leaves_the_network_for_a_while_runs_nothing_twice";
    let Some(demo) = Demo::up(test) else { return };
    let map = job(&demo);
    let worker = &demo.containers("worker")[0];
    let network = demo.network();
    let _ = demo.docker().run(&["network", "disconnect", &network, worker]);
    std::thread::sleep(Duration::from_secs(2));
    let _ = demo.docker().run(&["network", "connect", "--alias", "worker", &network, worker]);
    let done = ended_well(map);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
    let mut ran = ran(&demo);
    ran.sort_unstable();
    assert_eq!(ran, Vec::from_iter(1..=ITEMS));
}

#[test]
fn every_host_is_started_again_in_turn_and_nothing_is_lost() {
    let test = "every_host_is_started_again_in_turn_and_nothing_is_lost";
    let Some(demo) = Demo::up(test) else { return };
    let map = job(&demo);
    for service in ["worker", "coordinator"] {
        for container in demo.containers(service) {
            let _ = demo.docker().run(&["restart", &container]);
        }
    }
    let done = ended_well(map);
    // A worker that is told to end finishes what it runs: nobody is lost.
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}

#[test]
fn a_host_on_a_bad_network_changes_nothing_in_the_output() {
    let test = "a_host_on_a_bad_network_changes_nothing_in_the_output";
    let Some(demo) = Demo::up(test) else { return };
    let process = demo.process(&demo.containers("worker")[0]).to_string();
    for chain in ["INPUT", "OUTPUT"] {
        let mut drop = Command::new("nsenter");
        drop.args(["--net", "--target", &process, "iptables", "-A", chain]);
        drop.args(["-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP"]);
        let _ = run(drop, b"").exits(0);
    }
    let _ = ended_well(job(&demo));
}

#[test]
fn workers_are_found_by_multicast_and_by_name_across_a_bridge() {
    let test = "workers_are_found_by_multicast_and_by_name_across_a_bridge";
    let Some(demo) = Demo::up(test) else { return };
    // Five of them now.
    let _ = demo.compose(&["up", "--detach", "--scale", "worker=5"]);
    let coordinator = &demo.containers("coordinator")[0];
    for source in [["--mdns"].as_slice(), &["--dns", "worker"]] {
        let listing = [&["exec", coordinator, "widemap", "workers", "--format", "json"], source];
        let _ = eventually(
            "five workers are found",
            || run(demo.docker().command(&listing.concat()), b"").exits(0).text().to_owned(),
            |listed| {
                listed.lines().filter(|line| line.contains("\"state\":\"ready\"")).count() == 5
            },
        );
    }
}

#[test]
fn the_image_is_small_and_so_is_an_idle_worker() {
    let test = "the_image_is_small_and_so_is_an_idle_worker";
    let Some(demo) = Demo::up(test) else { return };
    let image = demo.image_bytes() >> 20;
    println!("the image has {image} MiB");
    assert!(image < 40, "{image} MiB");
    let worker = &demo.containers("worker")[0];
    let processes = demo.docker().run(&["top", worker, "-eo", "pid"]);
    let processes = processes.lines().skip(1).map(|pid| pid.trim().parse().unwrap());
    // The worker and its spawner.
    let each: Vec<_> = processes.map(memory_bytes).collect();
    println!("an idle worker has {each:?} bytes");
    assert!(each.len() == 2 && each.iter().sum::<u64>() < 20 << 20, "{each:?}");
}

#[test]
fn the_image_with_python_runs_functions_of_it_and_neither_image_is_root() {
    let test = "the_image_with_python_runs_functions_of_it_and_neither_image_is_root";
    let Some(docker) = Docker::find(test) else { return };
    let with_python = docker.target("python");
    let script = "echo 'def square(x): return x * x' >/tmp/square.py
        seq 3 | widemap map --local 2 --python /tmp/square.py:square";
    let inside = |image: &str, script: &str| {
        let label = docker.label();
        let words = [
            "run",
            "--rm",
            "--label",
            label.trim_start_matches("label="),
            "--read-only",
            "--tmpfs",
        ];
        let words =
            [&words, ["/tmp:exec,mode=1777", image, "sh", "-ec", script].as_slice()].concat();
        run_within(PATIENCE, docker.command(&words), b"").exits(0).text().to_owned()
    };
    assert_eq!(inside(&with_python, script), "1\n4\n9\n");
    for image in [&with_python, &docker.target("slim")] {
        assert_eq!(inside(image, "id -u"), "65532\n");
    }
}
