//! The way to a coordinator that serves: dialled when it is needed, and again after a cut.

use std::error::Error as _;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};
use widemap_common::backoff;
use widemap_common::ids::JobId;
use widemap_common::limits::{CALL_RETRY_MS, CALL_RETRY_MS_MAX, COORDINATOR_PATIENCE_MS};
use widemap_common::time::Timers;
use widemap_proto::WireError;

use crate::session::{Dial, DialError, Line, Trust};

/// Where a coordinator is, and whom to trust there.
pub(crate) struct Coordinator {
    name: String,
    way: Way,
    trust: Trust,
    timers: Timers,
}

/// How it is reached.
enum Way {
    /// At these addresses.
    Dial(Dial),
    /// Over loopback, where a simulated network stands for the real one elsewhere.
    #[cfg(test)]
    Loopback(std::net::SocketAddr),
}

/// A connection to it.
pub(super) struct Connected {
    pub(super) channel: Channel,
    line: Option<Line>,
}

/// Why a coordinator did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JobsError {
    /// It is not there, or does not answer.
    #[error("the coordinator {coordinator} cannot be used: {why}")]
    Unreachable {
        /// Which.
        coordinator: String,
        /// Why.
        why: String,
    },
    /// It and this side do not trust each other.
    #[error("the coordinator {coordinator} cannot be used: {why}")]
    Distrust {
        /// Which.
        coordinator: String,
        /// Why.
        why: String,
    },
    /// It was lost, and did not come back.
    #[error("the coordinator {coordinator} was lost, and is not back after {waited:.0?}: {why}")]
    Lost {
        /// Which.
        coordinator: String,
        /// How long was waited.
        waited: Duration,
        /// What was wrong last.
        why: String,
    },
    /// It says no.
    #[error("{coordinator}: {message}")]
    Refused {
        /// Which.
        coordinator: String,
        /// What a program can tell apart.
        code: Code,
        /// What it says.
        message: String,
    },
    /// Somebody else has handed a job in with the same key meanwhile.
    #[error(
        "{coordinator}: {job} was handed in with the same key meanwhile, and what was written is not of that one \
         (`widemap results {job}` has its results)"
    )]
    Replaced {
        /// Which.
        coordinator: String,
        /// The job.
        job: JobId,
    },
    /// It says what makes no sense.
    #[error("{coordinator}: {error}")]
    Malformed {
        /// Which.
        coordinator: String,
        /// What.
        error: WireError,
    },
}

impl JobsError {
    /// Whether it may be otherwise in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // Bytes that were changed on the way may arrive well the next time.
            Self::Malformed { error, .. } => matches!(error, WireError::Changed { .. }),
            Self::Refused { .. }
            | Self::Distrust { .. }
            | Self::Lost { .. }
            | Self::Replaced { .. } => false,
        }
    }
}

impl Coordinator {
    /// The one at these addresses, `HOST:PORT` each, which people call `name`.
    pub(crate) fn at(name: String, addresses: Vec<String>, trust: Trust, timers: Timers) -> Self {
        Self { name, way: Way::Dial(Dial::Addresses(addresses)), trust, timers }
    }

    /// The one that a test serves.
    #[cfg(test)]
    pub(crate) fn on_loopback(address: std::net::SocketAddr) -> Self {
        let way = Way::Loopback(address);
        Self { name: "test".to_owned(), way, trust: Trust::default(), timers: Timers::default() }
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Connects.
    pub(super) async fn connect(&self) -> Result<Connected, JobsError> {
        match &self.way {
            Way::Dial(dial) => {
                let line = dial.connect(&self.trust, &self.timers).await;
                let line = line.map_err(|error| self.unreachable(&error))?;
                Ok(Connected { channel: line.channel.clone(), line: Some(line) })
            }
            #[cfg(test)]
            Way::Loopback(address) => {
                let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
                let channel = endpoint.expect("it is an address").connect().await;
                let channel = channel.map_err(|error| JobsError::Unreachable {
                    coordinator: self.name.clone(),
                    why: error.to_string(),
                })?;
                Ok(Connected { channel, line: None })
            }
        }
    }

    /// What a status over a connection means.
    pub(super) fn failed(&self, connected: &Connected, status: &Status) -> JobsError {
        let fault = connected.line.as_ref().and_then(|line| line.fault.get());
        if let Some(fault) = fault {
            return self.unreachable(fault);
        }
        let (coordinator, code) = (self.name.clone(), status.code());
        // What comes of the connection has a cause here; what the other side has said has none.
        let is_said = status.source().is_none()
            && !matches!(code, Code::Unavailable | Code::DeadlineExceeded);
        match is_said {
            true => JobsError::Refused { coordinator, code, message: status.message().to_owned() },
            false => JobsError::Unreachable { coordinator, why: why(status) },
        }
    }

    pub(super) fn malformed(&self, error: WireError) -> JobsError {
        JobsError::Malformed { coordinator: self.name.clone(), error }
    }

    pub(super) fn cut(&self, why: &str) -> JobsError {
        JobsError::Unreachable { coordinator: self.name.clone(), why: why.to_owned() }
    }

    fn unreachable(&self, error: &DialError) -> JobsError {
        let coordinator = self.name.clone();
        let why = match error {
            DialError::Refused(_) => {
                "connection refused (is `widemap serve` running there?)".to_owned()
            }
            DialError::NoKey { host } => format!(
                "{host} has no key: start `widemap serve` there with the key of this cluster (or say \
                 --insecure here, if everybody on the network is trusted)"
            ),
            DialError::Distrust { host, distrust } => {
                format!("{host} and this side do not trust each other: {distrust}")
            }
            other => other.to_string(),
        };
        match error.mismatch().is_some() {
            true => JobsError::Distrust { coordinator, why },
            false => JobsError::Unreachable { coordinator, why },
        }
    }
}

/// What a person is told of a call that did not come through.
fn why(status: &Status) -> String {
    let mut last = status.source();
    while let Some(cause) = last.and_then(std::error::Error::source) {
        last = Some(cause);
    }
    last.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// How long a coordinator that was lost is dialled again.
pub(super) struct Patience {
    since: Option<Instant>,
    retry: u32,
    rng: Rng,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { since: None, retry: 0, rng: Rng::new() }
    }

    /// The coordinator is there. Whether it was being waited for.
    pub(super) fn renew(&mut self) -> bool {
        self.retry = 0;
        self.since.take().is_some()
    }

    /// Whether it is being waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// What is waited for is waited for from now on.
    pub(super) fn begin(&mut self) {
        self.since = self.since.map(|_| Instant::now());
    }

    /// How long to wait before the next try.
    ///
    /// # Errors
    /// The error itself if another try would not help, or enough were made.
    pub(super) fn pause(&mut self, error: JobsError) -> Result<Duration, JobsError> {
        if !error.is_passing() {
            return Err(error);
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited > Duration::from_millis(COORDINATOR_PATIENCE_MS) {
            return Err(match error {
                JobsError::Unreachable { coordinator, why } => {
                    JobsError::Lost { coordinator, waited, why }
                }
                other => other,
            });
        }
        let (base, longest) =
            (Duration::from_millis(CALL_RETRY_MS), Duration::from_millis(CALL_RETRY_MS_MAX));
        let pause = backoff::pause(self.retry, base, longest, &mut self.rng);
        self.retry += 1;
        Ok(pause)
    }
}
