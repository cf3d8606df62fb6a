//! The options of `widemap serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use widemap_common::limits;
use widemap_common::units::{parse_duration, parse_size};

use super::{LogArgs, PlaceArgs, WHERE};

const SERVES: &str = "Serves";
const KEEPS: &str = "Keeps";

const EXAMPLES: &str = "\
Examples:
  widemap serve                                   with a key: for everybody who has it, found by mDNS
  widemap serve --local 8                         runs jobs on this machine as well
  widemap serve --worker ann --worker bob --data /var/lib/widemap --keep 30d

Then, where the key is: id=$(widemap submit -a list -- COMMAND); widemap results $id";

/// Options of `widemap serve`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: widemap serve --help")]
pub(crate) struct ServeArgs {
    /// Where users are served [default: 0.0.0.0:7434 with a key, 127.0.0.1:7434 without one]
    #[arg(long, value_name = "ADDR:PORT", help_heading = SERVES)]
    pub(crate) listen: Option<String>,

    /// Take no more jobs while so many have not ended
    #[arg(long, value_name = "N", default_value_t = limits::JOBS_WAITING_MAX, help_heading = SERVES)]
    pub(crate) jobs_max: usize,

    /// Take no more items while those of jobs that have not ended are so many bytes [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = SERVES)]
    pub(crate) input_max: Option<u64>,

    /// Tell /metrics, /healthz and /readyz there, as 127.0.0.1:9434; nobody is asked who he is
    #[arg(long, value_name = "ADDR:PORT", env = "WIDEMAP_HTTP", hide_env_values = true)]
    #[arg(help_heading = SERVES)]
    pub(crate) http: Option<String>,

    /// The directory where jobs are kept [default: ~/.local/state/widemap/serve]
    #[arg(long, value_name = "DIR", help_heading = KEEPS)]
    pub(crate) data: Option<PathBuf>,

    /// Remove jobs so long after they have ended [default: only by `widemap jobs prune`]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = KEEPS)]
    pub(crate) keep: Option<Duration>,

    /// Take no more jobs while all of them need so much disk, ended ones too [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = KEEPS)]
    pub(crate) disk_max: Option<u64>,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// At most N slots of each worker; of this machine, as many as it has cores [env: WIDEMAP_JOBS]
    #[arg(short = 'j', long = "jobs", value_name = "N", help_heading = WHERE)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SLOTS_MAX)))]
    pub(crate) jobs: Option<u32>,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}
