//! Announcements on the local network. What somebody says of itself there is only believed so far as to
//! spare a useless handshake.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use widemap_cluster::Identity;
use widemap_cluster::mdns::{Browser, Heard, Instance, Service};
use widemap_common::limits::{HINTED_ADDRESSES_MAX, UNUSED_SHOWN};
use widemap_proto::VERSION;

use super::{Place, Source, Suggestion, Unused};

/// What a person calls the source.
pub(crate) const NAME: &str = "mDNS";

/// News that come together are told together.
const TOGETHER: Duration = Duration::from_millis(10);

/// Who has not answered by then is not there, as far as is known: a moment before the second is over
/// that a map gives to mDNS.
const SILENCE: Duration = Duration::from_millis(900);

/// The more is known, the more news are told together: telling costs as much as is known.
const TOGETHER_PER_INSTANCE: Duration = Duration::from_micros(50);

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Mdns {
    /// The interfaces to ask over; all that lead to other machines if none is named.
    pub(crate) interfaces: Vec<String>,
    /// Whom this side believes; without it, only workers without a key are of use.
    pub(crate) identity: Option<Arc<Identity>>,
}

/// Everything that is announced, by its name on the link.
type Announced = BTreeMap<String, Result<Place, Unused>>;

#[tonic::async_trait]
impl Source for Mdns {
    fn name(&self) -> &str {
        NAME
    }

    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>) {
        let mut browser = match Browser::start(Service::Worker, &self.interfaces) {
            Ok(browser) => browser,
            Err(error) => {
                // If the driver is gone, nobody wants to know.
                let _ = suggestions.send(told(&Announced::new(), Some(error.to_string()))).await;
                return;
            }
        };
        let (mut announced, mut trouble) = (Announced::new(), None);
        // That nobody is there is an answer too.
        let mut tell_at = Some(Instant::now() + SILENCE);
        loop {
            tokio::select! {
                heard = browser.next() => {
                    self.take(heard, &mut announced, &mut trouble);
                    let known = u32::try_from(announced.len()).unwrap_or(u32::MAX);
                    let pause = TOGETHER + TOGETHER_PER_INSTANCE * known;
                    let soon = Instant::now() + pause;
                    tell_at = Some(tell_at.map_or(soon, |at| at.min(soon)));
                }
                () = at(tell_at) => {
                    tell_at = None;
                    if suggestions.send(told(&announced, trouble.clone())).await.is_err() {
                        break;
                    }
                }
                () = suggestions.closed() => break,
            }
        }
        browser.stop().await;
    }
}

impl Mdns {
    fn take(&self, heard: Heard, announced: &mut Announced, trouble: &mut Option<String>) {
        match heard {
            Heard::Found(instance) => {
                *trouble = None;
                let judged = judge(self.identity.as_deref(), &instance);
                announced.insert(instance.instance.clone(), judged);
            }
            Heard::Malformed { instance, why } => {
                let unused = Unused { place: instance.clone(), why: why.to_string() };
                announced.insert(instance, Err(unused));
            }
            Heard::Gone(instance) => {
                announced.remove(&instance);
            }
            Heard::Trouble(text) => *trouble = Some(text),
        }
    }
}

/// Whether somebody who is announced, a worker or a coordinator, is worth dialling for one who has this
/// identity.
pub(crate) fn judge(identity: Option<&Identity>, instance: &Instance) -> Result<Place, Unused> {
    let Instance { announcement, port, addresses, .. } = instance;
    let addresses = addresses.iter().take(HINTED_ADDRESSES_MAX);
    let addresses = addresses.map(|&ip| SocketAddr::new(ip, *port).to_string());
    let place =
        Place { addresses: addresses.collect(), incarnation: Some(announcement.incarnation) };
    let why = match (identity, announcement.cluster) {
        _ if announcement.protocol.0 != VERSION.major => {
            let (major, minor) = announcement.protocol;
            format!(
                "it speaks protocol {major}.{minor}, this widemap {VERSION}: install the same release \
                 on both"
            )
        }
        (Some(identity), Some(cluster)) if identity.cluster().is_none() => format!(
            "it has the key of cluster {cluster}, and this side has certificates made elsewhere: start \
             both with the one or with the other"
        ),
        (Some(identity), Some(cluster)) if !identity.trusts(cluster) => {
            format!("wrong key: it belongs to cluster {cluster}")
        }
        (Some(identity), None) if identity.cluster().is_some() => {
            "it has no key: start it with the key of this cluster".to_owned()
        }
        (None, Some(cluster)) => {
            format!("it has a key (cluster {cluster}), and there is none here")
        }
        _ => return Ok(place),
    };
    Err(Unused { place: format!("{} ({})", announcement.name, place.shown()), why })
}

fn told(announced: &Announced, trouble: Option<String>) -> Suggestion {
    let places = announced.values().filter_map(|place| place.as_ref().ok().cloned()).collect();
    let unused = announced.values().filter_map(|place| place.as_ref().err().cloned());
    Suggestion {
        source: NAME.to_owned(),
        places,
        hints: true,
        unused: unused.take(UNUSED_SHOWN).collect(),
        trouble,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use widemap_cluster::Role;
    use widemap_cluster::key::{self, ClusterKey};
    use widemap_cluster::record::Announcement;
    use widemap_common::ids::Incarnation;

    use super::*;

    fn instance(protocol: u32, key: Option<&ClusterKey>) -> Instance {
        let announcement = Announcement {
            name: "ann".to_owned(),
            protocol: (protocol, 0),
            incarnation: Incarnation(7),
            slots: 1,
            cluster: key.map(ClusterKey::cluster),
        };
        let addresses = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        Instance { instance: "ann-7".to_owned(), announcement, port: 7433, addresses }
    }

    fn source(key: Option<&ClusterKey>) -> Mdns {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let identity = key.map(|key| {
            key::write_new(&path, &key.to_text()).unwrap();
            Arc::new(Identity::of_key_file(&path, Role::Coordinator).unwrap())
        });
        Mdns { interfaces: Vec::new(), identity }
    }

    fn judged(source: &Mdns, instance: &Instance) -> Result<Place, Unused> {
        judge(source.identity.as_deref(), instance)
    }

    #[test]
    fn only_what_may_be_of_use_is_dialled() {
        let (ours, other) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let place = judged(&source(Some(&ours)), &instance(VERSION.major, Some(&ours))).unwrap();
        assert_eq!(place.addresses, ["10.0.0.7:7433", "[fd00::7]:7433"]);
        assert_eq!(place.incarnation, Some(Incarnation(7)));
        assert!(judged(&source(None), &instance(VERSION.major, None)).is_ok());
        for (why, source, instance) in [
            ("wrong key", source(Some(&ours)), instance(VERSION.major, Some(&other))),
            ("it has no key", source(Some(&ours)), instance(VERSION.major, None)),
            ("there is none here", source(None), instance(VERSION.major, Some(&other))),
            ("protocol 9.0", source(Some(&ours)), instance(9, Some(&ours))),
        ] {
            let unused = judged(&source, &instance).unwrap_err();
            assert!(unused.why.contains(why), "{unused:?}");
            assert_eq!(unused.place, "ann (10.0.0.7:7433)");
        }
    }

    #[test]
    fn what_is_gone_is_not_told() {
        let source = source(None);
        let (mut announced, mut trouble) = (Announced::new(), None);
        source.take(Heard::Trouble("no link".to_owned()), &mut announced, &mut trouble);
        assert_eq!(told(&announced, trouble.clone()).trouble.as_deref(), Some("no link"));
        let found = Heard::Found(instance(VERSION.major, None));
        source.take(found, &mut announced, &mut trouble);
        let suggestion = told(&announced, trouble.clone());
        assert_eq!((suggestion.places.len(), suggestion.trouble), (1, None));
        source.take(Heard::Gone("ann-7".to_owned()), &mut announced, &mut trouble);
        assert!(told(&announced, trouble).places.is_empty());
    }
}
