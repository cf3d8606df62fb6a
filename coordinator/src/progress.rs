//! The progress bar: on a terminal only, and never where the results themselves are shown.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often it is drawn.
pub(crate) const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// What the bar shows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shown {
    /// Items accepted or failed.
    pub(crate) done: u64,
    /// Items in all, once the input has ended.
    pub(crate) total: Option<u64>,
    /// Failed for good.
    pub(crate) failed: u64,
    /// Runs beyond the first.
    pub(crate) retried: u64,
    /// Workers that are attached.
    pub(crate) workers: usize,
}

/// See the file's head.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar, hidden unless standard error is a terminal and standard output is not.
    pub(crate) fn new(wanted: bool, results_on_stdout: bool) -> Self {
        let seen = std::io::stderr().is_terminal()
            && !(results_on_stdout && std::io::stdout().is_terminal());
        let target = match wanted && seen {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{spinner} {pos} items  {per_sec}  {elapsed}  {msg}"));
        Self { bar }
    }

    /// Whether anybody sees it.
    pub(crate) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Draws it.
    pub(crate) fn draw(&self, shown: Shown) {
        if let Some(total) = shown.total.filter(|_| self.bar.length().is_none()) {
            self.bar.set_length(total);
            self.bar.set_style(style("{wide_bar} {pos}/{len}  {per_sec}  ETA {eta}  {msg}"));
        }
        self.bar.set_position(shown.done);
        let Shown { workers, retried, failed, .. } = shown;
        self.bar.set_message(format!("{workers} workers, {retried} retried, {failed} failed"));
        self.bar.tick();
    }

    /// Writes a line on standard error, above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| crate::say::line(line));
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant")
}
