//! Clusters in containers, as `deploy/compose.yaml` makes them: each host has an address of its own. What was started
//! goes with the value that stands for it, also when a test fails; what a killed test left goes with the next one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Run, run_within};
use crate::wait::{needs, needs_root, unmet};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What images begin with where none can be pulled; the names are the script's own.
const DEBIAN: &str = "widemap-base/debian:bookworm";
const RUST: &str = "widemap-base/rust:bookworm";

/// The image of the demo, called otherwise than a user's.
const IMAGE: &str = "widemap-test/widemap:slim";

/// How the images are compiled: quickly, since nothing measures them. The variable of `deploy/compose.yaml`, the
/// setting of Cargo's profile, and the value, as `.ci/run` has them.
const PROFILE: [(&str, &str, &str); 2] =
    [("WIDEMAP_OPT_LEVEL", "OPT_LEVEL", "1"), ("WIDEMAP_LTO", "LTO", "off")];

/// How projects of tests are called; the number of the process follows.
const PROJECT: &str = "widemap-test-";

/// Making an image compiles everything once.
const BUILD: Duration = Duration::from_secs(40 * 60);
/// Anything else.
const BOUND: Duration = Duration::from_secs(180);

/// One cluster in containers at a time: two cores are not many.
static ONE: Mutex<()> = Mutex::new(());

/// Docker, where the test can use it.
#[derive(Debug)]
pub struct Docker {
    project: String,
    /// Where `docker compose` is one program whichever there is.
    bin: TempDir,
    _one: MutexGuard<'static, ()>,
}

/// A cluster that `deploy/compose.yaml` describes.
#[derive(Debug)]
pub struct Demo {
    docker: Docker,
}

impl Docker {
    /// Docker, with the images made; `None` where this machine does not have it, which the test says.
    ///
    /// # Panics
    /// If it is there and the images cannot be made.
    #[must_use]
    pub fn find(test: &str) -> Option<Self> {
        if !needs_root(test) || !needs(test, "docker") || !needs(test, "debootstrap") {
            return None;
        }
        let answers = |program: &str, words: &[&str]| {
            let mut command = Command::new(program);
            command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if !answers("docker", &["info"]) && !unmet(test, "a Docker engine that runs") {
            return None;
        }
        let plugin = answers("docker", &["compose", "version"]);
        if !plugin && !needs(test, "docker-compose") {
            return None;
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let project = format!("{PROJECT}{}-{count}", std::process::id());
        let docker = Self { project, bin: tempfile::tempdir().expect("a directory"), _one: one };
        if !plugin {
            docker.stand_in();
        }
        static IMAGES: OnceLock<()> = OnceLock::new();
        IMAGES.get_or_init(|| docker.make_images());
        Some(docker)
    }

    /// What follows `docker`.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(words);
        self.surround(&mut command);
        command
    }

    /// Runs it to its end, which has to be a good one, and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, words: &[&str]) -> String {
        let done = run_within(BOUND, self.command(words), b"");
        assert_eq!(done.status, 0, "docker {words:?}: {}", done.stderr);
        done.text().trim().to_owned()
    }

    /// A script as somebody at the project's root would type it.
    #[must_use]
    pub fn script(&self, script: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]);
        self.surround(&mut shell);
        shell
    }

    /// The name of an image that is this test's own, made of the words of a container file and of a directory.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn image(&self, name: &str, file: &str) -> String {
        let tag = format!("widemap-test/{name}");
        let mut build = self.command(&["build", "--quiet", "--tag", &tag, "-"]);
        build.env("DOCKER_BUILDKIT", "0");
        let file = format!("FROM {DEBIAN}\n{file}");
        let done = run_within(BUILD, build, file.as_bytes());
        assert_eq!(done.status, 0, "{}", done.stderr);
        tag
    }

    /// The image that `deploy/Containerfile` makes for a target, by its name.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn target(&self, target: &str) -> String {
        let tag = format!("widemap-test/widemap:{target}");
        let (debian, rust) = (format!("DEBIAN={DEBIAN}"), format!("RUST={RUST}"));
        let mut build = self.command(&["build", "--quiet", "-f", "deploy/Containerfile"]);
        build.args(["--build-arg", &debian, "--build-arg", &rust, "--target", target]);
        let profile =
            PROFILE.map(|(_, name, value)| format!("CARGO_PROFILE_RELEASE_{name}={value}"));
        build.args(profile.iter().flat_map(|argument| ["--build-arg", argument]));
        build.args(["--tag", &tag, "."]).env("DOCKER_BUILDKIT", "0");
        let done = run_within(BUILD, build, b"");
        assert_eq!(done.status, 0, "{}", done.stderr);
        tag
    }

    /// A container that runs until this value goes.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(&self, options: &[&str], image: &str, words: &[&str]) -> Container<'_> {
        let label = self.of_project();
        let fixed = ["run", "--detach", "--label", &label];
        Container { id: self.run(&[&fixed, options, &[image], words].concat()), docker: self }
    }

    /// A network of its own, by its name.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn network(&self) -> String {
        let label = self.of_project();
        let name = format!("{}_own", self.project);
        let _ = self.run(&["network", "create", "--label", &label, &name]);
        name
    }

    /// The static programs that the images hold, in a directory.
    ///
    /// # Panics
    /// If they cannot be had.
    #[must_use]
    pub fn static_binaries(&self) -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let id = self.run(&["create", IMAGE]);
        for name in ["widemap", "widemap-worker"] {
            let from = format!("{id}:/usr/local/bin/{name}");
            let _ = self.run(&[
                "cp",
                "--follow-link",
                &from,
                directory.path().to_str().expect("a path"),
            ]);
        }
        let _ = self.run(&["rm", &id]);
        directory
    }

    /// What finds this test's containers, as a filter.
    #[must_use]
    pub fn label(&self) -> String {
        format!("label={}", self.of_project())
    }

    fn of_project(&self) -> String {
        format!("com.docker.compose.project={}", self.project)
    }

    fn surround(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.current_dir(ROOT);
        command.env("PATH", format!("{}:{path}", self.bin.path().display()));
        command.env("COMPOSE_PROJECT_NAME", &self.project);
        command.env("DEBIAN_IMAGE", DEBIAN).env("RUST_IMAGE", RUST);
        command.env("WIDEMAP_IMAGE", IMAGE).env_remove("COMPOSE_FILE");
        command.envs(PROFILE.map(|(variable, _, value)| (variable, value)));
    }

    /// Debian's `docker-compose` does for `docker compose` where that is missing.
    fn stand_in(&self) {
        let docker = which("docker");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = compose ]; then shift; exec docker-compose \"$@\"; fi\nexec {} \"$@\"\n",
            docker.display()
        );
        let path = self.bin.path().join("docker");
        std::fs::write(&path, script).expect("it can be written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
    }

    fn make_images(&self) {
        self.sweep();
        let bases = format!("deploy/base-images {DEBIAN} {RUST}");
        let done = run_within(BUILD, self.script(&bases), b"");
        assert_eq!(done.status, 0, "{}", done.stderr);
        let build = self.command(&["compose", "-f", "deploy/compose.yaml", "build", "coordinator"]);
        let done = run_within(BUILD, build, b"");
        assert_eq!(done.status, 0, "{}{}", done.text(), done.stderr);
    }

    /// Removes what killed tests have left.
    fn sweep(&self) {
        let label = "{{.Label \"com.docker.compose.project\"}}";
        let all = self.run(&[
            "ps",
            "--all",
            "--filter",
            "label=com.docker.compose.project",
            "--format",
            label,
        ]);
        for project in all.lines() {
            let process = project.strip_prefix(PROJECT).and_then(|rest| rest.split('-').next());
            let Some(process) = process else { continue };
            if !Path::new("/proc").join(process).exists() {
                self.remove(project);
            }
        }
    }

    /// Removes all that a project consists of.
    fn remove(&self, project: &str) {
        let filter = format!("label=com.docker.compose.project={project}");
        for (list, remove) in [
            (vec!["ps", "--all", "--quiet"], vec!["rm", "--force", "--volumes"]),
            (vec!["network", "ls", "--quiet"], vec!["network", "rm"]),
            (vec!["volume", "ls", "--quiet"], vec!["volume", "rm", "--force"]),
        ] {
            let list = [list, vec!["--filter", &filter]].concat();
            let Ok(found) = self.command(&list).stderr(Stdio::null()).output() else { continue };
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            let ids: Vec<_> = found.lines().collect();
            if !ids.is_empty() {
                // What cannot be removed stays: there is a test to be ended.
                let mut command = self.command(&[remove, ids].concat());
                let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            }
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.remove(&self.project);
    }
}

/// A container that is not compose's.
#[derive(Debug)]
pub struct Container<'a> {
    id: String,
    docker: &'a Docker,
}

impl Container<'_> {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address on Docker's own network.
    #[must_use]
    pub fn address(&self) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        self.docker.run(&["inspect", "--format", format, &self.id])
    }

    /// Runs a script in it.
    #[must_use]
    pub fn run(&self, script: &str) -> Run {
        let words = ["exec", &self.id, "bash", "-euo", "pipefail", "-c", script];
        run_within(BOUND, self.docker.command(&words), b"")
    }
}

impl Demo {
    /// The cluster, with its containers running; `None` where there is no Docker.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn up(test: &str) -> Option<Self> {
        let demo = Self { docker: Docker::find(test)? };
        let _ = demo.compose(&["up", "--detach"]);
        Some(demo)
    }

    /// Docker.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Runs `docker compose` with these words, which has to end well.
    pub fn compose(&self, words: &[&str]) -> String {
        self.docker.run(&[&["compose", "-f", "deploy/compose.yaml"], words].concat())
    }

    /// `widemap` with these words, in a container of its own.
    #[must_use]
    pub fn client(&self, words: &[&str]) -> Command {
        let fixed = ["compose", "-f", "deploy/compose.yaml", "run", "--rm", "-T", "client"];
        self.docker.command(&[&fixed, words].concat())
    }

    /// The containers of a service, by their numbers.
    #[must_use]
    pub fn containers(&self, service: &str) -> Vec<String> {
        self.compose(&["ps", "--quiet", service]).lines().map(str::to_owned).collect()
    }

    /// The first process of a container, as this machine sees it.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn process(&self, container: &str) -> u32 {
        let process = self.docker.run(&["inspect", "--format", "{{.State.Pid}}", container]);
        process.parse().expect("a process has a number")
    }

    /// The bytes of the demo's image.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        let size = self.docker.run(&["image", "inspect", "--format", "{{.Size}}", IMAGE]);
        size.parse().expect("a size is a number")
    }

    /// The network that the containers are on.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}_cluster", self.docker.project)
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join(program));
    places.into_iter().find(|path| path.is_file()).expect("it was found before")
}
