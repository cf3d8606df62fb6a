//! The log, on standard error: for whoever looks into the program, not part of what a map says.

use clap::ValueEnum as _;
use tracing_subscriber::EnvFilter;
use widemap_cluster::config::Config;

use crate::cli::{LogArgs, LogFormat};
use crate::error::MapError;

/// What is logged if nothing is said: of what a person waits for, and of what runs for months.
const USUAL: &str = "warn";
const USUAL_OF_SERVICE: &str = "info";

/// Starts the log.
///
/// # Errors
/// The filter, or the form in the configuration file, that cannot be read.
pub(crate) fn start(args: &LogArgs, config: &Config) -> Result<(), MapError> {
    start_with(args, config, USUAL)
}

/// Starts the log of a service, which nobody watches: jobs and workers that come and go are told.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_service(args: &LogArgs, config: &Config) -> Result<(), MapError> {
    start_with(args, config, USUAL_OF_SERVICE)
}

fn start_with(args: &LogArgs, config: &Config, usual: &str) -> Result<(), MapError> {
    let filter = args.log.as_deref().or(config.log.as_deref()).unwrap_or(usual);
    let filter = EnvFilter::builder().parse(filter)?;
    let configured = config.log_format.as_deref().map(|text| LogFormat::from_str(text, false));
    let configured = configured.transpose().map_err(|_| MapError::Configured {
        path: config.path.clone().unwrap_or_default(),
        what: "log-format",
        problem: "it is `text` or `json`".to_owned(),
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format.or(configured).unwrap_or(LogFormat::Text) {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
