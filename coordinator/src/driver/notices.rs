//! Lines for the person at the terminal, written by a thread of their own: a terminal that does not
//! read must not hold up the driver.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::progress::{Progress, Shown};
use crate::say;

/// Lines that wait to be written; what comes beyond is left out and counted.
const NOTICES_WAITING: usize = 1_024;

enum Notice {
    Line(String),
    Draw(Shown),
}

/// See the file's head.
pub(crate) struct Notices {
    queue: Option<SyncSender<Notice>>,
    writer: Option<JoinHandle<()>>,
    left_out: u64,
    shows_progress: bool,
    quiet: bool,
    logs: bool,
}

impl Notices {
    /// Starts the thread.
    pub(crate) fn start(progress: Progress, quiet: bool) -> Self {
        let (queue, notices) = sync_channel(NOTICES_WAITING);
        let progress = Arc::new(progress);
        let shows_progress = progress.is_shown();
        let writer = std::thread::spawn(move || {
            for notice in notices {
                match notice {
                    Notice::Line(line) => progress.say(&line),
                    Notice::Draw(shown) => progress.draw(shown),
                }
            }
            progress.clear();
        });
        Self {
            queue: Some(queue),
            writer: Some(writer),
            left_out: 0,
            shows_progress,
            quiet,
            logs: false,
        }
    }

    /// Lines for a log, where nobody sits at a terminal.
    pub(crate) fn log() -> Self {
        Self {
            queue: None,
            writer: None,
            left_out: 0,
            shows_progress: false,
            quiet: false,
            logs: true,
        }
    }

    /// Whether [`Notices::draw`] has any effect.
    pub(crate) fn shows_progress(&self) -> bool {
        self.shows_progress
    }

    /// A line about the map itself; not under `--quiet`.
    pub(crate) fn say(&mut self, line: &str) {
        if !self.quiet {
            self.line(format!("widemap: {line}"));
        }
    }

    /// A line as it is: what an item wrote on its standard error, or a warning.
    pub(crate) fn line(&mut self, line: String) {
        self.send(Notice::Line(line));
    }

    /// Draws the progress.
    pub(crate) fn draw(&mut self, shown: Shown) {
        self.send(Notice::Draw(shown));
    }

    fn send(&mut self, notice: Notice) {
        if let (true, Notice::Line(line)) = (self.logs, &notice) {
            tracing::info!("{}", line.strip_prefix("widemap: ").unwrap_or(line));
        }
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(Notice::Line(_))) = queue.try_send(notice) {
            self.left_out += 1;
        }
    }

    /// Writes what waits and ends the thread.
    pub(crate) fn close(mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && let Err(panic) = writer.join()
        {
            std::panic::resume_unwind(panic);
        }
        if self.left_out > 0 {
            let left_out = self.left_out;
            say::line(&format!("widemap: {left_out} lines of standard error were left out"));
        }
    }
}
