//! A DNS name: all of its addresses, asked for again when the answer is too old. A headless service of
//! Kubernetes is such a name.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use tokio::sync::mpsc;
use tokio::time::Instant;
use widemap_common::limits::WORKERS_MAX;

use super::{Place, Source, Suggestion};

/// An answer is not asked for again sooner, however short its life.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Nor later, however long its life: a name may be changed.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dns {
    /// What a person calls the source.
    pub(crate) name: String,
    /// The name that is asked for.
    pub(crate) host: String,
    /// The port of each worker.
    pub(crate) port: u16,
}

/// What one question has brought.
enum Answer {
    /// These addresses, until then.
    Addresses(Vec<SocketAddr>, Instant),
    /// For sure none.
    Nothing(String),
    /// No answer: what was known before may still be true.
    Silence(String),
}

#[tonic::async_trait]
impl Source for Dns {
    fn name(&self) -> &str {
        &self.name
    }

    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>) {
        let mut last: Option<Suggestion> = None;
        loop {
            let (places, trouble, again) = match self.ask().await {
                Answer::Addresses(addresses, until) => {
                    let places = addresses.iter().map(|a| Place::at(a.to_string())).collect();
                    (places, None, until.saturating_duration_since(Instant::now()))
                }
                Answer::Nothing(trouble) => (Vec::new(), Some(trouble), PAUSE_MIN),
                Answer::Silence(trouble) => {
                    let known = last.as_ref().map(|last| last.places.clone());
                    (known.unwrap_or_default(), Some(trouble), PAUSE_MIN)
                }
            };
            let now = Suggestion {
                source: self.name.clone(),
                places,
                // A server may name a part of them at a time, and drops one that is ending early.
                hints: true,
                unused: Vec::new(),
                trouble,
            };
            if last.as_ref() != Some(&now) {
                last = Some(now.clone());
                if suggestions.send(now).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(again.clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
    }
}

impl Dns {
    /// Asks for the addresses of both kinds. The host's own configuration is read each time: it may
    /// have joined another network.
    async fn ask(&self) -> Answer {
        let silence = |error: NetError| Answer::Silence(format!("no answer from DNS: {error}"));
        let mut builder = match TokioResolver::builder_tokio() {
            Ok(builder) => builder,
            Err(error) => return silence(error),
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = match builder.build() {
            Ok(resolver) => resolver,
            Err(error) => return silence(error),
        };
        match resolver.lookup_ip(self.host.as_str()).await {
            Ok(found) => {
                let mut addresses: Vec<_> = found
                    .iter()
                    .map(|ip| SocketAddr::new(ip, self.port))
                    .take(WORKERS_MAX)
                    .collect();
                addresses.sort_unstable();
                addresses.dedup();
                Answer::Addresses(addresses, found.valid_until().into())
            }
            Err(error) if error.is_nx_domain() => {
                Answer::Nothing(format!("DNS knows no name {}", self.host))
            }
            Err(error) if error.is_no_records_found() => {
                Answer::Nothing(format!("{} has no address in DNS", self.host))
            }
            Err(error) => silence(error),
        }
    }
}
