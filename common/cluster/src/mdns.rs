//! The only file that knows mdns-sd: announces a member on the link, and hears of others.
//!
//! What is heard is a hint. Anyone on the link can announce anything, and a host that crashed stays
//! announced for minutes: whether somebody belongs to the cluster and lives is for the session to
//! find out. So everything that is heard is bounded, and nothing here is fatal to who asks.

mod known;
mod port;
mod question;

use std::collections::VecDeque;
use std::fmt;
use std::future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, IfKind, IfPredicate, Metrics, Receiver, ResolvedService, ServiceDaemon,
    ServiceEvent, ServiceInfo, TryRecvError,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;
use widemap_common::limits::{
    ANNOUNCED_ADDRESSES_MAX, ANNOUNCEMENTS_MAX, MDNS_CHECK_MS, MDNS_CHECKS_UNANSWERED_MAX,
    MDNS_CONFIRM_MS, MDNS_GOODBYE_MS, MDNS_INTERFACES_S, MDNS_PAUSE_MS, MDNS_PAUSE_MS_MAX,
    MDNS_QUESTION_MS, MDNS_RECORDS_MAX, MDNS_TIMERS_MAX,
};

use crate::interfaces::{self, Interface};
use crate::record::{Announcement, RecordError};

use known::{Known, Learnt};
use question::{Answer, Question};

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

/// Listens for announcements until it is dropped.
///
/// It works while [`next`](Self::next) is awaited, so that should be always. Where mDNS has to be
/// started again, what was known stays so if it is heard again soon, and is told of again only if it
/// has changed.
pub struct Browser {
    service: Service,
    selection: Selection,
    link: Link,
    known: Known,
    /// Which opening of the link it is: what a former one has heard must be heard again.
    generation: u64,
    untold: VecDeque<Heard>,
    ours: Vec<Interface>,
    trouble: Option<String>,
    next_check: Instant,
    /// When those of a former generation are given up.
    sweep: Option<Instant>,
    pause: Duration,
}

/// Whether there is a daemon that listens.
enum Link {
    Open(Box<Session>),
    Closed { until: Instant },
}

/// One daemon and what it tells. A new one is taken where it is flooded or no longer tells: it
/// forgets, and asks the link anew.
struct Session {
    daemon: Daemon,
    events: Receiver<ServiceEvent>,
    monitor: Receiver<DaemonEvent>,
    /// Asked beside the daemon, since that is not answered at once.
    question: Option<Question>,
    metrics: Option<Receiver<Metrics>>,
    unanswered: u32,
    opened: Instant,
}

impl Browser {
    /// Asks the link, over the interfaces of these names or, if there are none, over all that lead to
    /// other machines, now or later.
    ///
    /// # Errors
    /// If mDNS does not work here.
    pub fn start(service: Service, interfaces: &[String]) -> Result<Self, MdnsError> {
        let selection = Selection::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), interfaces)?;
        let ours = local_interfaces()?;
        let session = Session::open(service, selection.clone(), &ours)?;
        let mut browser = Self {
            service,
            selection,
            link: Link::Open(Box::new(session)),
            known: Known::new(ANNOUNCEMENTS_MAX, fastrand::Rng::new()),
            generation: 1,
            untold: VecDeque::new(),
            ours,
            trouble: None,
            next_check: Instant::now() + Duration::from_millis(MDNS_CHECK_MS),
            sweep: Some(Instant::now() + Duration::from_millis(MDNS_CONFIRM_MS)),
            pause: Duration::from_millis(MDNS_PAUSE_MS),
        };
        browser.look_at_interfaces();
        Ok(browser)
    }

    /// What happens next. Nothing is lost if it is not awaited to the end.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.untold.pop_front() {
                return heard;
            }
            match &mut self.link {
                Link::Closed { until } => {
                    sleep_until(*until).await;
                    self.reopen();
                }
                Link::Open(session) => {
                    let step = session.step(self.next_check).await;
                    self.take(step);
                }
            }
        }
    }

    /// Ends it, and returns when its thread has, or after a short time all the same.
    pub async fn stop(self) {
        if let Link::Open(session) = &self.link {
            let stopped = session.daemon.stop();
            // Where that takes longer it has still been told to.
            let _ = timeout(Duration::from_millis(MDNS_GOODBYE_MS), stopped).await;
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Service(ServiceEvent::ServiceResolved(service)) => {
                self.hear(from_daemon(&service), self.generation);
            }
            Step::Service(ServiceEvent::ServiceRemoved(_, fullname)) => {
                let name = self.instance_name(&fullname);
                if self.known.forget(&name) {
                    self.untold.push_back(Heard::Gone(name));
                }
            }
            // The daemon has to hear it as well: it is the one that knows when somebody leaves.
            Step::Answers(answers) => {
                for answer in answers {
                    self.hear(answer, self.generation - 1);
                }
            }
            // Names without records, and what the daemon does for us.
            Step::Service(_) | Step::Nothing => {}
            Step::Trouble(why) => self.untold.push_back(Heard::Trouble(why)),
            Step::Closed(why) => self.close(why),
            Step::Check => self.check(),
        }
    }

    fn hear(&mut self, answer: Answer, generation: u64) {
        let Answer { fullname, port, addresses, properties } = answer;
        if properties.is_empty() {
            // They are in a packet of their own, and the service is told again when they arrive.
            return;
        }
        let name = self.instance_name(&fullname);
        let announcement = match Announcement::from_properties(properties) {
            Ok(announcement) => announcement,
            Err(why) => {
                if self.known.forget(&name) {
                    self.untold.push_back(Heard::Gone(name.clone()));
                }
                self.untold.push_back(Heard::Malformed { instance: name, why });
                return;
            }
        };
        // Each packet tells the addresses of one IP version: while they arrive, what has been told
        // so far holds.
        let is_beginning = matches!(&self.link, Link::Open(session) if session.question.is_some());
        let told = self
            .known
            .get(&name)
            .filter(|told| is_beginning && told.announcement == announcement && told.port == port);
        let told = told.map_or(&[][..], |told| &told.addresses);
        let addresses = addresses.into_iter().chain(told.iter().copied());
        let addresses =
            interfaces::in_dialling_order(addresses, &self.ours, ANNOUNCED_ADDRESSES_MAX);
        if addresses.is_empty() || port == 0 {
            return;
        }
        let instance = Instance { instance: name, announcement, port, addresses };
        let Learnt { is_new, evicted } = self.known.learn(&instance, generation);
        self.untold.extend(evicted.map(Heard::Gone));
        if is_new {
            self.untold.push_back(Heard::Found(instance));
        }
    }

    /// The name without what all of its kind share, and fit for a terminal.
    fn instance_name(&self, fullname: &str) -> String {
        let suffix = self.service.kind();
        let name = fullname.strip_suffix(suffix).and_then(|name| name.strip_suffix('.'));
        let name = name.unwrap_or(fullname);
        name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }

    fn check(&mut self) {
        let now = Instant::now();
        self.next_check = now + Duration::from_millis(MDNS_CHECK_MS);
        // Where the system does not tell them any more, the last ones are the best guess.
        if let Ok(ours) = interfaces::local() {
            self.ours = ours;
            self.look_at_interfaces();
        }
        if self.sweep.is_some_and(|at| now >= at) {
            self.sweep = None;
            let gone = self.known.sweep(self.generation);
            self.untold.extend(gone.into_iter().map(Heard::Gone));
        }
        if let Link::Open(session) = &mut self.link
            && let Some(why) = session.is_unwell()
        {
            self.close(why.to_owned());
        }
    }

    /// Tells once that no interface can be used, for as long as that is so.
    fn look_at_interfaces(&mut self) {
        let trouble = self.selection.trouble(&self.ours);
        if let Some(why) = trouble.clone().filter(|_| trouble != self.trouble) {
            self.untold.push_back(Heard::Trouble(why));
        }
        self.trouble = trouble;
    }

    fn close(&mut self, why: String) {
        let now = Instant::now();
        if let Link::Open(session) = &self.link
            && now.duration_since(session.opened) > Duration::from_millis(MDNS_PAUSE_MS_MAX)
        {
            // It went well for long: this is another trouble than the last one.
            self.pause = Duration::from_millis(MDNS_PAUSE_MS);
        }
        self.untold.push_back(Heard::Trouble(why));
        self.link = Link::Closed { until: now + self.pause };
        self.pause = (self.pause * 2).min(Duration::from_millis(MDNS_PAUSE_MS_MAX));
    }

    fn reopen(&mut self) {
        match Session::open(self.service, self.selection.clone(), &self.ours) {
            Ok(session) => {
                self.link = Link::Open(Box::new(session));
                self.generation += 1;
                self.sweep = Some(Instant::now() + Duration::from_millis(MDNS_CONFIRM_MS));
            }
            Err(error) => self.close(error.to_string()),
        }
    }
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser")
            .field("service", &self.service)
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

/// What a session has to say.
enum Step {
    Service(ServiceEvent),
    Answers(Vec<Answer>),
    Nothing,
    Trouble(String),
    Closed(String),
    Check,
}

impl Session {
    fn open(service: Service, selection: Selection, ours: &[Interface]) -> Result<Self, MdnsError> {
        let used = ours.iter().filter(|interface| selection.has(interface)).cloned().collect();
        let question = Question::ask(service.kind(), fastrand::u16(..), used);
        let daemon = Daemon::start(selection)?;
        let events = daemon.0.browse(service.kind())?;
        let monitor = daemon.0.monitor()?;
        let opened = Instant::now();
        Ok(Self { daemon, events, monitor, question, metrics: None, unanswered: 0, opened })
    }

    async fn step(&mut self, next_check: Instant) -> Step {
        tokio::select! {
            // First, so that a flood of events does not put it off.
            biased;
            () = sleep_until(next_check) => Step::Check,
            event = self.monitor.recv_async() => match event {
                Ok(DaemonEvent::Error(error)) => Step::Trouble(format!("mDNS: {error}")),
                Ok(_) => Step::Nothing,
                Err(_) => Step::Closed("mDNS has stopped; starting it again".to_owned()),
            },
            answers = answers(self.question.as_mut()) => Step::Answers(answers),
            event = self.events.recv_async() => match event {
                Ok(event) => Step::Service(event),
                // It closes the channel of whoever does not keep up.
                Err(_) => Step::Closed(
                    "more is announced on this network than can be followed; asking again"
                        .to_owned(),
                ),
            },
        }
    }

    /// Why it should be replaced, if it should. What it remembers is not bounded by itself.
    fn is_unwell(&mut self) -> Option<&'static str> {
        if self.opened.elapsed() > Duration::from_millis(MDNS_QUESTION_MS) {
            self.question = None;
        }
        let answer = self.metrics.as_ref().map(Receiver::try_recv);
        match answer {
            Some(Ok(metrics)) if is_flooded(&metrics) => {
                return Some(
                    "far more is announced on this network than there can be; asking again",
                );
            }
            Some(Err(TryRecvError::Empty)) => {
                self.unanswered += 1;
                let is_stuck = self.unanswered >= MDNS_CHECKS_UNANSWERED_MAX;
                return is_stuck.then_some("mDNS does not keep up with this network; asking again");
            }
            Some(Ok(_) | Err(TryRecvError::Disconnected)) | None => self.unanswered = 0,
        }
        // Where it cannot be asked it has ended, and its channels say so.
        self.metrics = self.daemon.0.get_metrics().ok();
        None
    }
}

async fn answers(question: Option<&mut Question>) -> Vec<Answer> {
    match question {
        Some(question) => question.answers().await,
        None => future::pending().await,
    }
}

fn from_daemon(service: &ResolvedService) -> Answer {
    let properties = service.get_properties().iter();
    let bytes = |value: &[u8]| value.to_vec();
    Answer {
        fullname: service.get_fullname().to_owned(),
        port: service.get_port(),
        addresses: service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr).collect(),
        properties: properties
            .map(|pair| (bytes(pair.key().as_bytes()), bytes(pair.val().unwrap_or_default())))
            .collect(),
    }
}

fn is_flooded(metrics: &Metrics) -> bool {
    let count = |name: &str| metrics.get(name).copied().unwrap_or(0);
    let records = ["cached-ptr", "cached-srv", "cached-txt", "cached-addr", "cached-nsec"];
    let records: i64 = records.into_iter().map(count).sum();
    records > MDNS_RECORDS_MAX
        || count("cached-subtype") > MDNS_RECORDS_MAX
        || count("timer") > MDNS_TIMERS_MAX
}

/// Which interfaces and addresses are used.
#[derive(Debug, Clone)]
struct Selection {
    /// The only address, if there is but one.
    only: Option<IpAddr>,
    /// The only interfaces, unless empty.
    wanted: Vec<String>,
}

impl Selection {
    fn new(listen: IpAddr, wanted: &[String]) -> Result<Self, MdnsError> {
        let only = Some(listen).filter(|listen| !listen.is_unspecified());
        if only.is_some_and(|only| !interfaces::is_dialable(only)) {
            return Err(MdnsError::Unreachable { listen });
        }
        Ok(Self { only, wanted: wanted.to_vec() })
    }

    fn has(&self, interface: &Interface) -> bool {
        let is_listened_at = self.only.is_none_or(|only| only == interface.address);
        is_listened_at && interface.is_useful(&self.wanted)
    }

    /// Why nothing is sent or heard, where no interface can be used.
    fn trouble(&self, ours: &[Interface]) -> Option<String> {
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
struct Daemon(ServiceDaemon);

impl Daemon {
    fn start(selection: Selection) -> Result<Self, MdnsError> {
        port::check()?;
        let daemon = Self(ServiceDaemon::new()?);
        let is_useless = IfPredicate::new(move |interface| !selection.has(&interface.into()));
        daemon.0.disable_interface(IfKind::Predicate(is_useless))?;
        daemon.0.set_ip_check_interval(MDNS_INTERFACES_S)?;
        Ok(daemon)
    }

    async fn stop(&self) {
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

fn local_interfaces() -> Result<Vec<Interface>, MdnsError> {
    interfaces::local().map_err(|source| MdnsError::Interfaces { source })
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
    use super::*;
    use widemap_common::ids::Incarnation;

    fn announcement(name: &str) -> Announcement {
        let incarnation = Incarnation(0x0123_4567_89ab_cdef);
        Announcement {
            name: name.to_owned(),
            protocol: (1, 0),
            incarnation,
            slots: 8,
            cluster: None,
        }
    }

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

    #[test]
    fn a_flood_is_seen_in_what_the_daemon_remembers() {
        let metrics = |name: &str, count| Metrics::from([(name.to_owned(), count)]);
        assert!(!is_flooded(&Metrics::new()));
        assert!(!is_flooded(&metrics("cached-ptr", MDNS_RECORDS_MAX)));
        for name in ["cached-ptr", "cached-srv", "cached-txt", "cached-addr", "cached-nsec"] {
            assert!(is_flooded(&metrics(name, MDNS_RECORDS_MAX + 1)), "{name}");
        }
        assert!(is_flooded(&metrics("timer", MDNS_TIMERS_MAX + 1)));
    }
}
