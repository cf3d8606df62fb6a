//! What a member of a cluster may be: a certificate is for one role, and roles do not mix.

use rustls::pki_types::ServerName;

use crate::cluster_id::ClusterId;

/// What a certificate lets its holder be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Serves coordinators: for the server's side of a connection only.
    Worker,
    /// Gives work to workers, and jobs to a coordinator that serves: for the client's side of a
    /// connection only.
    Coordinator,
    /// A coordinator that serves: for both sides. To those whom it dials it is a coordinator.
    Service,
}

impl Role {
    /// The role, for a person.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Coordinator | Self::Service => "coordinator",
        }
    }

    /// The name that a certificate of this role is for. Members are dialled by address, so that the
    /// name is not the host's.
    pub(crate) fn subject(self, cluster: ClusterId) -> String {
        format!("{}.{cluster}.internal", self.name())
    }

    /// The same, as it is compared.
    pub(crate) fn server_name(self, cluster: ClusterId) -> ServerName<'static> {
        self.subject(cluster).try_into().expect("letters, digits and dots are a DNS name")
    }
}
