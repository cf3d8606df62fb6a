//! Tells the link of one life of a member.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::ServiceInfo;
use tokio::time::{sleep, timeout};
use tracing::warn;
use widemap_common::limits::MDNS_GOODBYE_MS;

use super::daemon::{Daemon, Selection, local_interfaces};
use super::{MdnsError, Service};
use crate::record::Announcement;

/// Announces one life of a worker or coordinator until it is dropped.
pub struct Announcer {
    daemon: Daemon,
    fullname: String,
}

impl Announcer {
    /// Announces it at `port` of `listen`: of every useful address of this machine, as they come and
    /// go, if that is unspecified. `interfaces` names the only ones to use; if it is empty, all are
    /// used that lead to other machines.
    ///
    /// # Errors
    /// If there is something that nobody could read or reach, or mDNS does not work here. That there
    /// is no network yet is no error.
    pub fn start(
        service: Service,
        announcement: &Announcement,
        port: u16,
        listen: IpAddr,
        interfaces: &[String],
    ) -> Result<Self, MdnsError> {
        let selection = Selection::new(listen, interfaces)?;
        let info = service_info(service, announcement, port)?;
        if let Some(trouble) = selection.trouble(&local_interfaces()?) {
            warn!("not announced yet: {trouble}");
        }
        let daemon = Daemon::start(selection)?;
        let fullname = info.get_fullname().to_owned();
        daemon.0.register(info)?;
        Ok(Self { daemon, fullname })
    }

    /// Tells the link that it is leaving, and returns when that is sent, or after a short time all
    /// the same.
    pub async fn goodbye(self) {
        // Who does not hear it finds out by the session.
        let _ = timeout(Duration::from_millis(MDNS_GOODBYE_MS), self.withdraw()).await;
    }

    async fn withdraw(&self) {
        /// By then mdns-sd has said it a second time.
        const REPEATED: Duration = Duration::from_millis(150);
        if let Ok(unregistered) = self.daemon.0.unregister(&self.fullname)
            && unregistered.recv_async().await.is_ok()
        {
            sleep(REPEATED).await;
        }
        self.daemon.stop().await;
    }
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("fullname", &self.fullname).finish_non_exhaustive()
    }
}

fn service_info(
    service: Service,
    announcement: &Announcement,
    port: u16,
) -> Result<ServiceInfo, MdnsError> {
    let properties = announcement.to_properties()?;
    let label = instance_label(announcement);
    // A name of its own, since two on one machine may have different addresses.
    let host = format!("widemap-{:016x}.local.", announcement.incarnation.0);
    let info = ServiceInfo::new(service.kind(), &label, &host, (), port, &properties[..])?;
    let mut info = info.enable_addr_auto();
    // Nobody else has these names: asking whether they are free would only cost most of a second.
    info.set_requires_probe(false);
    Ok(info)
}

/// What it is called on the link: by its name, for those who look with other tools, and unique to
/// this life. Lower case, since mdns-sd does not find all of its own names otherwise.
fn instance_label(announcement: &Announcement) -> String {
    const LABEL_BYTES_MAX: usize = 63;
    let life = format!("{:016x}", announcement.incarnation.0);
    let life = &life[..8];
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut label: String = announcement.name.chars().map(plain).collect();
    label.truncate(LABEL_BYTES_MAX - 1 - life.len());
    label + "-" + life
}

#[cfg(test)]
mod tests {
    use super::super::testing::announcement;
    use super::*;

    #[test]
    fn the_name_on_the_link_is_short_plain_and_of_one_life() {
        assert_eq!(instance_label(&announcement("ann")), "ann-01234567");
        assert_eq!(instance_label(&announcement("Ann.Lab é")), "ann-lab---01234567");
        assert_eq!(instance_label(&announcement(&"ä".repeat(125))).len(), 63);
    }

    #[test]
    fn every_kind_of_service_is_one_that_dns_sd_allows() {
        for service in [Service::Worker, Service::Coordinator, Service::Probe] {
            let name = service.kind().split('.').next().expect("a label");
            assert!(name.starts_with('_') && name.len() <= 16, "{name}");
            let info = service_info(service, &announcement("ann"), 7433).expect("it can be told");
            let fullname = info.get_fullname();
            assert_eq!(fullname, fullname.to_lowercase(), "mdns-sd looks for it in lower case");
        }
    }
}
