//! The command line: what may be typed. What it means is decided in a file for each command.

mod again;
mod argv;
mod collect;
mod coordinator;
mod dry_run;
mod files;
mod gnu;
mod job;
mod jobs;
mod journal;
mod key;
mod map;
mod options;
mod place;
mod print_config;
mod python;
mod reader_watch;
mod repair;
mod rerun;
mod serve;
mod settings;
mod sources;
mod submit;
mod table;
mod theirs;
mod wasm;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub(crate) use options::{DoctorArgs, Format, ListFormat, LogArgs, LogFormat, Wait};
pub(crate) use place::{Sources, Whereabouts, wanted};

use crate::error::MapError;
use crate::{doctor, exit, say};

/// multiprocessing.Pool.map across every machine you have.
#[derive(Debug, Parser)]
#[command(name = "widemap", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(args_override_self = true)]
#[command(about = "multiprocessing.Pool.map across every machine you have")]
#[command(after_help = "Try: seq 10 | widemap map -- echo {}      More: widemap map --help")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a function over a list, results in the order of the list
    Map(Box<options::MapArgs>),
    /// Run what failed of a map again, and put the results into its output, in their places
    Repair(Box<options::RepairArgs>),
    /// Hand a map in to a coordinator, and go home: prints the job's id
    Submit(Box<options::SubmitArgs>),
    /// Take jobs of several people in, and run them for as long as it takes
    Serve(Box<options::ServeArgs>),
    /// List the jobs of a coordinator, or remove what has ended
    Jobs(Box<options::JobsArgs>),
    /// Say how far a job is
    Status(Box<options::StatusArgs>),
    /// Write the results of a job, in the order of its items; waits while it runs
    Results(Box<options::ResultsArgs>),
    /// Give a job up; what is done of it is kept
    Cancel(Box<options::TouchArgs>),
    /// Start nothing more of a job
    Pause(Box<options::TouchArgs>),
    /// Go on with a job that was paused
    Unpause(Box<options::TouchArgs>),
    /// Say why a job or one of its items waits, and which attempts it had
    Explain(Box<options::ExplainArgs>),
    /// List the workers that a map would use, and why others are not
    Workers(Box<options::WorkersArgs>),
    /// Look at this host, the workers and the way to them, and say what to do
    Doctor(Box<options::DoctorArgs>),
    /// Make the key of a cluster, or show what its cluster is called
    #[command(subcommand, disable_help_subcommand = true)]
    Key(options::KeyCommand),
    /// Look at what a coordinator keeps on its disk
    #[command(subcommand, disable_help_subcommand = true)]
    Journal(journal::JournalCommand),
    /// Write man pages and completions for shells to a directory
    #[command(hide = true)]
    Manual {
        /// Made where it does not exist
        directory: PathBuf,
    },
}

/// Reads the command line, does what it says, and returns the exit status.
pub(crate) fn run(argv: &[OsString]) -> ExitCode {
    let argv::Pieces { words, lists } = argv::cut(argv);
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(gnu::Advice { problem, instead }) = gnu::advice(&error, &words) {
                complain(&problem, Some(instead));
                return ExitCode::from(exit::USAGE);
            }
            // If the terminal is gone, there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    if let Some(said) = cli.command.as_ref().and_then(print_config::asked) {
        return print_config::run(&said);
    }
    match cli.command {
        Some(Command::Map(args)) => map::run(*args, &words, lists),
        Some(Command::Repair(args)) => repair::run(*args, &lists),
        Some(Command::Submit(args)) => submit::run(&args, lists),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Jobs(args)) => jobs::list(&args),
        Some(Command::Status(args)) => jobs::status(&args),
        Some(Command::Results(args)) => jobs::results(*args),
        Some(Command::Cancel(args)) => jobs::cancel(&args),
        Some(Command::Pause(args)) => jobs::pause(&args),
        Some(Command::Unpause(args)) => jobs::unpause(&args),
        Some(Command::Explain(args)) => jobs::explain(&args),
        Some(Command::Workers(args)) => workers::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Key(command)) => key::run(&command),
        Some(Command::Journal(command)) => journal::run(&command),
        Some(Command::Manual { directory }) => {
            match widemap_cluster::manual::write(Cli::command(), &directory) {
                Ok(()) => ExitCode::from(exit::OK),
                Err(error) => {
                    complain(&format!("cannot write to {}: {error}", directory.display()), None);
                    ExitCode::from(exit::USAGE)
                }
            }
        }
        None => {
            say::line(&Cli::command().render_help().to_string());
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Runs what talks to a coordinator.
fn block_on<T>(work: impl Future<Output = Result<T, MapError>>) -> Result<T, MapError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    let done = runtime.block_on(work);
    // A name that is still being looked up, or a write that nobody reads, is not waited for.
    runtime.shutdown_background();
    done
}

/// Says what went wrong and what to do next.
pub(crate) fn complain(message: &dyn std::fmt::Display, hint: Option<&str>) {
    say::line(&format!("widemap: error: {message}"));
    if let Some(hint) = hint {
        say::line(&format!("  hint: {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
