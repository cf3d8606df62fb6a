//! One question to the link that is answered at once.
//!
//! Who asks from the port of mDNS is answered by multicast: after up to 50 ms, and not at all within
//! a second of the last answer, whoever that was for. So of two maps in a row the second would hear
//! of no worker for a second. Who asks from another port is answered alone and without delay (RFC
//! 6762, 6.7). A firewall may drop such an answer, so this comes beside browsing, not instead.

use std::future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::{Name, RData, Record};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use widemap_common::limits::MDNS_QUESTION_AGAIN_MS;

use crate::interfaces::Interface;

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// The longest packet of mDNS, with its headers (RFC 6762, 17).
const PACKET_BYTES_MAX: usize = 9_000;

/// A question that has been asked, and where its answers arrive.
pub(super) struct Question {
    kind: Name,
    id: u16,
    packet: Vec<u8>,
    asked: Vec<Interface>,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// When it is asked again, and how long after that once more: a packet may get lost, or arrive
    /// when somebody is about to start.
    again: Instant,
    pause: Duration,
}

/// Somebody that has answered, not yet looked at closer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) fullname: String,
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) properties: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Question {
    /// Asks for all of a kind over these interfaces; `None` where that cannot be asked.
    pub(super) fn ask(kind: &str, id: u16, interfaces: Vec<Interface>) -> Option<Self> {
        let name = Name::from_ascii(kind).ok()?;
        // What follows panics where there is no runtime.
        Handle::try_current().ok()?;
        let packet = packet(id, kind);
        let v4 = open(Domain::IPV4).ok();
        let v6 = open(Domain::IPV6).ok();
        let pause = Duration::from_millis(MDNS_QUESTION_AGAIN_MS);
        let again = Instant::now() + pause;
        let question = Self { kind: name, id, packet, asked: interfaces, v4, v6, again, pause };
        question.send();
        Some(question)
    }

    /// The answers that come next, in one packet. It is asked again meanwhile, with pauses that grow.
    pub(super) async fn answers(&mut self) -> Vec<Answer> {
        let (mut v4, mut v6) = (vec![0; PACKET_BYTES_MAX], vec![0; PACKET_BYTES_MAX]);
        loop {
            let (packet, from) = tokio::select! {
                (bytes, from) = receive(self.v4.as_ref(), &mut v4) => (&v4[..bytes], from),
                (bytes, from) = receive(self.v6.as_ref(), &mut v6) => (&v6[..bytes], from),
                () = sleep_until(self.again) => {
                    self.send();
                    self.pause *= 2;
                    self.again += self.pause;
                    continue;
                }
            };
            if self.is_on_link(from.ip()) {
                return read(packet, self.id, &self.kind);
            }
        }
    }

    fn send(&self) {
        for interface in &self.asked {
            // One that cannot be asked over is no reason not to ask over the others.
            let _ = match interface.address {
                IpAddr::V4(_) => ask_over(interface, self.v4.as_ref(), &self.packet),
                IpAddr::V6(_) => ask_over(interface, self.v6.as_ref(), &self.packet),
            };
        }
    }

    /// The link alone was asked, so none but the link has an answer.
    fn is_on_link(&self, from: IpAddr) -> bool {
        let is_of_link = matches!(from, IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_of_link || self.asked.iter().any(|interface| interface.is_near(from))
    }
}

fn open(domain: Domain) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let any: IpAddr = if domain == Domain::IPV4 {
        socket.set_multicast_ttl_v4(255)?;
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        socket.set_only_v6(true)?;
        socket.set_multicast_hops_v6(255)?;
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    UdpSocket::from_std(socket.into())
}

fn ask_over(interface: &Interface, socket: Option<&UdpSocket>, packet: &[u8]) -> io::Result<usize> {
    let socket = SockRef::from(socket.ok_or(io::ErrorKind::NotConnected)?);
    let group: IpAddr = match interface.address {
        IpAddr::V4(address) => {
            socket.set_multicast_if_v4(&address)?;
            GROUP_V4.into()
        }
        IpAddr::V6(_) => {
            socket.set_multicast_if_v6(interface.index)?;
            GROUP_V6.into()
        }
    };
    socket.send_to(packet, &SocketAddr::new(group, mdns_sd::MDNS_PORT).into())
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    if let Some(socket) = socket
        && let Ok(received) = socket.recv_from(buffer).await
    {
        return received;
    }
    // Browsing goes on without it.
    future::pending().await
}

/// A question for the pointers of a kind (RFC 1035, 4.1).
fn packet(id: u16, kind: &str) -> Vec<u8> {
    const ONE_QUESTION: [u8; 10] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const POINTERS_OF_THE_INTERNET: [u8; 4] = [0, 12, 0, 1];
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend(ONE_QUESTION);
    for label in kind.split_terminator('.') {
        // The kinds are our own: their labels are short.
        packet.push(u8::try_from(label.len()).unwrap_or(0));
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(POINTERS_OF_THE_INTERNET);
    packet
}

/// The instances that a packet tells all of.
fn read(packet: &[u8], id: u16, kind: &Name) -> Vec<Answer> {
    let Ok(message) = Message::from_vec(packet) else { return Vec::new() };
    let metadata = message.metadata;
    if metadata.message_type != MessageType::Response || metadata.id != id {
        return Vec::new();
    }
    let records: Vec<&Record> = message.answers.iter().chain(&message.additionals).collect();
    let instances = of(&records, kind).filter_map(|data| match data {
        RData::PTR(instance) => Some(&instance.0),
        _ => None,
    });
    instances.filter_map(|instance| read_instance(&records, instance)).collect()
}

fn read_instance(records: &[&Record], instance: &Name) -> Option<Answer> {
    let (port, host) = of(records, instance).find_map(|data| match data {
        RData::SRV(service) => Some((service.port, &service.target)),
        _ => None,
    })?;
    let properties = of(records, instance).find_map(|data| match data {
        RData::TXT(text) => Some(text.txt_data.iter().map(|pair| read_property(pair)).collect()),
        _ => None,
    })?;
    let addresses = of(records, host).filter_map(|data| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    let addresses = addresses.collect();
    Some(Answer { fullname: instance.to_utf8(), port, addresses, properties })
}

/// What is recorded under a name.
fn of<'a>(records: &'a [&Record], name: &'a Name) -> impl Iterator<Item = &'a RData> {
    records.iter().filter(move |record| record.name == *name).map(|record| &record.data)
}

fn read_property(pair: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut parts = pair.splitn(2, |byte| *byte == b'=');
    let key = parts.next().unwrap_or_default();
    (key.to_vec(), parts.next().unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::op::OpCode;
    use hickory_resolver::proto::rr::rdata::{A, PTR, SRV, TXT};
    use proptest::prelude::*;

    const KIND: &str = "_widemap._tcp.local.";

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn answered(id: u16) -> Message {
        let (instance, host) = (name("ann._widemap._tcp.local."), name("ann.local."));
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        let pointer = RData::PTR(PTR(instance.clone()));
        message.answers.push(Record::from_rdata(name(KIND), 10, pointer));
        let service = RData::SRV(SRV::new(0, 0, 7433, host.clone()));
        let text = RData::TXT(TXT::from_bytes(vec![b"v=1.0", b"odd", b"x=y=z"]));
        message.additionals.push(Record::from_rdata(instance.clone(), 10, service));
        message.additionals.push(Record::from_rdata(instance, 10, text));
        message.additionals.push(Record::from_rdata(host, 10, RData::A(A::new(10, 0, 0, 1))));
        message
    }

    #[test]
    fn the_question_is_one_that_others_can_read() {
        let message = Message::from_vec(&packet(7, KIND)).expect("a message");
        assert_eq!((message.metadata.id, message.queries.len()), (7, 1));
        assert_eq!(message.queries[0].name(), &name(KIND));
    }

    #[test]
    fn an_answer_tells_all_of_an_instance() {
        let packet = answered(7).to_vec().expect("it fits");
        let pair = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        let ann = Answer {
            fullname: "ann._widemap._tcp.local.".to_owned(),
            port: 7433,
            addresses: vec![Ipv4Addr::new(10, 0, 0, 1).into()],
            properties: vec![pair("v", "1.0"), pair("odd", ""), pair("x", "y=z")],
        };
        assert_eq!(read(&packet, 7, &name(KIND)), [ann]);
    }

    #[test]
    fn an_answer_to_another_question_or_half_of_one_tells_nothing() {
        let packet = answered(7).to_vec().expect("it fits");
        assert_eq!(read(&packet, 8, &name(KIND)), []);
        assert_eq!(read(&packet, 7, &name("_other._tcp.local.")), []);
        let mut half = answered(7);
        half.additionals.remove(0);
        assert_eq!(read(&half.to_vec().expect("it fits"), 7, &name(KIND)), []);
        assert_eq!(read(&super::packet(7, KIND), 7, &name(KIND)), []);
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_ignored(bytes in any::<Vec<u8>>(), place in 0..200usize, byte: u8) {
            read(&bytes, 7, &name(KIND));
            let mut packet = answered(7).to_vec().expect("it fits");
            if let Some(there) = packet.get_mut(place) {
                *there = byte;
            }
            read(&packet, 7, &name(KIND));
            packet.truncate(place);
            read(&packet, 7, &name(KIND));
        }
    }
}
