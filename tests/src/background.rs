//! A map that goes on while the test does something to its workers.

use std::io::Write;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::observe::memory_peak_bytes;
use crate::process::{Run, bytes_of, wait};
use crate::said::Said;
use crate::wait::eventually;

/// No test waits longer for a map.
const BOUND: Duration = Duration::from_secs(120);

/// A map in the background, killed when it is dropped.
#[derive(Debug)]
pub struct MapProcess {
    child: Child,
    begun: Instant,
    said: Said,
    stdout: Option<ChildStdout>,
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl MapProcess {
    /// Starts a map with these bytes as standard input.
    #[must_use]
    pub fn start(command: Command, input: impl Into<Vec<u8>>) -> Self {
        let mut map = Self::start_unread(command, input);
        let stdout = map.stdout();
        map.reader = Some(std::thread::spawn(move || bytes_of(stdout)));
        map
    }

    /// The same, but nobody reads its output until [`MapProcess::stdout`] is taken, by the test or at
    /// its end.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_unread(mut command: Command, input: impl Into<Vec<u8>>) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let input = input.into();
        // This thread ends with the process, which ends with this value.
        std::thread::spawn(move || {
            // It need not read all of it.
            let _ = stdin.write_all(&input);
        });
        let said = Said::of(child.stderr.take().expect("it is piped"));
        let stdout = child.stdout.take();
        Self { child, begun, said, stdout, reader: None }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been running.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
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

    /// Its standard output, for a test that reads in its own way.
    ///
    /// # Panics
    /// If it was taken already.
    pub fn stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("it is taken once")
    }

    /// Whether it is still running.
    ///
    /// # Panics
    /// If it cannot be asked.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    /// Reads what is left, and waits for its end.
    ///
    /// # Panics
    /// If it does not end, with what it has said.
    #[must_use]
    pub fn finish(self) -> Run {
        self.finish_measured().0
    }

    /// The same, and tells the most memory that it has had, in bytes.
    ///
    /// # Panics
    /// If it does not end, with what it has said.
    #[must_use]
    pub fn finish_measured(mut self) -> (Run, u64) {
        if let Some(stdout) = self.stdout.take() {
            self.reader = Some(std::thread::spawn(move || bytes_of(stdout)));
        }
        let end = self.begun + BOUND;
        let mut memory_peak = 0;
        while self.is_running() {
            assert!(Instant::now() < end, "no end within {BOUND:?}: {}", self.said());
            memory_peak = memory_peak_bytes(self.pid()).unwrap_or(memory_peak);
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let status = wait(&mut self.child, "widemap", BOUND).code().unwrap_or(-1);
        let stdout = self.reader.take().map(|reader| reader.join().expect("it does not panic"));
        let stdout = stdout.unwrap_or_default();
        (Run { status, stdout, stderr: self.said.to_the_end() }, memory_peak)
    }
}

impl Drop for MapProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
