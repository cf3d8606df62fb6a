//! Hosts as network namespaces: each has an address of its own on a switch that is a namespace too,
//! so that nothing of the machine's own network is touched. What a network is made of goes with it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::wait::{needs, needs_root, unmet};

/// The relay that stands for a long cable.
const RELAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/relay.py");

/// A switch and the hosts at it, removed when it is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    hosts: Vec<String>,
    relays: Vec<Child>,
}

/// A host: processes are started in it, and its packets can be lost.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: String,
}

/// What a long cable does to each packet, either way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cable {
    /// How long a packet takes at least.
    pub delay_ms: u32,
    /// By how much more it may take: packets overtake each other.
    pub jitter_ms: u32,
    /// How many of a hundred packets never arrive.
    pub loss_percent: u32,
    /// How fast it is; without a number no packet waits for another.
    pub bytes_per_second: Option<u32>,
}

/// The packets that a fault is about, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What would arrive.
    In,
    /// What it sends.
    Out,
    /// All.
    Both,
}

impl Network {
    /// A network without hosts; `None` where this machine cannot have one, which the test says.
    ///
    /// # Panics
    /// If it cannot be made, or must not be skipped.
    #[must_use]
    pub fn new(test: &str) -> Option<Self> {
        let has_programs = ["ip", "iptables"].iter().all(|program| needs(test, program));
        if !has_programs || !needs_root(test) {
            return None;
        }
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("widemap-{}-{number}", std::process::id());
        let network = Self { name, hosts: Vec::new(), relays: Vec::new() };
        ip(&["netns", "add", &network.name]);
        ip(&["-n", &network.name, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", &network.name, "link", "set", "switch", "up"]);
        Some(network)
    }

    /// A host on a short cable.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn host(&mut self) -> Host {
        let host = self.namespace();
        let port = self.port();
        let (switch, own) = (&self.name, &host.namespace);
        let cable = ["link", "add", &port, "netns", switch, "type", "veth"];
        ip(&[&cable[..], &["peer", "name", "eth0", "netns", own]].concat());
        self.plug_in(&host);
        host
    }

    /// A host on a long cable; `None` where this machine cannot have one, which the test says.
    ///
    /// # Panics
    /// If it cannot be made, or must not be skipped.
    pub fn far_host(&mut self, test: &str, cable: Cable) -> Option<Host> {
        let has_devices = Path::new("/dev/net/tun").exists() || unmet(test, "/dev/net/tun");
        if !has_devices || !needs(test, "python3") {
            return None;
        }
        let host = self.namespace();
        let port = self.port();
        ip(&["-n", &self.name, "tuntap", "add", "dev", &port, "mode", "tap"]);
        ip(&["-n", &host.namespace, "tuntap", "add", "dev", "eth0", "mode", "tap"]);
        let bytes_per_second = cable.bytes_per_second.unwrap_or(0);
        let numbers = [cable.delay_ms, cable.jitter_ms, cable.loss_percent, bytes_per_second];
        let mut relay = Command::new("python3")
            .args([RELAY, &self.name, &port, &host.namespace, "eth0"])
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        let stdout = relay.stdout.take().expect("it is piped");
        self.relays.push(relay);
        BufReader::new(stdout).read_line(&mut line).expect("it prints a line");
        assert_eq!(line, "ready\n", "the relay");
        self.plug_in(&host);
        Some(host)
    }

    /// A host on a subnet of its own: what is said to all on the other does not reach it, and the
    /// switch passes on what is sent to it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn host_beyond(&mut self) -> Host {
        let neighbours = self.hosts.clone();
        let mut host = self.namespace();
        let (port, own) = (self.port(), host.namespace.clone());
        let cable = ["link", "add", &port, "netns", &self.name, "type", "veth"];
        ip(&[&cable[..], &["peer", "name", "eth0", "netns", &own]].concat());
        host.address = host.address.replace("10.0.0.", "10.0.1.");
        let on_switch = ["-n", &self.name, "address", "add"];
        ip(&[&on_switch[..], &["10.0.1.254/24", "dev", &port]].concat());
        ip(&[&on_switch[..], &["10.0.0.254/24", "dev", "switch"]].concat());
        ip(&["-n", &self.name, "link", "set", &port, "up"]);
        connect_to_wire(&host);
        ip(&["-n", &own, "route", "add", "default", "via", "10.0.1.254"]);
        for neighbour in neighbours {
            ip(&["-n", &neighbour, "route", "add", "10.0.1.0/24", "via", "10.0.0.254"]);
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        ip(&["netns", "exec", &self.name, "sh", "-c", forward]);
        host
    }

    fn namespace(&mut self) -> Host {
        let number = self.hosts.len() + 1;
        let namespace = format!("{}-{number}", self.name);
        self.hosts.push(namespace.clone());
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        Host { namespace, address: format!("10.0.0.{number}") }
    }

    /// The switch's end of the newest host's cable.
    fn port(&self) -> String {
        format!("port{}", self.hosts.len())
    }

    fn plug_in(&self, host: &Host) {
        ip(&["-n", &self.name, "link", "set", &self.port(), "master", "switch", "up"]);
        connect_to_wire(host);
    }
}

/// Gives a host its address, and a way for what is sent to all on its wire.
fn connect_to_wire(host: &Host) {
    host.add_address(&format!("{}/24", host.address));
    ip(&["-n", &host.namespace, "link", "set", "eth0", "up"]);
    ip(&["-n", &host.namespace, "route", "add", "224.0.0.0/4", "dev", "eth0"]);
}

impl Drop for Network {
    fn drop(&mut self) {
        for relay in &mut self.relays {
            // It may have ended already.
            let _ = relay.kill();
            let _ = relay.wait();
        }
        for namespace in self.hosts.iter().chain([&self.name]) {
            // Most have none.
            let _ = std::fs::remove_dir_all(configuration(namespace));
            // A panic here would hide the one that may be under way.
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

impl Host {
    /// Where its worker listens: the port can be a fixed one, since the host is the test's own.
    #[must_use]
    pub fn worker_address(&self) -> String {
        format!("{}:7433", self.address)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Gives it one more address, with the length of its prefix.
    ///
    /// # Panics
    /// If it is gone, or has it already.
    pub fn add_address(&self, address: &str) {
        // An address of IPv6 is otherwise looked for on the wire before it can be used.
        let at_once: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        let add = ["-n", &self.namespace, "address", "add", address, "dev", "eth0"];
        ip(&[&add[..], at_once].concat());
    }

    /// From now on its processes ask this server for names, and no other.
    ///
    /// # Panics
    /// If it cannot be told so.
    pub fn asks_for_names(&self, server: &str) {
        let directory = configuration(&self.namespace);
        std::fs::create_dir_all(&directory).expect("root may");
        let text = format!("nameserver {server}\noptions timeout:1 attempts:1\n");
        std::fs::write(directory.join("resolv.conf"), text).expect("root may");
    }

    /// Does something on this host: sockets and threads that it makes there stay there.
    ///
    /// # Panics
    /// If it is gone, or with what `act` panics with.
    pub fn on<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let acting = || {
            let namespace = File::open(format!("/run/netns/{}", self.namespace)).expect("it lives");
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).expect("root may");
            act()
        };
        std::thread::scope(|scope| match scope.spawn(acting).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// The bytes that have arrived on it so far.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        let mut command = Command::new("cat");
        command.arg("/proc/net/dev");
        let table = succeed(self.inside(&command));
        let row = table.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        let column = row.and_then(|row| row.split_whitespace().next()?.parse().ok());
        column.expect("the kernel counts them")
    }

    /// The same command, run on this host; its process keeps the id that it is started with.
    #[must_use]
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.namespace]).arg(command.get_program());
        inside.args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// From now on packets vanish: nobody is told, as when a cable is pulled.
    pub fn drop_packets(&self, way: Way) {
        self.filter(way, &["-j", "DROP"]);
    }

    /// From now on so many of a hundred packets vanish.
    pub fn lose_packets(&self, way: Way, percent: u32) {
        let probability = (f64::from(percent) / 100.0).to_string();
        let some = ["-m", "statistic", "--mode", "random", "--probability", &probability];
        self.filter(way, &[&some[..], &["-j", "DROP"]].concat());
    }

    /// From now on every connection to it is reset. The packet that opens one passes: a refused
    /// connection would say that nobody lives here.
    pub fn reset_connections(&self) {
        let reset = ["-p", "tcp", "!", "--syn", "-j", "REJECT", "--reject-with", "tcp-reset"];
        self.filter(Way::In, &reset);
    }

    /// From now on nothing is heard or said by mDNS, as where a firewall lets only named ports pass.
    pub fn drop_multicast(&self, way: Way) {
        self.filter(way, &["-p", "udp", "--dport", "5353", "-j", "DROP"]);
    }

    /// From now on large packets vanish, as on a way whose MTU nobody tells.
    pub fn drop_large_packets(&self, way: Way) {
        self.filter(way, &["-m", "length", "--length", "1000:65535", "-j", "DROP"]);
    }

    /// Takes its cable away: its interface is down.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn unplug(&self) {
        ip(&["-n", &self.namespace, "link", "set", "eth0", "down"]);
    }

    /// From now on it neither hears nor says anything of mDNS.
    pub fn silence_mdns(&self) {
        self.filter(Way::Both, &["-p", "udp", "--dport", "5353", "-j", "DROP"]);
        if needs("mDNS over IPv6 is silenced too", "ip6tables") {
            for chain in ["INPUT", "OUTPUT"] {
                let mut command = Command::new("ip6tables");
                command.args(["-w", "-A", chain, "-p", "udp", "--dport", "5353", "-j", "DROP"]);
                succeed(self.inside(&command));
            }
        }
    }

    /// Ends all faults of its network.
    pub fn heal(&self) {
        self.iptables(&["-F"]);
    }

    fn filter(&self, way: Way, rule: &[&str]) {
        for (chain, other) in [("INPUT", Way::Out), ("OUTPUT", Way::In)] {
            if way != other {
                self.iptables(&[&["-A", chain], rule].concat());
            }
        }
    }

    fn iptables(&self, arguments: &[&str]) {
        let mut command = Command::new("iptables");
        // Another test may be at it: wait for its lock.
        command.arg("-w").args(arguments);
        succeed(self.inside(&command));
    }
}

/// What `ip netns exec` puts in place of files in `/etc`.
fn configuration(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn ip(arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    succeed(command);
}

fn succeed(mut command: Command) -> String {
    let done = command.output().expect("it starts");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
