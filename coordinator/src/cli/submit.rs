//! `widemap submit`: hands a job in and prints what it is called.

use std::process::ExitCode;

use widemap_cluster::config::Config;

use super::argv::List;
use super::job::Typed;
use super::options::SubmitArgs;
use super::settings::max_output;
use super::{complain, coordinator, dry_run, job};
use crate::error::MapError;
use crate::{exit, logging, say};

/// Runs `widemap submit`.
pub(crate) fn run(args: &SubmitArgs, lists: Vec<List>) -> ExitCode {
    match submit(args, lists) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            complain(&error, error.hint());
            ExitCode::from(error.status())
        }
    }
}

fn submit(args: &SubmitArgs, lists: Vec<List>) -> Result<(), MapError> {
    let config = Config::find()?;
    logging::start(&args.user.log, &config)?;
    let max_output = max_output(args.job.max_output, &config)?;
    let Typed { submission, source, artifacts, .. } =
        job::submission(&args.job, lists, max_output, args.keep_records)?;
    if args.job.dry_run {
        return dry_run::run(&args.job, &submission.spec, source);
    }
    let submitted = super::block_on(async {
        let coordinator = coordinator::find(&args.user, &config).await?;
        coordinator.submit(submission, source, artifacts).await.map_err(MapError::from)
    })?;
    if submitted.was_there {
        let id = submitted.job.id;
        say::line(&format!("widemap: {id} was submitted with this key before"));
    }
    say::result(&submitted.job.id.to_string());
    Ok(())
}
