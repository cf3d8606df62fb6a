//! Announces something or tells what is announced, with the time since the process has started:
//! to see what takes how long on a network.
//!
//!     mdns announce NAME PORT [SECONDS]
//!     mdns browse [SECONDS]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use widemap_cluster::mdns::{Announcer, Browser, MdnsError, Service};
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), MdnsError> {
    let started = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["announce", name, port, rest @ ..] => {
            announce(name, port.parse().unwrap_or(7433), seconds(rest)).await
        }
        ["browse", rest @ ..] => browse(started, seconds(rest)).await,
        _ => {
            eprintln!("usage: mdns announce NAME PORT [SECONDS] | mdns browse [SECONDS]");
            Ok(())
        }
    }
}

fn seconds(rest: &[&str]) -> Duration {
    Duration::from_secs(rest.first().and_then(|text| text.parse().ok()).unwrap_or(3_600))
}

async fn announce(name: &str, port: u16, lasting: Duration) -> Result<(), MdnsError> {
    let announcement = Announcement {
        name: name.to_owned(),
        protocol: (1, 0),
        incarnation: Incarnation(fastrand::u64(..)),
        slots: 1,
        cluster: None,
    };
    let listen = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let announcer = Announcer::start(Service::Worker, &announcement, port, listen, &[])?;
    tokio::time::sleep(lasting).await;
    announcer.goodbye().await;
    Ok(())
}

async fn browse(started: Instant, lasting: Duration) -> Result<(), MdnsError> {
    let mut browser = Browser::start(Service::Worker, &[])?;
    println!("{:>6} ms started", started.elapsed().as_millis());
    let listening = async {
        loop {
            let heard = browser.next().await;
            println!("{:>6} ms {heard:?}", started.elapsed().as_millis());
        }
    };
    // It ends by the clock alone.
    let _ = tokio::time::timeout(lasting, listening).await;
    browser.stop().await;
    Ok(())
}
