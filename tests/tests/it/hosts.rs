//! Widemap on what people have: hosts with ssh, systemd, Slurm and Kubernetes, each run as its page in
//! `deploy/README.md` says, against the real program in containers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use widemap_tests::{Container, Docker, binary, eventually_within, needs, run, run_within};

use crate::support::Key;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A service manager or a queue takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

const SSH: &str = "\
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends openssh-server \\
  && rm -rf /var/lib/apt/lists/* && mkdir -p /run/sshd && useradd --create-home ann
";

const SLURM: &str = "\
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge \\
  && rm -rf /var/lib/apt/lists/*
";

const SYSTEMD: &str = "\
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd systemd-sysv dbus \\
  && rm -rf /var/lib/apt/lists/* && useradd --system --no-create-home widemap-items
";

/// Two nodes and who knows of them.
const SLURM_CONF: &str = "\
ClusterName=lab
SlurmctldHost=node1
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
NodeName=node[1-2] CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
";

/// The commands of a page of `deploy/README.md`.
fn page(words: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("deploy/README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.into_iter().find(|block| block.contains(words)).unwrap().to_owned()
}

fn items(numbers: u32) -> String {
    (1..=numbers).map(|number| format!("item {number}\n")).collect()
}

/// A directory on this machine that containers see as well.
fn shared(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn volume(from: &Path, to: &str) -> String {
    format!("{}:{to}", from.display())
}

#[test]
fn hosts_with_ssh_become_workers_in_one_command() {
    let test = "hosts_with_ssh_become_workers_in_one_command";
    if !needs(test, "ssh") {
        return;
    }
    let Some(docker) = Docker::find(test) else { return };
    let image = docker.image("ssh", SSH);
    let static_binaries = docker.static_binaries();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &path("id")]);
    let _ = run(keygen, b"").exits(0);
    let public = std::fs::read_to_string(path("id.pub")).unwrap();
    let hosts: Vec<_> =
        (0..2).map(|_| docker.start(&["--init"], &image, &["sleep", "600"])).collect();
    for host in &hosts {
        let script = format!(
            "install -d -o ann -g ann -m 0700 ~ann/.ssh; echo '{}' > ~ann/.ssh/authorized_keys; \
             /usr/sbin/sshd -o StrictModes=no",
            public.trim()
        );
        let _ = host.run(&script).exits(0);
    }
    // As the page says; the names of its hosts are the addresses of these.
    let addresses: Vec<_> = hosts.iter().map(Container::address).collect();
    let options = format!(
        "--worker {}/widemap-worker --ssh 'ssh -i {} -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR'",
        static_binaries.path().display(),
        path("id")
    );
    let script = page("ssh-workers ann bob > workers")
        .replace("ssh-workers ann", &format!("ssh-workers {options} ann"))
        .replace("--stop ann", &format!("--stop {options} ann"))
        .replace("ann bob", &format!("ann@{} ann@{}", addresses[0], addresses[1]))
        .replace("deploy/", &format!("{ROOT}/deploy/"));
    let mut shell = docker.script(&script);
    let binaries = binary("widemap").parent().unwrap().display().to_string();
    shell.env("PATH", format!("{binaries}:{}", std::env::var("PATH").unwrap()));
    shell.env("HOME", directory.path()).env_remove("XDG_CONFIG_HOME").current_dir(directory.path());
    let done = run_within(PATIENCE, shell, b"").exits(0);
    assert!(done.text().ends_with(&items(100)), "{}{}", done.text(), done.stderr);
    for address in &addresses {
        let told = [format!("{address}: listening on port 7433"), format!("{address}: ended")];
        assert!(told.iter().all(|line| done.stderr.contains(line)), "{}", done.stderr);
    }
    let left = hosts[0].run("cat ~ann/.local/share/widemap/worker.log; pgrep widemap || true");
    assert!(left.text().contains("drained"), "{}", left.text());

    // One that cannot be reached is named, and the other one is used.
    let unreachable = format!(
        "{ROOT}/deploy/ssh-workers {} --key {}/.config/widemap/key ann@{} nobody@{}",
        options,
        directory.path().display(),
        addresses[0],
        addresses[1]
    );
    let mut shell = docker.script(&unreachable);
    shell.env("PATH", format!("{binaries}:{}", std::env::var("PATH").unwrap()));
    let done = run_within(PATIENCE, shell, b"").exits(1);
    assert_eq!(done.text(), format!("{}:7433\n", addresses[0]));
    assert!(done.stderr.contains(&format!("nobody@{}: failed", addresses[1])), "{}", done.stderr);
}

#[test]
fn a_slurm_allocation_runs_a_map() {
    let Some(docker) = Docker::find("a_slurm_allocation_runs_a_map") else { return };
    let image = docker.image("slurm", SLURM);
    let static_binaries = docker.static_binaries();
    let secret: String = std::iter::repeat_n("not a secret at all ", 60).collect();
    let files = shared(&[("slurm.conf", SLURM_CONF), ("munge.key", &secret)]);
    let home = tempfile::tempdir().unwrap();
    let network = docker.network();
    let at = |name: &str| files.path().join(name);
    let conf = volume(&at("slurm.conf"), "/etc/slurm/slurm.conf:ro");
    let munge = volume(&at("munge.key"), "/munge.key:ro");
    let deploy =
        volume(&Path::new(ROOT).canonicalize().unwrap().join("deploy"), "/shared/deploy:ro");
    let bin = volume(static_binaries.path(), "/opt/widemap:ro");
    let shared = volume(home.path(), "/shared");
    let node = |name: &str| {
        let options = [
            "--init",
            "--hostname",
            name,
            "--network",
            &network,
            "--network-alias",
            name,
            "-v",
            &shared,
            "-v",
            &deploy,
            "-v",
            &conf,
            "-v",
            &munge,
            "-v",
            &bin,
        ];
        let node = docker.start(&options, &image, &["sleep", "600"]);
        let begin = "install -o munge -g munge -m 0400 /munge.key /etc/munge/munge.key
            install -d -o munge -g munge /run/munge
            mkdir -p /var/spool/slurmctld /var/spool/slurmd
            runuser -u munge -- munged";
        let _ = node.run(begin).exits(0);
        node
    };
    let (first, second) = (node("node1"), node("node2"));
    let _ = first.run("slurmctld; slurmd").exits(0);
    let _ = second.run("slurmd").exits(0);
    let idle = || first.run("sinfo --noheader --format '%D %t'").text().to_owned();
    let _ = eventually_within(PATIENCE, "both nodes are idle", idle, |nodes| nodes == "2 idle\n");

    let script = page("sbatch ").replace("\nsbatch ", "\nsbatch --wait ");
    let script = format!("cd /shared; export WIDEMAP_BIN=/opt/widemap\n{script}");
    let done = first.run(&script);
    let logs = || first.run("cat /shared/widemap-*.log || true").text().to_owned();
    assert_eq!(done.status, 0, "{}{}", done.stderr, logs());
    assert_eq!(std::fs::read_to_string(home.path().join("results")).unwrap(), items(1000));
    let log = logs();
    assert!(log.contains("2 workers"), "{log}");
    // Key and addresses are gone.
    let left = first.run("ls -A /shared").exits(0);
    assert!(!left.text().contains(".widemap-"), "{}", left.text());
}

#[test]
fn systemd_runs_the_units_and_a_worker_drains_when_it_is_stopped() {
    let test = "systemd_runs_the_units_and_a_worker_drains_when_it_is_stopped";
    let Some(docker) = Docker::find(test) else { return };
    let image = docker.image("systemd", SYSTEMD);
    let static_binaries = docker.static_binaries();
    let key = Key::new();
    let bin = volume(static_binaries.path(), "/opt/widemap:ro");
    let units =
        volume(&Path::new(ROOT).canonicalize().unwrap().join("deploy/systemd"), "/opt/units:ro");
    let secret = volume(Path::new(key.path()), "/opt/key:ro");
    // What a service manager has on a host: its control groups, and a /proc with nothing hidden.
    let options = [
        "--cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt systempaths=unconfined",
        "--cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw --env container=docker",
        "--tmpfs /run --tmpfs /run/lock --tmpfs /tmp:exec -v",
        &bin,
        "-v",
        &units,
        "-v",
        &secret,
    ];
    let options = options.join(" ");
    let options: Vec<_> = options.split(' ').collect();
    let host = docker.start(&options, &image, &["/sbin/init"]);
    let state = || host.run("systemctl is-system-running || true").text().trim().to_owned();
    let _ = eventually_within(PATIENCE, "systemd is up", state, |state| state == "running");
    // As the heads of the units say; starting one returns when it has said that it is ready.
    // In a container mounts are the container's alone unless that is said; on a host they are not.
    let install = "
        mount --make-rshared /
        install -m 0755 /opt/widemap/widemap /opt/widemap/widemap-worker /usr/local/bin/
        install -D -m 0600 /opt/key /etc/widemap/key
        install -m 0644 /opt/units/*.service /etc/systemd/system/
        systemctl daemon-reload
        systemctl enable --now widemap-serve widemap-worker";
    let done = host.run(install);
    let log = || host.run("journalctl --no-pager -u widemap-serve -u widemap-worker | tail -n 40");
    assert_eq!(done.status, 0, "{}{}", done.stderr, log().text());

    let map = "seq 50 | widemap map --coordinator 127.0.0.1 -- sh -c 'sleep 0.2; id -un >&2; echo item $1' sh";
    let done = host.run(map);
    assert_eq!((done.status, done.text()), (0, &*items(50)), "{}{}", done.stderr, log().text());
    assert!(done.stderr.contains("widemap-items"), "{}", done.stderr);

    // A worker that is stopped finishes what it runs; the coordinator starts again with all that it had.
    let _ = host
        .run("echo 4 | widemap submit --coordinator 127.0.0.1 -- sh -c 'sleep 4; echo done' sh")
        .exits(0);
    std::thread::sleep(Duration::from_secs(1));
    let _ = host.run("systemctl stop widemap-worker").exits(0);
    let ended = host.run("systemctl show widemap-worker --property Result,ExecMainStatus");
    assert_eq!(ended.text(), "Result=success\nExecMainStatus=0\n", "{}", log().text());
    let _ = host.run("systemctl restart widemap-serve").exits(0);
    let results = host.run("widemap results --coordinator 127.0.0.1 2");
    assert_eq!(
        (results.status, results.text()),
        (0, "done\n"),
        "{}{}",
        results.stderr,
        log().text()
    );
    let _ = host.run("systemctl stop widemap-serve").exits(0);
    let ended = host.run("systemctl show widemap-serve --property Result");
    assert_eq!(ended.text(), "Result=success\n", "{}", log().text());
}

#[test]
fn the_manifests_of_kubernetes_hold_to_its_schemas() {
    let test = "the_manifests_of_kubernetes_hold_to_its_schemas";
    if !needs(test, "kubectl") || !needs(test, "kubernetes-validate") {
        return;
    }
    // As the page says: the key and a bundle lie beside the manifests.
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(Path::new(ROOT).join("deploy/kubernetes")).unwrap() {
        let entry = entry.unwrap();
        let _ = std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let key = Key::new();
    let _ = std::fs::copy(key.path(), directory.path().join("key")).unwrap();
    let _ = std::fs::copy(key.bundle(), directory.path().join("bundle")).unwrap();
    let mut kustomize = Command::new("kubectl");
    kustomize.arg("kustomize").arg(directory.path());
    let rendered = run(kustomize, b"").exits(0);
    let manifest = directory.path().join("rendered.yaml");
    let validated = |text: &str| {
        std::fs::write(&manifest, text).unwrap();
        let mut validate = Command::new("kubernetes-validate");
        validate.arg("--strict").arg(&manifest);
        run_within(PATIENCE, validate, b"")
    };
    let done = validated(rendered.text()).exits(0);
    let said = [done.text(), &done.stderr].concat();
    assert_eq!(said.matches(" passed ").count(), 8, "{said}");
    // It would see a mistake.
    let misspelt =
        rendered.text().replace("terminationGracePeriodSeconds", "terminationGraceSeconds");
    assert_ne!(validated(&misspelt).status, 0);
    // What the containers are told, the programs know.
    let words = rendered.text().lines().map(str::trim);
    let options: Vec<_> = words.filter_map(|line| line.strip_prefix("- --")).collect();
    assert!(options.len() >= 7, "{options:?}");
    for program in ["widemap", "widemap-worker"] {
        let help = if program == "widemap" { ["serve", "--help"].as_slice() } else { &["--help"] };
        let mut command = Command::new(binary(program));
        command.args(help);
        let help = run(command, b"").exits(0);
        let known = options.iter().filter(|option| {
            let name = option.split('=').next().unwrap();
            help.text().contains(&format!("--{name}"))
        });
        assert!(known.count() >= 4, "{program}: {options:?}");
    }
}

#[test]
fn a_release_is_two_programs_with_their_manual_and_a_checksum() {
    let test = "a_release_is_two_programs_with_their_manual_and_a_checksum";
    let Some(docker) = Docker::find(test) else { return };
    let binaries = docker.static_binaries();
    let out = tempfile::tempdir().unwrap();
    let release = |out: &Path| {
        let script =
            format!("deploy/release --binaries {} {}", binaries.path().display(), out.display());
        run_within(PATIENCE, docker.script(&script), b"")
    };
    let done = release(out.path());
    assert_eq!(done.status, 0, "{}", done.stderr);
    let check = format!(
        "cd {} && sha256sum --check --quiet *.sha256 && tar -tzf *.tar.gz",
        out.path().display()
    );
    let listed = run(docker.script(&check), b"").exits(0);
    for file in [
        "/widemap",
        "/widemap-worker",
        "/LICENSE",
        "/man/man1/widemap-map.1",
        "/man/man1/widemap-worker.1",
        "/completions/widemap.bash",
        "/completions/_widemap-worker",
        "/completions/widemap.fish",
        "/systemd/widemap-worker.service",
        "/ssh-workers",
    ] {
        assert!(
            listed.text().lines().any(|line| line.ends_with(file)),
            "{file} of {}",
            listed.text()
        );
    }
    // The same files give the same bytes.
    let again = tempfile::tempdir().unwrap();
    let _ = release(again.path()).exits(0);
    let sums = |directory: &Path| {
        let sum = format!("cat {}/*.sha256", directory.display());
        run(docker.script(&sum), b"").exits(0).text().to_owned()
    };
    assert_eq!(sums(out.path()), sums(again.path()));
    // One that is not static is refused.
    let dynamic = tempfile::tempdir().unwrap();
    for name in ["widemap", "widemap-worker"] {
        let to = dynamic.path().join(name);
        let _ = std::fs::copy("/bin/true", &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = format!(
        "deploy/release --binaries {} {}",
        dynamic.path().display(),
        again.path().display()
    );
    let refused = run(docker.script(&script), b"").exits(1);
    assert!(refused.stderr.contains("is not static"), "{}", refused.stderr);
}
