//! Asks one worker, in the steps that a map takes, so that the first that fails is known: a proved
//! connection, a call, a payload of several packets, a session.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;
use widemap_common::limits::{DOCTOR_PAYLOAD_BYTES, DRIVER_QUEUE};
use widemap_proto::session::WorkerHello;

use super::clock::{self, AheadMs};
use crate::client;
use crate::session::{self, Dial, DialError, Greeting, LinkId, LinkNews};

/// How long each address may take to accept a bare connection.
const KNOCK: Duration = Duration::from_secs(1);

/// What a worker has answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Who it is.
    pub(super) hello: WorkerHello,
    /// How far its wall clock is ahead, if it tells it.
    pub(super) ahead: Option<AheadMs>,
    /// Whether a payload of several packets gets through to it.
    pub(super) carries: bool,
}

/// The step that failed, and how.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is no connection that both sides believe in.
    Dial(DialError),
    /// Not even a bare connection was answered, within this time.
    Silent(Duration),
    /// A bare connection is accepted, and what follows has no end within this time.
    Handshake(Duration),
    /// The connection is proved, and the call for its health failed.
    Unwell(Status),
    /// It refuses a session.
    Refused(String),
    /// Its session broke at once.
    Cut(String),
}

/// Asks the worker at one of these addresses, `HOST:PORT` each.
pub(super) async fn ask(addresses: Vec<String>, greeting: Greeting) -> Result<Answer, Fault> {
    let dial = Dial::Addresses(addresses.clone());
    let line = match dial.connect(&greeting.trust, &greeting.timers).await {
        Ok(line) => line,
        Err(DialError::TimedOut(limit)) if accepts(&addresses).await => {
            return Err(Fault::Handshake(limit));
        }
        Err(DialError::TimedOut(limit)) => return Err(Fault::Silent(limit)),
        Err(error) => return Err(Fault::Dial(error)),
    };
    if let Err(status) = client::health(line.channel.clone()).await {
        // What its bytes have shown says more than what the call has come to.
        let fault = line.fault.get().cloned();
        return Err(fault.map_or(Fault::Unwell(status), Fault::Dial));
    }
    let (hello, ahead) = greet(addresses, greeting).await?;
    let carries = client::carries(line.channel, DOCTOR_PAYLOAD_BYTES).await;
    Ok(Answer { hello, ahead, carries })
}

/// Whether a bare connection is accepted at one of them.
async fn accepts(addresses: &[String]) -> bool {
    let mut knocks = JoinSet::new();
    for address in addresses.iter().cloned() {
        knocks.spawn(tokio::time::timeout(KNOCK, TcpStream::connect(address)));
    }
    while let Some(knocked) = knocks.join_next().await {
        if matches!(knocked, Ok(Ok(Ok(_)))) {
            return true;
        }
    }
    false
}

/// Opens a session as a map does, and says goodbye as soon as it is greeted.
async fn greet(
    addresses: Vec<String>,
    greeting: Greeting,
) -> Result<(WorkerHello, Option<AheadMs>), Fault> {
    let (events, mut news) = mpsc::channel(DRIVER_QUEUE);
    let mut tasks = JoinSet::new();
    let dial = Dial::Addresses(addresses);
    let link = session::spawn(&mut tasks, LinkId(0), dial, greeting, events);
    let greeted = loop {
        match news.recv().await.map(|event| event.news) {
            Some(LinkNews::Attached { hello, round_trip, .. }) => {
                let ahead = hello.clock_ms.and_then(|told| clock::ahead(told, round_trip));
                break Ok((*hello, ahead));
            }
            Some(LinkNews::Unreachable { error }) => break Err(Fault::Dial(error)),
            Some(LinkNews::Refused { reason }) => break Err(Fault::Refused(reason)),
            Some(LinkNews::Cut { reason, .. }) => break Err(Fault::Cut(reason)),
            Some(_) => {}
            None => break Err(Fault::Cut("the session ended".to_owned())),
        }
    };
    link.goodbye.cancel();
    // Whatever it still has to tell, nobody waits for it.
    news.close();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    greeted
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use widemap_common::ids::Incarnation;
    use widemap_proto::VERSION;

    use super::*;

    pub(in crate::doctor) fn answer(name: &str) -> Answer {
        let hello = WorkerHello {
            version: VERSION,
            build: "widemap-worker 0.1.0".to_owned(),
            name: name.to_owned(),
            incarnation: Incarnation(7),
            slots: 2,
            runtimes: Vec::new(),
            labels: BTreeMap::new(),
            functions: Vec::new(),
            left_out: None,
            clock_ms: None,
        };
        Answer { hello, ahead: None, carries: true }
    }

    #[tokio::test]
    async fn a_bare_connection_is_told_from_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let nobody = "127.0.0.1:1".to_owned();
        assert!(accepts(&[nobody.clone(), address]).await);
        assert!(!accepts(&[nobody]).await);
    }
}
