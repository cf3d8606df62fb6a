//! How the wire says why something is not done: a program tells the codes apart, a person reads the
//! message.

use tonic::{Code, Status};
use widemap_proto::WireError;

use crate::service::{DeskError, LedgerError, RequestError};

/// What a user is told who asked for something that cannot be done.
pub(super) fn status(error: &DeskError) -> Status {
    let code = match error {
        DeskError::NoSuchJob(_)
        | DeskError::NoSuchKey(_)
        | DeskError::Refused(RequestError::NoSuchJob(_) | RequestError::NoSuchItem { .. }) => {
            Code::NotFound
        }
        DeskError::Ledger(LedgerError::MissingArtifacts)
        | DeskError::NotEnded(_)
        | DeskError::Refused(RequestError::Ended { .. }) => Code::FailedPrecondition,
        DeskError::Ledger(LedgerError::Artifact(_)) => Code::InvalidArgument,
        DeskError::Differs { .. } => Code::AlreadyExists,
        DeskError::Overtaken(_) | DeskError::GivenUp(_) => Code::Aborted,
        DeskError::TooManySubmissions
        | DeskError::TooManyJobs { .. }
        | DeskError::TooManyBytes { .. }
        | DeskError::DiskBudget { .. }
        | DeskError::Ledger(LedgerError::Full { .. }) => Code::ResourceExhausted,
        DeskError::Ledger(LedgerError::Write { .. })
        | DeskError::Refused(RequestError::Disk(_)) => Code::Internal,
        DeskError::Unreadable { .. } => Code::DataLoss,
        DeskError::NotReached { .. } => Code::OutOfRange,
        DeskError::Busy | DeskError::Stopping => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// What a user is told whose message does not fit.
pub(super) fn malformed(error: &WireError) -> Status {
    match error {
        // It may arrive well the next time.
        WireError::Changed { .. } => Status::unavailable(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}
