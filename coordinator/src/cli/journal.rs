//! `widemap journal`: looks at what a coordinator keeps on its disk, and changes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::options::ListFormat;
use crate::journal::{Disk, Finding, check};
use crate::{exit, say};

/// What can be done with a journal.
#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Read every fact and every byte of results, and say what is wrong and where; nothing is changed
    Check(CheckArgs),
}

/// See [`JournalCommand::Check`].
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The directory: what `serve --data` names, or one job in it
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// A line for each job, or a JSON object
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: ListFormat,
}

/// Runs it.
pub(super) fn run(command: &JournalCommand) -> ExitCode {
    let JournalCommand::Check(args) = command;
    let findings = match check(&Disk, &args.directory) {
        Ok(findings) => findings,
        Err(error) => {
            say::line(&format!(
                "widemap: error: {} is no journal that can be read: {error}",
                args.directory.display()
            ));
            return ExitCode::from(exit::USAGE);
        }
    };
    for finding in &findings {
        match args.format {
            ListFormat::Json => say::result(&json(finding)),
            ListFormat::Table => shown(finding),
        }
    }
    let is_sound = findings.iter().all(|finding| finding.problems.is_empty());
    ExitCode::from(if is_sound { exit::OK } else { exit::CLUSTER })
}

fn json(finding: &Finding) -> String {
    json!({
        "directory": finding.directory.display().to_string(),
        "items": finding.items,
        "result_bytes": finding.bytes,
        "segments": finding.segments,
        "torn": finding.torn,
        "problems": finding.problems,
    })
    .to_string()
}

fn shown(finding: &Finding) {
    let Finding { items, bytes, segments, .. } = finding;
    let verdict = if finding.problems.is_empty() { "sound" } else { "DAMAGED" };
    say::result(&format!(
        "{}: {verdict}, {items} items are final, {bytes} bytes of results in {segments} segments",
        finding.directory.display()
    ));
    if let Some(torn) = &finding.torn {
        say::result(&format!(
            "  the end was not written whole, and is cut off at the next start: {torn}"
        ));
    }
    for problem in &finding.problems {
        say::result(&format!("  {problem}"));
    }
}
