//! Whether the map has workers at all, and what it says about them.

use super::fleet::LinkStatus;
use super::one_shot::{ASKED, INTRODUCTION, OneShot};
use crate::error::MapError;
use crate::summary::plural;
use widemap_common::time::Time;

impl OneShot {
    /// Notices when the map is left without a usable worker, and when that ends.
    pub(super) fn watch_company(&mut self) {
        let usable = self
            .core
            .fleet
            .workers()
            .any(|(id, worker)| worker.is_or_may_be_alive() && !self.job().has_refused(id));
        match (usable, self.alone_since) {
            (true, Some(_)) => {
                if std::mem::take(&mut self.said.waiting) {
                    self.core.notices.say("a worker is here: going on");
                }
                self.alone_since = None;
            }
            (false, None) if !self.end.cancelled && !self.end.job_ended => {
                self.alone_since = Some(self.core.now);
            }
            _ => {}
        }
        let asked = self.core.now >= Time::ZERO + ASKED;
        let named = self.all_named_answered();
        if named || self.core.now >= Time::ZERO + INTRODUCTION {
            self.introduce();
        }
        let answered = named || (asked && self.all_answered());
        if answered && self.is_unusable_everywhere() && !self.end.cancelled {
            let refusals = self.job().refusals();
            self.alone_since = None;
            self.fail(MapError::Unusable { refusals });
        } else if self.alone_since.is_some() && answered && !self.end.cancelled {
            if self.core.fleet.is_here_only() {
                // Nobody else can come.
                self.give_up();
            } else {
                self.say_waiting();
            }
        }
    }

    /// Whether every worker that is there lacks what the function needs.
    fn is_unusable_everywhere(&self) -> bool {
        let mut alive =
            self.core.fleet.workers().filter(|(_, w)| w.is_or_may_be_alive()).peekable();
        !self.job().has_been_ready()
            && alive.peek().is_some()
            && alive.all(|(id, _)| self.job().is_unable(id))
    }

    /// Whether every place that is known so far has been heard of.
    fn all_answered(&self) -> bool {
        !self.core.fleet.places().any(|(_, _, status)| *status == LinkStatus::Dialling)
    }

    /// The same, where no other places can become known: somebody has named them one by one.
    fn all_named_answered(&self) -> bool {
        self.core.fleet.are_all_named()
            && self.core.fleet.places().next().is_some()
            && self.all_answered()
    }

    /// The first line: workers, slots, source.
    pub(super) fn introduce(&mut self) {
        let attached: Vec<_> =
            self.core.fleet.workers().filter(|(_, worker)| worker.is_attached()).collect();
        if self.said.start || attached.is_empty() {
            return;
        }
        let slots: u32 = attached.iter().map(|(_, w)| self.core.fleet.slots(w.hello.slots)).sum();
        let workers = attached.len();
        let only_here = attached.iter().all(|(id, _)| self.core.fleet.is_embedded(*id));
        let line = match only_here && self.core.fleet.places().count() == 1 {
            true => format!("this machine only: {}", plural(slots.into(), "slot")),
            false => format!(
                "{}, {}, from {}",
                plural(workers as u64, "worker"),
                plural(slots.into(), "slot"),
                self.core.fleet.sources().join(" and ")
            ),
        };
        self.core.notices.say(&line);
        self.said.start = true;
    }

    fn say_waiting(&mut self) {
        if self.said.waiting {
            return;
        }
        self.said.waiting = true;
        let limit = match self.wait {
            crate::cli::Wait::For(time) => format!(", up to {time:?}"),
            crate::cli::Wait::Forever => String::new(),
        };
        self.core.notices.say(&format!("waiting for a worker{limit}"));
        for line in self.describe_places() {
            self.core.notices.say(line.trim_start());
        }
    }

    /// Each place and what it answered, a line each.
    pub(super) fn describe_places(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .core
            .fleet
            .places()
            .map(|(place, sources, status)| {
                let state = self.describe(status);
                format!("  {place} (from {}): {state}", sources.join(", "))
            })
            .collect();
        lines.extend(self.core.fleet.remarks().into_iter().map(
            |(source, place, text)| match place {
                Some(place) => format!("  {place} (from {source}): {text}"),
                None => format!("  {source}: {text}"),
            },
        ));
        if self.core.fleet.untried() > 0 {
            lines.push(format!("  {} more that are announced", self.core.fleet.untried()));
        }
        if lines.is_empty() {
            lines.push("  no source names any worker".to_owned());
        }
        lines
    }

    fn describe(&self, status: &LinkStatus) -> String {
        match status {
            LinkStatus::Dialling => "no answer yet".to_owned(),
            LinkStatus::Attached(worker) => match self.job().refusal_of(*worker) {
                Some(refusal) => format!("cannot run this: {refusal}"),
                None => "attached".to_owned(),
            },
            LinkStatus::Cut(_, reason) => format!("cut off: {reason}"),
            LinkStatus::Alias(worker) => {
                format!("the same worker as {}", self.core.fleet.name(*worker))
            }
            LinkStatus::Unreachable(error) => error.to_string(),
            LinkStatus::Refused(reason) => reason.clone(),
        }
    }
}
