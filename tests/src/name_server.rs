//! A DNS server whose names the test changes while others ask.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};

use crate::net::Host;

/// In seconds: an answer is old soon, so that a change is seen soon.
const TTL: u32 = 1;

type Names = Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>;

/// Answers until it is dropped; a name that it does not have does not exist.
#[derive(Debug)]
pub struct NameServer {
    names: Names,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// A server without names, on the usual port of a host.
    ///
    /// # Panics
    /// If the port is taken.
    #[must_use]
    pub fn on(host: &Host) -> Self {
        let bind = || UdpSocket::bind((host.address(), 53));
        let socket = host.on(bind).expect("the host has no other");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it is not zero");
        let (names, ends) = (Names::default(), Arc::new(AtomicBool::new(false)));
        let (known, told) = (names.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // Nobody has asked in time, or what was asked makes no sense.
                let _ = answer_one(&socket, &known);
            }
        });
        Self { names, ends, thread: Some(thread) }
    }

    /// From now on the name has this address too.
    ///
    /// # Panics
    /// If it is none.
    pub fn add(&self, name: &str, address: &str) {
        let mut names = self.names.lock().expect("no holder of this lock panics");
        names.entry(name.to_owned()).or_default().push(address.parse().expect("an address"));
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic here would hide the one that may be under way.
            let _ = thread.join();
        }
    }
}

fn answer_one(socket: &UdpSocket, names: &Names) -> io::Result<()> {
    let mut bytes = [0; 1500];
    let (count, peer) = socket.recv_from(&mut bytes)?;
    let asked = Message::from_vec(&bytes[..count]).map_err(io::Error::other)?;
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.authoritative = true;
    for query in &asked.queries {
        answer.queries.push(query.clone());
        let name = query.name().to_ascii();
        let names = names.lock().expect("no holder of this lock panics");
        let Some(addresses) = names.get(name.trim_end_matches('.')) else {
            answer.metadata.response_code = ResponseCode::NXDomain;
            continue;
        };
        let wanted = |address: &&IpAddr| match query.query_type() {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => false,
        };
        answer.answers.extend(addresses.iter().filter(wanted).map(|&address| {
            let data = match address {
                IpAddr::V4(address) => RData::A(address.into()),
                IpAddr::V6(address) => RData::AAAA(address.into()),
            };
            Record::from_rdata(query.name().clone(), TTL, data)
        }));
    }
    socket.send_to(&answer.to_vec().map_err(io::Error::other)?, peer)?;
    Ok(())
}
