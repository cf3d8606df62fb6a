//! The only module that knows mdns-sd: announces a member on the link, and hears of others.
//!
//! What is heard is a hint. Anyone on the link can announce anything, and a host that crashed stays
//! announced for minutes: whether somebody belongs to the cluster and lives is for the session to
//! find out. So everything that is heard is bounded, and nothing here is fatal to who asks.

mod announcer;
mod browser;
mod daemon;
mod known;
mod port;
mod question;

use std::io;
use std::net::IpAddr;

use crate::record::{Announcement, RecordError};

pub use announcer::Announcer;
pub use browser::Browser;

/// What is announced and asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Those who run what a map is made of.
    Worker,
    /// Those who serve maps to others.
    Coordinator,
    /// Nobody: a host that finds out whether it hears itself. Whoever looks for the others never dials
    /// it.
    Probe,
}

impl Service {
    /// Its name in DNS-SD, which allows 15 letters between the underscore and the dot.
    fn kind(self) -> &'static str {
        match self {
            Self::Worker => "_widemap._tcp.local.",
            Self::Coordinator => "_widemap-coord._tcp.local.",
            Self::Probe => "_widemap-probe._tcp.local.",
        }
    }
}

/// Why nothing can be announced or heard.
#[derive(Debug, thiserror::Error)]
pub enum MdnsError {
    /// Another program holds the port of mDNS for itself, or the system forbids it.
    #[error(
        "UDP port {port} cannot be used for mDNS: {source}; stop the program that holds it alone, \
         or name the workers instead (--worker HOST:PORT)",
        port = mdns_sd::MDNS_PORT
    )]
    Port {
        /// What the system says.
        source: io::Error,
    },
    /// The addresses of this machine are not known.
    #[error("the network interfaces of this machine cannot be listed: {source}")]
    Interfaces {
        /// What the system says.
        source: io::Error,
    },
    /// What listens there is not reached from another machine.
    #[error(
        "{listen} is reached from this machine alone and cannot be announced; listen on an address \
         of the network, or on 0.0.0.0 for all of them"
    )]
    Unreachable {
        /// Where it listens.
        listen: IpAddr,
    },
    /// What there is to say is out of bounds.
    #[error("this cannot be announced: {0}")]
    Record(#[from] RecordError),
    /// The mDNS daemon, a thread of this process, does not work.
    #[error("mDNS cannot be used here: {why}; name the workers instead (--worker HOST:PORT)")]
    Daemon {
        /// What it says.
        why: String,
    },
}

impl From<mdns_sd::Error> for MdnsError {
    fn from(error: mdns_sd::Error) -> Self {
        Self::Daemon { why: error.to_string() }
    }
}

/// Somebody that is announced, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// What the announcement is called on the link: another one in each life.
    pub instance: String,
    /// What it says of itself.
    pub announcement: Announcement,
    /// Where it listens.
    pub port: u16,
    /// The addresses that are worth dialling from here, best first; at least one.
    pub addresses: Vec<IpAddr>,
}

/// What a [`Browser`] has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Somebody is announced, or what is known of it is another now.
    Found(Instance),
    /// An announcement cannot be read.
    Malformed {
        /// What it is called on the link.
        instance: String,
        /// What is wrong with it.
        why: RecordError,
    },
    /// It is no longer announced, or there are too many to remember it.
    Gone(String),
    /// Why nothing may be heard for now; the browser goes on by itself.
    Trouble(String),
}

#[cfg(test)]
mod testing {
    use widemap_common::ids::Incarnation;

    use super::Announcement;

    pub(super) fn announcement(name: &str) -> Announcement {
        let incarnation = Incarnation(0x0123_4567_89ab_cdef);
        Announcement {
            name: name.to_owned(),
            protocol: (1, 0),
            incarnation,
            slots: 8,
            cluster: None,
        }
    }
}
