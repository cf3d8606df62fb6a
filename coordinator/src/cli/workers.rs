//! `widemap workers`: who would run a map, and for each place that was named and is not used, why.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use widemap_cluster::Role;
use widemap_cluster::config::Config;
use widemap_common::ids::WorkerId;
use widemap_common::limits::DRIVER_QUEUE;
use widemap_common::time::Time;
use widemap_proto::jobs::{WorkerTold, WorkerTraits};
use widemap_proto::session::{LeftOut, Report};

use super::options::{ListFormat, WorkersArgs};
use super::place::{self, Sources, Whereabouts};
use super::{complain, coordinator};
use crate::driver::{Fleet, LinkStatus};
use crate::error::MapError;
use crate::places;
use crate::session::{Greeting, LinkNews};
use crate::{exit, logging, say};

/// Whoever is announced by then is listed.
const ASKED: Duration = Duration::from_secs(1);

/// Runs `widemap workers`.
pub(crate) fn run(args: &WorkersArgs) -> ExitCode {
    let rows = match list(args) {
        Ok(rows) => rows,
        Err(error) => {
            complain(&error, error.hint());
            return ExitCode::from(error.status());
        }
    };
    match args.format {
        ListFormat::Json => {
            for row in &rows {
                say::result(&row.json().to_string());
            }
        }
        ListFormat::Table => table(&rows),
    }
    ExitCode::from(if rows.iter().any(|row| row.worker.is_some()) {
        exit::OK
    } else {
        exit::CLUSTER
    })
}

struct Row {
    place: String,
    sources: Vec<String>,
    state: String,
    worker: Option<Described>,
}

struct Described {
    name: String,
    build: String,
    slots: u32,
    runtimes: Vec<String>,
    labels: BTreeMap<String, String>,
    round_trip: Option<Duration>,
    left_out: Option<Duration>,
    /// Attempts that run and that wait there, as a coordinator tells.
    attempts: Option<(u32, u32)>,
}

impl From<WorkerTold> for Row {
    fn from(told: WorkerTold) -> Self {
        let described = |worker: WorkerTraits| Described {
            name: worker.name,
            build: worker.build,
            slots: worker.slots,
            runtimes: worker.runtimes,
            labels: worker.labels,
            round_trip: worker.round_trip,
            left_out: worker.left_out,
            attempts: Some((worker.running, worker.waiting)),
        };
        let WorkerTold { address, sources, state, worker } = told;
        Self { place: address, sources, state, worker: worker.map(described) }
    }
}

fn list(args: &WorkersArgs) -> Result<Vec<Row>, MapError> {
    let config = Config::find()?;
    logging::start(&args.log, &config)?;
    let whereabouts = Whereabouts::find_or_coordinator(&args.place, &args.coordinator, &config)?;
    if let Some(named) = whereabouts.coordinator() {
        let wanted = place::wanted(&args.place.trust, &config);
        let identity = place::identity(wanted.as_ref(), Role::Coordinator)?;
        let coordinator = coordinator::at(named, identity.as_deref(), args.place.timers)?;
        let told = super::block_on(async { Ok(coordinator.workers().await?) })?;
        return Ok(told.into_iter().map(Row::from).collect());
    }
    whereabouts.warn();
    if whereabouts.is_here_only() {
        say::line(
            "widemap: no place is named (--worker, --workers-file, --dns, --mdns, WIDEMAP_WORKERS, \
             widemap.toml) and there is no key: a map would run on this machine only",
        );
        return Ok(Vec::new());
    }
    let sources = whereabouts.open()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    let rows = runtime.block_on(ask(args, sources));
    // A name or a file that is still being looked up is not waited for.
    runtime.shutdown_background();
    Ok(rows)
}

async fn ask(args: &WorkersArgs, sources: Sources) -> Vec<Row> {
    let (link_events, mut news) = mpsc::channel(DRIVER_QUEUE);
    let (suggest, mut suggestions) = mpsc::channel(DRIVER_QUEUE);
    let mut watchers = JoinSet::new();
    let Sources { sources, trust, .. } = sources;
    let names: Vec<_> = sources.iter().map(|source| source.name().to_owned()).collect();
    places::watch(sources, &mut watchers, &suggest);
    let greeting = Greeting::of_visitor(trust, args.place.timers);
    let mut fleet = Fleet::new(greeting, None, names, link_events);
    let mut round_trips: BTreeMap<WorkerId, Duration> = BTreeMap::new();
    let begun = Instant::now();
    // Whoever announces itself has a second for it; who is named is waited for.
    let asked = tokio::time::sleep(ASKED.min(args.wait));
    let limit = tokio::time::sleep(args.wait);
    tokio::pin!(limit, asked);
    while !(is_complete(&fleet, &round_trips) && (fleet.are_all_named() || asked.is_elapsed())) {
        tokio::select! {
            () = &mut limit => break,
            () = &mut asked, if !asked.is_elapsed() => {}
            Some(suggestion) = suggestions.recv() => {
                // Nothing runs that could be given less.
                let _ = fleet.follow(suggestion);
            }
            Some(event) = news.recv() => {
                let now = Time::ZERO + begun.elapsed();
                let mut events = Vec::new();
                match event.news {
                    LinkNews::Attached { stream, address, hello, .. } => {
                        fleet.attached(now, event.link, stream, address, *hello, &mut events);
                    }
                    LinkNews::RoundTrip(time) => {
                        round_trips.extend(fleet.worker_of(event.link).map(|worker| (worker, time)));
                    }
                    LinkNews::Unreachable { error } => {
                        fleet.unreachable(now, event.link, error, &mut events);
                    }
                    LinkNews::Refused { reason } => {
                        fleet.refused(now, event.link, reason, &mut events);
                    }
                    LinkNews::Cut { reason, ended } => {
                        fleet.cut(now, event.link, reason, ended, &mut events);
                    }
                    LinkNews::Reports(reports) => {
                        let Some(worker) = fleet.worker_of(event.link) else { continue };
                        for report in reports {
                            if let (Report::Paused(why), Some(entry)) =
                                (report, fleet.worker_mut(worker))
                            {
                                entry.paused = why;
                            }
                        }
                    }
                    LinkNews::Corrupt { .. }
                    | LinkNews::Unreadable { .. } => {}
                }
            }
        }
    }
    let rows = rows(&fleet, &round_trips);
    watchers.shutdown().await;
    fleet.close(&mut news, |_, _| {}).await;
    rows
}

/// Whether every place has answered, and each worker a ping.
fn is_complete(fleet: &Fleet, round_trips: &BTreeMap<WorkerId, Duration>) -> bool {
    fleet.all_sources_heard()
        && fleet.places().all(|(_, _, status)| match status {
            LinkStatus::Dialling => false,
            LinkStatus::Attached(worker) => round_trips.contains_key(worker),
            _ => true,
        })
}

fn rows(fleet: &Fleet, round_trips: &BTreeMap<WorkerId, Duration>) -> Vec<Row> {
    let row = |(place, sources, status): (&str, Vec<&str>, &LinkStatus)| {
        let worker = match status {
            LinkStatus::Attached(worker) => fleet.worker(*worker).map(|entry| Described {
                name: entry.hello.name.clone(),
                build: entry.hello.build.clone(),
                slots: entry.hello.slots,
                runtimes: entry.hello.runtimes.iter().map(ToString::to_string).collect(),
                labels: entry.hello.labels.clone(),
                round_trip: round_trips.get(worker).copied(),
                left_out: entry
                    .hello
                    .left_out
                    .as_ref()
                    .map(|out| Duration::from_millis(out.for_ms)),
                attempts: None,
            }),
            _ => None,
        };
        let state = match status {
            LinkStatus::Dialling => "not used: no answer yet".to_owned(),
            LinkStatus::Attached(worker) => {
                let worker = fleet.worker(*worker);
                match worker.and_then(|entry| entry.paused.as_ref()) {
                    Some(why) => format!("takes no work for now: {why}"),
                    None => ready(worker.and_then(|entry| entry.hello.left_out.as_ref())),
                }
            }
            LinkStatus::Cut(_, reason) => format!("not used: cut off: {reason}"),
            LinkStatus::Alias(worker) => format!("the same worker as {}", fleet.name(*worker)),
            LinkStatus::Unreachable(error) => format!("not used: {error}"),
            LinkStatus::Refused(reason) => format!("not used: {reason}"),
        };
        Row {
            place: place.to_owned(),
            sources: sources.into_iter().map(str::to_owned).collect(),
            state,
            worker,
        }
    };
    let mut rows: Vec<_> = fleet.places().map(row).collect();
    rows.extend(fleet.remarks().into_iter().map(|(source, place, why)| Row {
        place: place.unwrap_or("-").to_owned(),
        sources: vec![source.to_owned()],
        state: format!("not used: {why}"),
        worker: None,
    }));
    rows
}

/// A worker that answers, and whether a coordinator gives it no work for a time.
fn ready(left_out: Option<&LeftOut>) -> String {
    left_out.map_or_else(
        || "ready".to_owned(),
        |LeftOut { for_ms, why }| {
            let for_time = Duration::from_secs(for_ms.div_ceil(1_000));
            format!("ready; a map leaves it out for {for_time:?} more: {why}")
        },
    )
}

impl Row {
    fn json(&self) -> Value {
        let worker = self.worker.as_ref();
        json!({
            "name": worker.map(|w| &w.name),
            "address": self.place,
            "sources": self.sources,
            "version": worker.map(|w| &w.build),
            "slots": worker.map(|w| w.slots),
            "runtimes": worker.map(|w| &w.runtimes),
            "labels": worker.map(|w| &w.labels),
            "left_out_ms": worker.and_then(|w| w.left_out).map(|time| time.as_millis()),
            "round_trip_ms": worker.and_then(|w| w.round_trip).map(|t| t.as_secs_f64() * 1e3),
            "running": worker.and_then(|w| w.attempts).map(|(running, _)| running),
            "waiting": worker.and_then(|w| w.attempts).map(|(_, waiting)| waiting),
            "state": self.state,
        })
    }

    fn cells(&self) -> [String; 9] {
        let dash = || "-".to_owned();
        let worker = self.worker.as_ref();
        [
            worker.map_or_else(dash, |w| w.name.clone()),
            self.place.clone(),
            self.sources.join(","),
            worker.map_or_else(dash, |w| w.build.trim_start_matches("widemap ").to_owned()),
            worker.map_or_else(dash, |w| w.slots.to_string()),
            worker.map_or_else(dash, |w| w.runtimes.join(",")),
            worker.filter(|w| !w.labels.is_empty()).map_or_else(dash, |w| {
                w.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
            }),
            worker
                .and_then(|w| w.round_trip)
                .map_or_else(dash, |time| format!("{:.2} ms", time.as_secs_f64() * 1e3)),
            self.state.clone(),
        ]
    }
}

fn table(rows: &[Row]) {
    let head = [
        "NAME",
        "ADDRESS",
        "FROM",
        "VERSION",
        "SLOTS",
        "RUNTIMES",
        "LABELS",
        "ROUND TRIP",
        "STATE",
    ];
    super::table::print(head, rows.iter().map(Row::cells));
}
