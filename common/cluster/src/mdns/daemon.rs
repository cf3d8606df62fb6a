//! The thread that speaks mDNS, and over what.

use std::net::IpAddr;

use mdns_sd::{IfKind, IfPredicate, ServiceDaemon};
use widemap_common::limits::MDNS_INTERFACES_S;

use super::{MdnsError, port};
use crate::interfaces::{self, Interface};

/// Which interfaces and addresses are used.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    /// The only address, if there is but one.
    only: Option<IpAddr>,
    /// The only interfaces, unless empty.
    wanted: Vec<String>,
}

impl Selection {
    pub(super) fn new(listen: IpAddr, wanted: &[String]) -> Result<Self, MdnsError> {
        let only = Some(listen).filter(|listen| !listen.is_unspecified());
        if only.is_some_and(|only| !interfaces::is_dialable(only)) {
            return Err(MdnsError::Unreachable { listen });
        }
        Ok(Self { only, wanted: wanted.to_vec() })
    }

    pub(super) fn has(&self, interface: &Interface) -> bool {
        let is_listened_at = self.only.is_none_or(|only| only == interface.address);
        is_listened_at && interface.is_useful(&self.wanted)
    }

    /// Why nothing is sent or heard, where no interface can be used.
    pub(super) fn trouble(&self, ours: &[Interface]) -> Option<String> {
        if ours.iter().any(|interface| self.has(interface)) {
            return None;
        }
        let what = match (self.only, self.wanted.as_slice()) {
            (Some(only), _) => format!("no usable interface has the address {only}"),
            (None, []) => "no interface leads to another machine".to_owned(),
            (None, wanted) => format!("none of the interfaces {} is usable", wanted.join(", ")),
        };
        let next = "waiting for one; check `ip address`, or name the workers (--worker HOST:PORT)";
        Some(format!("mDNS: {what}; {next}"))
    }
}

/// The thread that speaks mDNS; it ends when this is dropped.
pub(super) struct Daemon(pub(super) ServiceDaemon);

impl Daemon {
    pub(super) fn start(selection: Selection) -> Result<Self, MdnsError> {
        port::check()?;
        let daemon = Self(ServiceDaemon::new()?);
        let is_useless = IfPredicate::new(move |interface| !selection.has(&interface.into()));
        daemon.0.disable_interface(IfKind::Predicate(is_useless))?;
        daemon.0.set_ip_check_interval(MDNS_INTERFACES_S)?;
        Ok(daemon)
    }

    pub(super) async fn stop(&self) {
        if let Ok(stopped) = self.0.shutdown() {
            // An error says that it has stopped as well.
            let _ = stopped.recv_async().await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It would live on by itself. Where it has ended already there is nothing to do.
        let _ = self.0.shutdown();
    }
}

pub(super) fn local_interfaces() -> Result<Vec<Interface>, MdnsError> {
    interfaces::local().map_err(|source| MdnsError::Interfaces { source })
}
