//! Real processes on loopback: workers, maps, and what they print.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::binaries::binary;
use crate::net::Host;
use crate::said::Said;
use crate::wait::eventually;

/// No test waits longer for a process.
const BOUND: Duration = Duration::from_secs(60);

/// A worker, killed when it is dropped.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    address: String,
    said: Said,
}

impl WorkerProcess {
    /// Starts a worker on a free port of loopback.
    #[must_use]
    pub fn start(name: &str, slots: u32) -> Self {
        Self::start_with(name, slots, &["--listen", "127.0.0.1:0"])
    }

    /// Starts a worker with further options.
    ///
    /// # Panics
    /// If it does not say where it listens.
    #[must_use]
    pub fn start_with(name: &str, slots: u32, options: &[&str]) -> Self {
        Self::spawn(worker(name, slots, options))
    }

    /// Starts a worker on a host that has no other.
    ///
    /// # Panics
    /// If it does not say where it listens.
    #[must_use]
    pub fn start_on(host: &Host, name: &str, slots: u32, options: &[&str]) -> Self {
        let address = host.worker_address();
        let options = [&["--insecure", "--listen", &address], options].concat();
        Self::spawn(host.inside(&worker(name, slots, &options)))
    }

    /// Starts a worker from its command.
    ///
    /// # Panics
    /// If it does not say where it listens.
    #[must_use]
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("widemap-worker starts");
        let said = Said::of(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("it prints a line");
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let address = address.unwrap_or_else(|| {
            panic!("not `listening on`, but `{line}`: {}", said.so_far());
        });
        Self { child, address, said }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.so_far()
    }

    /// Waits until it has said this.
    pub fn says(&self, text: &str) {
        eventually(&format!("it says `{text}`"), || self.said(), |said| said.contains(text));
    }

    /// Kills it: it gets no chance to say anything.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// If it cannot be asked.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Its exit status, once it ends by itself.
    ///
    /// # Panics
    /// If it does not end.
    pub fn exit_status(&mut self) -> i32 {
        wait(&mut self.child, "widemap-worker", BOUND).code().unwrap_or(-1)
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a finished process left.
#[derive(Debug)]
pub struct Run {
    /// Its exit status; -1 if a signal ended it.
    pub status: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
}

impl Run {
    /// What it printed, as text.
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("it printed UTF-8")
    }

    /// Checks the exit status, and shows what was said if it is another.
    ///
    /// # Panics
    /// If it is another.
    #[must_use]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}", self.stderr);
        self
    }
}

/// `widemap-worker` with these options, which nobody is told of.
#[must_use]
pub fn worker(name: &str, slots: u32, options: &[&str]) -> Command {
    announced_worker(name, slots, &[&["--no-mdns"], options].concat())
}

/// `widemap-worker` with these options, which announces itself if they let it: on a host of the
/// test's own alone.
#[must_use]
pub fn announced_worker(name: &str, slots: u32, options: &[&str]) -> Command {
    let mut command = Command::new(binary("widemap-worker"));
    command.args(["--name", name, "--slots", &slots.to_string()]).args(options);
    without_configuration(&mut command);
    command
}

/// `widemap`, with these arguments, without what the environment could add.
#[must_use]
pub fn widemap(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("widemap"));
    command.args(arguments);
    without_configuration(&mut command);
    command
}

/// Whoever runs the tests may have a key, a configuration file and variables: no test sees them.
pub fn without_configuration(command: &mut Command) {
    let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"WIDEMAP_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    // Nothing can be there.
    command.env("XDG_CONFIG_HOME", "/dev/null/none");
}

/// Runs a command to its end with these bytes as standard input.
///
/// # Panics
/// If it cannot be started or does not end within a minute.
#[must_use]
pub fn run(command: Command, input: &[u8]) -> Run {
    run_within(BOUND, command, input)
}

/// The same with a bound of its own, for a command that builds something first.
///
/// # Panics
/// If it cannot be started or does not end in time.
#[must_use]
pub fn run_within(bound: Duration, mut command: Command, input: &[u8]) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let (mut stdin, stdout, stderr) = pipes(&mut child);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It need not read all of it.
            let _ = stdin.write_all(input);
        });
        let stdout = scope.spawn(move || bytes_of(stdout));
        let stderr = scope.spawn(move || bytes_of(stderr));
        let status = waited(&mut child, bound);
        let stdout = stdout.join().expect("the reader does not panic");
        let stderr = stderr.join().expect("the reader does not panic");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let Some(status) = status else {
            panic!("widemap did not end within {bound:?}, and said: {stderr}");
        };
        Run { status: status.code().unwrap_or(-1), stdout, stderr }
    })
}

/// Starts a command whose end the test sees to, with its output piped.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn exec_in_background(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

/// All that can be read.
///
/// # Panics
/// If reading fails.
pub fn bytes_of(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).expect("a pipe can be read");
    bytes
}

type Pipes = (std::process::ChildStdin, std::process::ChildStdout, std::process::ChildStderr);

fn pipes(child: &mut Child) -> Pipes {
    let piped = "it is piped";
    (
        child.stdin.take().expect(piped),
        child.stdout.take().expect(piped),
        child.stderr.take().expect(piped),
    )
}

pub(crate) fn wait(child: &mut Child, name: &str, bound: Duration) -> ExitStatus {
    waited(child, bound).unwrap_or_else(|| panic!("{name} did not end within {bound:?}"))
}

/// Waits for a child, and kills it if it does not end in time.
fn waited(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + bound;
    loop {
        let status = child.try_wait().expect("a child can be waited for");
        if status.is_some() {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
