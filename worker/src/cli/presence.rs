//! How those who look for workers, programs and people, know of this one.

use std::io::{self, Write as _};
use std::net::SocketAddr;

use widemap_cluster::Identity;
use widemap_cluster::mdns::{Announcer, Service};

use super::error::CliError;
use super::say;
use crate::register::Registration;
use crate::worker::Worker;

/// How those who look for workers know of this one.
pub(super) struct Presence {
    pub(super) announcer: Option<Announcer>,
    pub(super) registration: Option<Registration>,
}

impl Presence {
    /// Nobody new is to come.
    pub(super) async fn end(&mut self) {
        if let Some(Err(error)) = self.registration.as_mut().map(Registration::remove) {
            say(&format!(
                "cannot remove this worker's file in the directory of --register: {error}"
            ));
        }
        if let Some(announcer) = self.announcer.take() {
            announcer.goodbye().await;
        }
    }
}

/// Announces the worker. Where that cannot be done, those who name the worker reach it all the same:
/// it is an error for somebody alone who has just asked for it, by a flag.
pub(super) fn announce(
    worker: &Worker,
    address: SocketAddr,
    interfaces: &[String],
    is_asked_for: bool,
) -> Result<Option<Announcer>, CliError> {
    let (announcement, listen) = (worker.announcement(), address.ip());
    let started =
        Announcer::start(Service::Worker, &announcement, address.port(), listen, interfaces);
    match started.map_err(CliError::Mdns) {
        Ok(announcer) => Ok(Some(announcer)),
        Err(error) if is_asked_for => Err(error),
        Err(error) => {
            say(&format!("WARNING: {error}"));
            Ok(None)
        }
    }
}

/// Says where the worker listens, on standard output for programs and on standard error for people.
pub(super) fn say_start(
    address: SocketAddr,
    insecure: bool,
    identity: Option<&Identity>,
) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    let port = address.port();
    match identity {
        Some(identity) => {
            let cluster =
                identity.cluster().map_or_else(String::new, |id| format!("cluster {id}, "));
            say(&format!("{cluster}by the {}", identity.source()));
        }
        None if !address.ip().is_loopback() => say(&format!(
            "WARNING: --insecure: whoever reaches {address} runs commands on this host as this user"
        )),
        None if insecure => {
            say("WARNING: --insecure: every user of this host can run commands as this user");
        }
        None => {
            say(&format!(
                "use it from this host: widemap map --worker 127.0.0.1:{port} -- COMMAND"
            ));
            say("for other hosts: widemap key new, the same file on each of them, start it again");
        }
    }
    Ok(())
}
