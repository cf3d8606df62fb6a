//! Hears of others, by a daemon of mdns-sd that is replaced where it does not keep up, and by a question
//! of its own at the beginning.

use std::collections::VecDeque;
use std::fmt;
use std::future;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mdns_sd::{DaemonEvent, Metrics, Receiver, ResolvedService, ServiceEvent, TryRecvError};
use tokio::time::{Instant, sleep_until, timeout};
use widemap_common::limits::{
    ANNOUNCED_ADDRESSES_MAX, ANNOUNCEMENTS_MAX, MDNS_CHECK_MS, MDNS_CHECKS_UNANSWERED_MAX,
    MDNS_CONFIRM_MS, MDNS_GOODBYE_MS, MDNS_PAUSE_MS, MDNS_PAUSE_MS_MAX, MDNS_QUESTION_MS,
    MDNS_RECORDS_MAX, MDNS_TIMERS_MAX,
};

use super::daemon::{Daemon, Selection, local_interfaces};
use super::known::{Known, Learnt};
use super::question::{Answer, Question};
use super::{Heard, Instance, MdnsError, Service};
use crate::interfaces::{self, Interface};
use crate::record::Announcement;

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

#[cfg(test)]
mod tests {
    use super::*;

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
