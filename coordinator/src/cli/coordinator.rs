//! Which coordinator is asked: the one that is named, or else the one that is announced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use widemap_cluster::config::Config;
use widemap_cluster::mdns::{Browser, Heard, Instance, Service};
use widemap_cluster::{Identity, Role, key};
use widemap_common::limits::UNUSED_SHOWN;
use widemap_common::time::Timers;

use super::options::UserArgs;
use super::place::{self, Named};
use crate::client::Coordinator;
use crate::error::MapError;
use crate::places;
use crate::session::Trust;

/// Whoever is announced by then is heard.
const ASKED: Duration = Duration::from_secs(1);

/// Once one is heard, another has so long to be heard as well.
const ANOTHER: Duration = Duration::from_millis(300);

/// The coordinator for what a user asks.
///
/// # Errors
/// If there is none, there are two, or this side cannot prove itself.
pub(super) async fn find(args: &UserArgs, config: &Config) -> Result<Coordinator, MapError> {
    let wanted = place::wanted(&args.trust, config);
    let named = place::named(&args.coordinator, config)?.into_iter().flatten().next();
    let identity = place::identity(wanted.as_ref(), Role::Coordinator)?;
    match named {
        Some(named) => at(&named, identity.as_deref(), args.timers),
        None => announced(args, config, identity.as_ref()).await,
    }
}

/// The coordinator that was named.
///
/// # Errors
/// If this side's certificate cannot be used.
pub(super) fn at(
    named: &Named,
    identity: Option<&Identity>,
    timers: Timers,
) -> Result<Coordinator, MapError> {
    let address = named.address.clone();
    if identity.is_none() && !place::is_loopback(&address) {
        super::map::warn_of(std::slice::from_ref(&address));
    }
    Ok(Coordinator::at(address.clone(), vec![address], trust(identity)?, timers))
}

/// What a coordinator is proved by.
fn trust(identity: Option<&Identity>) -> Result<Trust, MapError> {
    let config = identity.map(Identity::client_of_service).transpose();
    Ok(Trust(config.map_err(|error| MapError::Certificate(error.to_string()))?))
}

/// The only one that is announced.
async fn announced(
    args: &UserArgs,
    config: &Config,
    identity: Option<&Arc<Identity>>,
) -> Result<Coordinator, MapError> {
    let mut asked = vec![
        "  --coordinator, WIDEMAP_COORDINATOR, coordinator in widemap.toml: not said".to_owned(),
    ];
    let nobody = |asked| Err(MapError::NoCoordinator { asked });
    if args.no_mdns || config.mdns == Some(false) {
        asked.push("  mDNS: turned off".to_owned());
        return nobody(asked);
    }
    if identity.is_none() && !args.trust.insecure {
        asked.push(format!(
            "  mDNS: not asked, as there is no key ({}); one on this host is at --coordinator localhost",
            key::usual_places().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        ));
        return nobody(asked);
    }
    let interfaces = place::interfaces(&args.mdns_interface, config);
    let heard = listen(&interfaces, identity.map(Arc::as_ref)).await;
    let mut found = heard.found.into_values();
    match (found.next(), found.next()) {
        (Some((name, addresses)), None) => {
            let shown =
                addresses.first().map_or_else(|| name.clone(), |at| format!("{name} ({at})"));
            if identity.is_none() {
                super::map::warn_of(std::slice::from_ref(&shown));
            }
            let trust = trust(identity.map(Arc::as_ref))?;
            Ok(Coordinator::at(shown, addresses, trust, args.timers))
        }
        (Some(one), Some(other)) => {
            let shown = |(name, addresses): &(String, Vec<String>)| {
                format!("{name} ({})", addresses.first().map_or("?", String::as_str))
            };
            let all = [one, other].into_iter().chain(found);
            Err(MapError::SeveralCoordinators(all.map(|each| shown(&each)).collect()))
        }
        (None, _) => {
            let nothing = heard.unused.is_empty() && heard.trouble.is_none();
            asked.extend(heard.trouble.map(|trouble| format!("  mDNS: {trouble}")));
            asked.extend(
                heard.unused.into_iter().map(|(place, why)| format!("  mDNS: {place}: {why}")),
            );
            if nothing {
                asked.push(format!("  mDNS: nobody is announced (asked for {ASKED:?})"));
            }
            nobody(asked)
        }
    }
}

/// Who is announced.
#[derive(Default)]
struct Announced {
    /// Those of use, by their best address: name and addresses of each. A former life of one that was
    /// killed is announced for a while at the same address.
    found: BTreeMap<String, (String, Vec<String>)>,
    /// Those of none, and why.
    unused: Vec<(String, String)>,
    trouble: Option<String>,
}

async fn listen(interfaces: &[String], identity: Option<&Identity>) -> Announced {
    let mut announced = Announced::default();
    let mut browser = match Browser::start(Service::Coordinator, interfaces) {
        Ok(browser) => browser,
        Err(error) => {
            announced.trouble = Some(error.to_string());
            return announced;
        }
    };
    let begun = Instant::now();
    let mut until = begun + ASKED;
    loop {
        let heard = tokio::time::timeout_at(until, browser.next()).await;
        match heard {
            Ok(Heard::Found(instance)) => {
                announced.take(identity, &instance);
                if !announced.found.is_empty() {
                    until = until.min(Instant::now() + ANOTHER);
                }
            }
            Ok(Heard::Malformed { instance, why }) => {
                announced.leave_out(instance, why.to_string());
            }
            Ok(Heard::Gone(_)) => {}
            Ok(Heard::Trouble(why)) => announced.trouble = Some(why),
            Err(_) => break,
        }
    }
    browser.stop().await;
    announced
}

impl Announced {
    fn take(&mut self, identity: Option<&Identity>, instance: &Instance) {
        match places::judge(identity, instance) {
            Ok(place) => {
                let name = instance.announcement.name.clone();
                self.found.insert(place.shown().to_owned(), (name, place.addresses));
            }
            Err(unused) => self.leave_out(unused.place, unused.why),
        }
    }

    fn leave_out(&mut self, place: String, why: String) {
        if self.unused.len() < UNUSED_SHOWN {
            self.unused.push((place, why));
        }
    }
}
