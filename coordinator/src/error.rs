//! What can end a map as a whole, with the exit status that it ends in and what to do next.

use std::path::PathBuf;
use std::time::Duration;

use tonic::Code;
use widemap_common::ids::JobId;

use crate::client::{JobsError, SubmitError};
use crate::data::InputError;
use crate::exit;

/// What two sides have to have in common, and do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// The key of the cluster.
    Key,
    /// The authority of certificates that were made elsewhere.
    Authority,
}

/// See the file's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// Users cannot be served there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Users are not served any more.
    #[error("{0}")]
    Api(String),
    /// The journal cannot be opened, or not be written any more.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// There is a journal, and nobody said to go on with it.
    #[error("there is a map in the journal {}", .0.display())]
    JournalThere(PathBuf),
    /// The journal is not one of a map.
    #[error("{} is the journal of a coordinator that serves, not of a map", .0.display())]
    JournalOfService(PathBuf),
    /// The journal is of another map.
    #[error("the map in the journal {} is another one\n{}", directory.display(), changes.join("\n"))]
    NotTheMap {
        /// The journal.
        directory: PathBuf,
        /// What differs, a line each.
        changes: Vec<String>,
    },
    /// Users beyond this host would be served without a key.
    #[error("{0} is reached from other hosts, and without a key whoever reaches it runs commands")]
    NotLoopback(std::net::SocketAddr),
    /// A coordinator is named beside something else.
    #[error("{coordinator} stands alone, and {other} is named beside it")]
    Alone {
        /// By what it is named.
        coordinator: String,
        /// What else is named.
        other: String,
    },
    /// An option has no meaning without a coordinator.
    #[error("{0} is for jobs of a coordinator, and none is named")]
    OnlyWithCoordinator(&'static str),
    /// An option has no meaning with a coordinator.
    #[error("{flag} is not for jobs of a coordinator: {why}")]
    NotWithCoordinator {
        /// Which.
        flag: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Nobody serves jobs.
    #[error("no coordinator was found\n{}", asked.join("\n"))]
    NoCoordinator {
        /// What was asked, and what it answered.
        asked: Vec<String>,
    },
    /// It is not clear which one is meant.
    #[error("{} coordinators are announced: {}", .0.len(), .0.join(", "))]
    SeveralCoordinators(Vec<String>),
    /// The coordinator does not do it.
    #[error(transparent)]
    Jobs(#[from] crate::client::JobsError),
    /// A job could not be handed in.
    #[error(transparent)]
    Submit(#[from] crate::client::SubmitError),
    /// A job was given up by somebody.
    #[error("{0} was cancelled")]
    Cancelled(JobId),
    /// No worker of the coordinator can run a job.
    #[error("no worker can run {job}\n{why}")]
    JobUnusable {
        /// Which.
        job: JobId,
        /// Each worker and why.
        why: String,
    },
    /// The coordinator could not go on with a job.
    #[error("the coordinator could not go on with {job}: {why}")]
    JobFailed {
        /// Which.
        job: JobId,
        /// Why.
        why: String,
    },
    /// Nothing to run was named.
    #[error("no command was given")]
    NoFunction,
    /// Two things to run were named.
    #[error("a command stands beside {flag}: `{command}`")]
    TwoFunctions {
        /// The option that names the other.
        flag: &'static str,
        /// The command's first word.
        command: String,
    },
    /// Items would be typed by hand.
    #[error("no items: standard input is a terminal, and neither -a nor ::: was given")]
    NoItems,
    /// Items come from two places.
    #[error("items come both from `{0}` and from `{1}`")]
    TwoSources(&'static str, &'static str),
    /// Items failed, and the job was to stop then.
    #[error(
        "halted: {failed} failed{}; what is left is not run",
        canary.map_or_else(|| " (--halt)".to_owned(), |first| format!(" among the first {first} (--canary)"))
    )]
    Halted {
        /// How many.
        failed: u64,
        /// How many items were to run before all others, if one of those failed.
        canary: Option<u64>,
    },
    /// The same, of a job of a coordinator.
    #[error("{job} was {why}")]
    JobHalted {
        /// Which.
        job: JobId,
        /// Why.
        why: String,
    },
    /// What a log and a directory of outputs are made of was not kept.
    #[error("what --joblog and --results are made of was not kept of {0}")]
    NoRecords(JobId),
    /// Commands could not be printed.
    #[error("cannot write to standard output: {0}")]
    Print(std::io::Error),
    /// An output cannot be repaired.
    #[error("cannot repair {}: {problem}", output.display())]
    Repair {
        /// Which.
        output: PathBuf,
        /// Why.
        problem: String,
    },
    /// A line for a shell stands where a program is named.
    #[error("`{0}` is no program: it looks like a line for a shell")]
    Line(String),
    /// A placeholder names a column that no item has.
    #[error("{{{column}}} names a column, and there are {columns} lists of items")]
    NoColumn {
        /// Which.
        column: i32,
        /// How many there are.
        columns: usize,
    },
    /// Two files of the command line are one.
    #[error("{0} and {1} name the same file, which would be overwritten")]
    SameFile(&'static str, &'static str),
    /// A value of an option makes no sense.
    #[error("{flag}: {problem}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// Why.
        problem: String,
    },
    /// The key, or what stands for it, cannot be used.
    #[error(transparent)]
    Identity(#[from] widemap_cluster::IdentityError),
    /// The own certificate cannot be used.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] widemap_cluster::config::ConfigError),
    /// A value in the configuration file makes no sense.
    #[error("{path}: {what}: {problem}")]
    Configured {
        /// The file.
        path: PathBuf,
        /// Which value.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// There is a key, no place, and mDNS is turned off.
    #[error("no place is named, and with mDNS turned off there is nobody to ask")]
    NobodyToAsk,
    /// The log's filter cannot be read.
    #[error("--log: {0}")]
    LogFilter(#[from] tracing_subscriber::filter::ParseError),
    /// The failures to run again cannot be read.
    #[error("--from-failures {path}: {problem}")]
    FromFailures {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        problem: String,
    },
    /// The input cannot be read.
    #[error(transparent)]
    Input(#[from] crate::data::InputError),
    /// A file of the job cannot be sent to workers.
    #[error("{0}")]
    File(String),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] crate::data::SinkError),
    /// The file of `--failures` cannot be made.
    #[error(transparent)]
    FailuresFile(crate::data::SinkError),
    /// The receipt cannot be written.
    #[error("receipt: {0}")]
    Receipt(crate::data::OutputFileError),
    /// The file of `--output` cannot be written.
    #[error(transparent)]
    OutputFile(#[from] crate::data::OutputFileError),
    /// Input that is needed once more cannot be read again.
    #[error(transparent)]
    Held(#[from] crate::data::HeldError),
    /// This machine gives no runtime, socket pair or process.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    /// The process that starts commands cannot be started.
    #[error("cannot run commands on this machine: {0}")]
    Spawner(#[from] crate::embedded::SpawnerError),
    /// No worker could be used in time.
    #[error("no worker could be used{}\n{}", within(*.waited), places.join("\n"))]
    NoWorkers {
        /// How long was waited.
        waited: Option<Duration>,
        /// Each place and what it answered.
        places: Vec<String>,
        /// Whether somebody is there, and is not trusted or does not trust this side.
        distrust: Option<Mismatch>,
    },
    /// Every worker refused the job.
    #[error("no worker can run this\n{}", refusals.join("\n"))]
    Unusable {
        /// Each worker and why.
        refusals: Vec<String>,
    },
    /// The program of `--filter` is no filter.
    #[error(
        "the program does not answer each line with one line: the first {items} all failed so, item 1 \
         with: {first}"
    )]
    NoFilter {
        /// How many items were looked at.
        items: u64,
        /// What was wrong with the first.
        first: String,
    },
    /// The items of a Python function are no JSON.
    #[error("item {item} cannot be read, and none has succeeded: {why}")]
    NotJson {
        /// The first one of which this is known, from 1.
        item: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The counts do not add up.
    #[error(transparent)]
    Unbalanced(#[from] crate::data::Unbalanced),
}

impl MapError {
    /// What to do next, where the message does not say it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoFunction => "for example: seq 10 | widemap map -- echo {}",
            Self::TwoFunctions { flag: "--python", .. } => {
                "items come from standard input or follow `:::` (seq 10 | widemap map --python \
                 square.py:square); an option of ours goes before what is to run"
            }
            Self::TwoFunctions { flag: "--wasm", .. } => {
                "items come from standard input or follow `:::` (widemap map --wasm count.wasm < lines); an \
                 option of ours goes before what is to run"
            }
            Self::TwoFunctions { .. } => "name either a command or --builtin NAME",
            Self::NotJson { .. } => {
                "--text gives the function each item as a string (widemap map --python FILE.py:FUNCTION --text)"
            }
            Self::NoItems => {
                "pipe a list in (seq 10 | widemap map -- echo {}), name a file (-a FILE), or list \
                 items (widemap map echo {} ::: a b c)"
            }
            Self::TwoSources(..) => "name one of them",
            Self::Line(_) => "for a shell line add --shell",
            Self::NoRecords(_) => "submit it with --keep-records",
            Self::NoColumn { .. } => {
                "name one of them, add a list (::: A B ::: C D), or split items with --colsep"
            }
            Self::SameFile(..) => "give each of them a file of its own",
            Self::NoWorkers { waited: None, .. } => return None,
            Self::NoWorkers { distrust: Some(Mismatch::Authority), .. } => {
                "have the certificates of both sides signed by one authority, and name it on both (--tls-ca), or \
                 run on this machine with --local N"
            }
            Self::NoWorkers { distrust: Some(Mismatch::Key), .. } => {
                "give both sides the same key file (`widemap key show` tells which cluster a key is of), or run \
                 on this machine with --local N"
            }
            Self::NoWorkers { .. } => {
                "start `widemap-worker` there, or run on this machine with --local N"
            }
            Self::Identity(_) => "--local N runs on this machine and needs no key",
            Self::NobodyToAsk => {
                "name workers (--worker HOST, --workers-file, --dns), or run on this machine with --local N"
            }
            Self::JournalThere(_) => "go on with it (--resume), or name another directory",
            Self::JournalOfService(_) => "name another directory",
            Self::NotTheMap { .. } => {
                "run the command that it was begun with, or begin anew in another directory"
            }
            Self::Input(InputError::Changed { .. }) => {
                "give it the input that it was begun with, or begin anew in another directory"
            }
            Self::NotLoopback(_) => {
                "make a key (widemap key new) and copy it to every host, listen on 127.0.0.1, or add \
                 --insecure if everybody on the network is trusted"
            }
            Self::Alone { .. } => {
                "name either a coordinator, which knows its workers, or workers for a map of your own"
            }
            Self::OnlyWithCoordinator(_) => {
                "name one (--coordinator HOST), or leave the option out"
            }
            Self::NotWithCoordinator { .. } => "leave it out",
            Self::NoCoordinator { .. } => {
                "start `widemap serve` on a host, or name one that runs: --coordinator HOST"
            }
            Self::SeveralCoordinators(_) => "name one of them: --coordinator HOST",
            Self::Jobs(JobsError::Distrust { .. })
            | Self::Submit(SubmitError::Jobs(JobsError::Distrust { .. })) => {
                "give both sides the same key file (`widemap key show` tells which cluster a key is of)"
            }
            Self::File(_) => "run it again, and leave the file alone until it has ended",
            Self::NoFilter { .. } => "--pipe allows any number of lines, for a block of items",
            Self::Unbalanced(_) => "please report it with the command and its receipt",
            _ => return None,
        })
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::NoFunction
            | Self::TwoFunctions { .. }
            | Self::NoItems
            | Self::TwoSources(..)
            | Self::NoColumn { .. }
            | Self::NoRecords(_)
            | Self::Line(_)
            | Self::Repair { .. }
            | Self::SameFile(..)
            | Self::Flag { .. }
            | Self::LogFilter(_)
            | Self::Identity(_)
            | Self::Certificate(_)
            | Self::Config(_)
            | Self::Configured { .. }
            | Self::FromFailures { .. }
            | Self::FailuresFile(_)
            | Self::Listen { .. }
            | Self::NotLoopback(_)
            | Self::JournalThere(_)
            | Self::JournalOfService(_)
            | Self::NotTheMap { .. }
            | Self::Alone { .. }
            | Self::OnlyWithCoordinator(_)
            | Self::NotWithCoordinator { .. }
            | Self::SeveralCoordinators(_)
            | Self::JobUnusable { .. }
            | Self::NoFilter { .. }
            | Self::NotJson { .. }
            | Self::Unusable { .. } => exit::USAGE,
            Self::Cancelled(_) | Self::Halted { .. } | Self::JobHalted { .. } => exit::ITEMS_FAILED,
            Self::Jobs(error) | Self::Submit(SubmitError::Jobs(error)) => by_jobs(error),
            Self::Submit(SubmitError::Input(error)) if error.is_before_start() => exit::USAGE,
            Self::OutputFile(error) | Self::Receipt(error) if error.is_before_start() => {
                exit::USAGE
            }
            Self::Input(error) if error.is_before_start() => exit::USAGE,
            Self::Output(error) if error.is_before_start() => exit::USAGE,
            Self::Journal(_)
            | Self::Api(_)
            | Self::Input(_)
            | Self::File(_)
            | Self::Output(_)
            | Self::OutputFile(_)
            | Self::Receipt(_)
            | Self::Held(_)
            | Self::Start(_)
            | Self::Spawner(_)
            | Self::NoWorkers { .. }
            | Self::NobodyToAsk
            | Self::NoCoordinator { .. }
            | Self::Submit(_)
            | Self::JobFailed { .. }
            | Self::Print(_)
            | Self::Unbalanced(_) => exit::CLUSTER,
        }
    }
}

/// Whether the user asked for what cannot be, or the coordinator cannot do it now.
fn by_jobs(error: &JobsError) -> u8 {
    match error {
        JobsError::Refused {
            code:
                Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::OutOfRange
                | Code::PermissionDenied,
            ..
        } => exit::USAGE,
        _ => exit::CLUSTER,
    }
}

fn within(waited: Option<Duration>) -> String {
    waited.map_or_else(String::new, |time| format!(" within {:.1} s", time.as_secs_f64()))
}
