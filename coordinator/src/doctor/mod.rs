//! `widemap doctor`: looks at this host, at the workers and at the way to them, and says of each thing
//! that is not well what to do.
//!
//! A check returns what it has found; only this file prints.

mod clock;
mod configuration;
mod finding;
mod interface;
mod key;
mod multicast;
mod place;
mod port;
mod way;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use widemap_cluster::ClusterId;
use widemap_cluster::config::Config;
use widemap_cluster::harden;
use widemap_cluster::interfaces::{self, Interface};
use widemap_common::time::Timers;

use finding::{Check, Finding, Status};

use crate::cli::{DoctorArgs, ListFormat, Sources, Whereabouts, complain, wanted};
use crate::error::MapError;
use crate::session::{Greeting, Trust};
use crate::{exit, logging, say};

/// Runs `widemap doctor`.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let mut report = Report { format: args.format, findings: Vec::new() };
    if let Err(error) = examine(args, &mut report) {
        complain(&error, error.hint());
        return ExitCode::from(error.status());
    }
    say::line(&finding::summary(&report.findings));
    ExitCode::from(if report.has_problem() { exit::CLUSTER } else { exit::OK })
}

/// What has been found, told as it is found.
struct Report {
    format: ListFormat,
    findings: Vec<Finding>,
}

impl Report {
    fn tell(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            match self.format {
                ListFormat::Table => say::result(&finding.line()),
                ListFormat::Json => say::result(&finding.json().to_string()),
            }
            self.findings.push(finding);
        }
    }

    fn has(&self, check: Check, status: Status) -> bool {
        self.findings.iter().any(|finding| (finding.check, finding.status) == (check, status))
    }

    fn has_problem(&self) -> bool {
        self.findings.iter().any(|finding| finding.status == Status::Problem)
    }
}

/// Everything, from the inside out.
///
/// # Errors
/// Only if the command line or the environment cannot be understood, or nothing can be started here.
fn examine(args: &DoctorArgs, report: &mut Report) -> Result<(), MapError> {
    let (config, found) = configuration::check(Config::find());
    logging::start(&args.log, &config)?;
    let whereabouts = match Whereabouts::find(&args.place, &config) {
        Err(error @ MapError::Configured { .. }) => {
            let path = config.path.clone().unwrap_or_default();
            let action = format!("correct {}", path.display());
            report.tell([Finding::problem(Check::Configuration, error.to_string(), action)]);
            None
        }
        Err(error @ MapError::NobodyToAsk) => {
            report.tell([found]);
            let action = error.hint().unwrap_or_default();
            report.tell([Finding::problem(Check::Worker, error.to_string(), action)]);
            None
        }
        Err(error) => return Err(error),
        Ok(whereabouts) => {
            report.tell([found]);
            Some(whereabouts)
        }
    };
    // Before there is a secret in memory.
    harden::close_memory().map_err(MapError::Start)?;
    let key = key::check(wanted(&args.place.trust, &config).as_ref());
    report.tell([key.finding, clock::check()]);
    let ours = interfaces::local().map_err(MapError::Start)?;
    let names_places = whereabouts.as_ref().is_some_and(Whereabouts::names_places);
    let chosen = whereabouts.as_ref().map_or(&[][..], Whereabouts::interfaces);
    let carrying = interface::check(&ours, chosen, names_places, interface::can_multicast);
    report.tell([carrying.finding]);

    let has_no_mdns = args.place.no_mdns || (config.mdns == Some(false) && !args.place.mdns);
    let host = Host {
        ours,
        carrying: if has_no_mdns { Vec::new() } else { carrying.usable },
        cluster: key.cluster,
        asks_mdns: whereabouts.as_ref().is_some_and(Whereabouts::asks_mdns),
        timers: args.place.timers,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    runtime.block_on(host.look_around(whereabouts, report));
    // A name or a file that is still being looked up is not waited for.
    runtime.shutdown_background();
    if has_no_mdns {
        report.tell([Finding::ok(Check::Multicast, "not looked at: mDNS is turned off")]);
    }
    Ok(())
}

/// Where workers may be; or why nobody is asked. What the key check has told already is not told again.
fn open(whereabouts: Whereabouts, report: &Report) -> Result<Sources, Finding> {
    if whereabouts.is_here_only() {
        let what = "no place is named and there is no key: a map would run on this machine only";
        return Err(Finding::ok(Check::Worker, what));
    }
    whereabouts.open().map_err(|error| {
        if report.has(Check::Key, Status::Ok) {
            let action = error.hint().unwrap_or("correct the key or the certificate");
            return Finding::problem(Check::Worker, format!("not asked: {error}"), action);
        }
        let what = "not asked: there is no key that a coordinator can use";
        Finding::problem(Check::Worker, what, "do what is said of the key above")
            .grave(report.has(Check::Key, Status::Problem))
    })
}

/// What is known of this host when the network is looked at.
struct Host {
    ours: Vec<Interface>,
    /// The interfaces that can carry mDNS.
    carrying: Vec<String>,
    cluster: Option<ClusterId>,
    /// Whether workers are looked for by mDNS.
    asks_mdns: bool,
    timers: Timers,
}

impl Host {
    async fn look_around(&self, whereabouts: Option<Whereabouts>, report: &mut Report) {
        let opened = whereabouts.map(|whereabouts| open(whereabouts, report));
        let is_asked = matches!(opened, Some(Ok(_)));
        let (sources, trust, unasked) = match opened {
            Some(Ok(Sources { sources, trust, .. })) => (sources, trust, None),
            Some(Err(finding)) => (Vec::new(), Trust::default(), Some(finding)),
            None => (Vec::new(), Trust::default(), None),
        };
        let greeting = Greeting::of_visitor(trust, self.timers);
        report.tell([port::check(&self.ours, self.cluster, greeting.clone()).await]);
        report.tell(unasked);
        let limit = Duration::from_millis(self.timers.connect_ms);
        let (suggestions, heard, echoes) = tokio::join!(
            place::gather(sources, limit),
            multicast::listen(&self.carrying),
            multicast::echo(&self.carrying),
        );
        report.tell(way::of_sources(&suggestions));
        let asked = place::ask_all(&suggestions, &greeting).await;
        report.tell(way::of_workers(&asked));
        if is_asked
            && asked.iter().all(|asked| asked.answer.is_err())
            && !report.has(Check::Worker, Status::Problem)
        {
            report.tell([way::nobody()]);
        }
        for asked in &asked {
            if let Ok(answer) = &asked.answer {
                let ahead = answer.ahead.map(|ahead| clock::of_worker(&answer.hello.name, ahead));
                report.tell(ahead);
            }
        }
        report.tell(multicast::of_host(&echoes, self.asks_mdns));
        report.tell(multicast::of_workers(&asked, &heard, &echoes, &self.ours));
    }
}
