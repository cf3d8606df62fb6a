//! What a check has found: whether it is well, and what to do where it is not.

use serde_json::{Value, json};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// The configuration file.
    Configuration,
    /// The key file, or what stands for it.
    Key,
    /// The wall clocks of this host and of the workers.
    Clock,
    /// The network interfaces of this host.
    Interface,
    /// The usual port of a worker on this host.
    Port,
    /// Each worker that is named or found.
    Worker,
    /// Whether announcements are heard.
    Multicast,
}

/// How well it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// Nothing to do.
    Ok,
    /// It works, or is not needed, and somebody should know of it.
    Warning,
    /// A map would not run as it is meant to.
    Problem,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: Check,
    /// How well it is.
    pub(super) status: Status,
    /// What is so.
    pub(super) what: String,
    /// What to do, where something is.
    pub(super) action: Option<String>,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Key => "key",
            Self::Clock => "clock",
            Self::Interface => "interface",
            Self::Port => "port",
            Self::Worker => "worker",
            Self::Multicast => "multicast",
        }
    }
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Finding {
    /// It is well.
    pub(super) fn ok(check: Check, what: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, what: what.into(), action: None }
    }

    /// It may be meant so.
    pub(super) fn warning(
        check: Check,
        what: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self { check, status: Status::Warning, what: what.into(), action: Some(action.into()) }
    }

    /// It is not well.
    pub(super) fn problem(
        check: Check,
        what: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self { check, status: Status::Problem, what: what.into(), action: Some(action.into()) }
    }

    /// A warning, or where it matters a problem.
    pub(super) fn grave(self, is_grave: bool) -> Self {
        Self { status: if is_grave { Status::Problem } else { Status::Warning }, ..self }
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let (status, check) = (self.status.name(), self.check.name());
        let mut text = format!("{status:<8} {check:<13}  {}", self.what);
        if let Some(action) = &self.action {
            text.push_str(&format!("\n{:24}do: {action}", ""));
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "check": self.check.name(),
            "status": self.status.name(),
            "what": self.what,
            "do": self.action,
        })
    }
}

/// What all of it comes to.
pub(super) fn summary(findings: &[Finding]) -> String {
    let of = |status| findings.iter().filter(|finding| finding.status == status).count();
    let count = |number: usize, what: &str| match number {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    format!(
        "widemap: {}, {}",
        count(of(Status::Problem), "problem"),
        count(of(Status::Warning), "warning")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_is_so() {
        let problem = Finding::problem(Check::Key, "it is lost", "make another");
        let pad = " ".repeat(24);
        assert_eq!(
            problem.line(),
            format!("problem  key            it is lost\n{pad}do: make another")
        );
        let json = r#"{"check":"key","do":"make another","status":"problem","what":"it is lost"}"#;
        assert_eq!(problem.json(), serde_json::from_str::<Value>(json).unwrap());
        let ok = Finding::ok(Check::Configuration, "none");
        assert_eq!(ok.line(), "ok       configuration  none");
        assert_eq!(ok.json()["do"], Value::Null);
    }

    #[test]
    fn the_summary_counts() {
        let problem = Finding::problem(Check::Key, "a", "b");
        let warning = problem.clone().grave(false);
        assert_eq!(summary(&[]), "widemap: no problem, no warning");
        let all = [problem.clone(), problem, warning];
        assert_eq!(summary(&all), "widemap: 2 problems, 1 warning");
    }
}
