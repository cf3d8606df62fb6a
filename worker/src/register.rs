//! `--register DIR`: a file in a directory that coordinators watch (`widemap map --workers-file
//! DIR`), on a network file system say, for as long as the worker takes work.
//!
//! The file has the address to dial on one line. It gets its name once it is whole, so that nobody
//! reads half of it.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use widemap_cluster::interfaces::{self, Interface, PassedOver};

/// The digits that set a life of a worker apart from its others.
const LIFE_DIGITS: usize = 16;

/// What everybody may do with the file: a coordinator need not be of the worker's user.
const FILE_MODE: u32 = 0o644;

/// What is kept of a worker's and a host's name in the file's: a file's name has 255 bytes at the most.
const NAME_BYTES_MAX: usize = 64;

/// The file of a registered worker, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    file: Option<PathBuf>,
}

/// Why a worker could not be registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error(
        "--register {}: cannot write there: {error} \
         (name a directory that exists, and that this user may write in)", .directory.display()
    )]
    Directory { directory: PathBuf, error: io::Error },
    #[error(
        "--register: cannot find out where this host can be reached: {0} (say --listen ADDRESS:PORT)"
    )]
    Host(#[source] io::Error),
    #[error(
        "--register: listening on {0}, and found no address of this host that others could reach: \
         say which with --listen ADDRESS:PORT"
    )]
    NoAddress(SocketAddr),
}

/// What this host knows of itself.
#[derive(Debug)]
struct Here {
    /// Its name, which sets files apart. It is not dialled: that it leads here from here does not
    /// mean that it leads anywhere from another host.
    name: String,
    /// Its interfaces.
    interfaces: Vec<Interface>,
}

impl Registration {
    /// Registers the worker `name` that listens on `listener`, in `directory`.
    ///
    /// # Errors
    /// [`RegisterError`] if nobody could find it by that.
    pub(crate) fn write(
        directory: &Path,
        name: &str,
        bound: SocketAddr,
        listener: impl AsFd,
    ) -> Result<Self, RegisterError> {
        let here = Here::look_around(bound).map_err(RegisterError::Host)?;
        let only_v6 = bound.is_ipv6() && rustix::net::sockopt::ipv6_v6only(listener) == Ok(true);
        let address = here.address_of(bound, only_v6).ok_or(RegisterError::NoAddress(bound))?;
        let life = format!("{:016x}", fastrand::u64(..));
        let entry = Entry { worker: name, host: &here.name, bound, address: &address };
        entry.replace_former(directory);
        let file = entry
            .write(directory, &life)
            .map_err(|error| RegisterError::Directory { directory: directory.to_owned(), error })?;
        Ok(Self { file: Some(file) })
    }

    /// Takes the worker off the list. Once more changes nothing.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        match self.file.take().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // At the end there is nobody to tell: coordinators will find that nobody listens there.
        let _ = self.remove();
    }
}

/// What is written of a worker.
#[derive(Debug)]
struct Entry<'a> {
    worker: &'a str,
    host: &'a str,
    bound: SocketAddr,
    address: &'a str,
}

impl Entry<'_> {
    /// What the names of its files begin with, in each of its lives.
    fn stem(&self) -> String {
        format!("{}@{}-{}-", file_name(self.worker), file_name(self.host), self.bound.port())
    }

    /// The line that sets it apart from workers of the same name that listen beside it.
    fn comment(&self) -> String {
        format!("# {}, listening on {}", self.stem().trim_end_matches('-'), self.bound)
    }

    fn write(&self, directory: &Path, life: &str) -> io::Result<PathBuf> {
        let path = directory.join(self.stem() + life);
        let mut file = tempfile::Builder::new().prefix(".widemap-").tempfile_in(directory)?;
        writeln!(file, "{}\n{}", self.comment(), self.address)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(FILE_MODE))?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }

    /// Removes what a former life left that was killed: nobody else can listen where we do.
    fn replace_former(&self, directory: &Path) {
        let (stem, comment) = (self.stem(), self.comment());
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let life = name.to_str().and_then(|name| name.strip_prefix(&stem));
            if !life.is_some_and(is_life) {
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if text.lines().next() == Some(&comment) {
                // What stays does no harm: it has the same address.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn is_life(text: &str) -> bool {
    text.len() == LIFE_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `text` as a part of a file's name that is neither hidden nor a path.
fn file_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let chars = text.chars().take(NAME_BYTES_MAX);
    let name: String = chars.map(|c| if plain(c) { c } else { '_' }).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

impl Here {
    fn look_around(bound: SocketAddr) -> io::Result<Self> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if !bound.ip().is_unspecified() {
            // It is known where to reach us: nobody need be asked.
            return Ok(Self { name, interfaces: Vec::new() });
        }
        Ok(Self { name, interfaces: interfaces::local()? })
    }

    /// Where others reach what listens on `bound`.
    fn address_of(&self, bound: SocketAddr, only_v6: bool) -> Option<String> {
        if !bound.ip().is_unspecified() {
            return with_port(bound.ip(), bound.port());
        }
        let listened =
            |ip: IpAddr| if bound.is_ipv4() { ip.is_ipv4() } else { !only_v6 || ip.is_ipv6() };
        // In the order of the interfaces, those of a VPN last: where there is nothing else, the
        // others are in it too.
        let best = self
            .interfaces
            .iter()
            .filter(|interface| listened(interface.address) && may_be_reached(interface))
            .min_by_key(|interface| (interface.point_to_point, interface.address.is_ipv6()))?;
        with_port(best.address, bound.port())
    }
}

/// Whether an interface can lead here from another host.
fn may_be_reached(interface: &Interface) -> bool {
    match interface.passed_over(&[]) {
        None => true,
        // It carries no announcement, but connections.
        Some(PassedOver::PointToPoint) => interfaces::is_dialable(interface.address),
        Some(_) => false,
    }
}

/// An address as it is dialled; nothing for one that needs an interface with it.
fn with_port(ip: IpAddr, port: u16) -> Option<String> {
    match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
        ip => Some(SocketAddr::new(ip, port).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            index: 0,
            address: address.parse().unwrap(),
            prefix_bits: 24,
            up: true,
            point_to_point: name.starts_with("wg"),
        }
    }

    #[test]
    fn the_address_is_the_one_that_others_can_dial() {
        let lo = ("lo", "127.0.0.1");
        let eth = ("eth0", "10.0.0.7");
        let second = ("eth1", "10.0.1.7");
        let six = ("eth0", "2001:db8::7");
        let bridge = ("docker0", "172.17.0.1");
        let named_bridge = ("br-lan", "192.168.1.1");
        let link = ("eth0", "fe80::7");
        let vpn = ("wg0", "10.9.0.7");
        // What is listened on, this host's interfaces, what is dialled.
        for (bound, interfaces, want) in [
            ("10.0.0.9:7", vec![], Some("10.0.0.9:7")),
            ("127.0.0.1:7", vec![], Some("127.0.0.1:7")),
            ("[::1]:7", vec![], Some("[::1]:7")),
            ("[fe80::7]:7", vec![], None),
            ("0.0.0.0:7", vec![lo, bridge, eth, second], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec![lo, second, eth], Some("10.0.1.7:7")),
            ("0.0.0.0:7", vec![lo, bridge, named_bridge], Some("192.168.1.1:7")),
            ("0.0.0.0:7", vec![lo, vpn, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec![lo, vpn], Some("10.9.0.7:7")),
            ("0.0.0.0:7", vec![lo, link, six, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec![lo, bridge, link, six], None),
            ("[::]:7", vec![lo, link, six, eth], Some("10.0.0.7:7")),
            ("[::]:7", vec![lo, link, six], Some("[2001:db8::7]:7")),
        ] {
            let interfaces = interfaces.iter().map(|(name, ip)| interface(name, ip)).collect();
            let here = Here { name: "localhost".to_owned(), interfaces };
            let bound: SocketAddr = bound.parse().unwrap();
            assert_eq!(here.address_of(bound, false).as_deref(), want, "{bound} {here:?}");
        }
        let both = [eth, six].map(|(name, ip)| interface(name, ip)).to_vec();
        let both = Here { name: "localhost".to_owned(), interfaces: both };
        let bound = "[::]:7".parse().unwrap();
        assert_eq!(both.address_of(bound, true).as_deref(), Some("[2001:db8::7]:7"));
    }

    fn register(directory: &Path, name: &str, bound: &str) -> Registration {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Registration::write(directory, name, bound.parse().unwrap(), socket).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_worker_is_listed_from_its_registration_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut worker = register(directory.path(), "../ann lee", "127.0.0.1:7433");
        let files = names(directory.path());
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(files[0].starts_with("_.._ann_lee@") && files[0].contains("-7433-"), "{files:?}");
        let path = directory.path().join(&files[0]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["127.0.0.1:7433"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
        worker.remove().unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
        assert!(worker.remove().is_ok());
        // A name of any length.
        drop(register(directory.path(), &"x".repeat(1_000), "127.0.0.1:7433"));
        drop(register(directory.path(), "ann", "127.0.0.1:7433"));
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_worker_left_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let killed = register(path, "ann", "127.0.0.1:7433");
        let left = killed.file.clone().unwrap();
        std::mem::forget(killed);
        // Another port, another address with the same port, another name, a file of a person.
        let _others =
            [("ann", "127.0.0.1:7434"), ("ann", "127.0.0.2:7433"), ("bob", "127.0.0.1:7433")]
                .map(|(name, bound)| register(path, name, bound));
        std::fs::write(path.join("hosts"), "carl\n").unwrap();
        let before = names(path);
        assert_eq!(before.len(), 5);
        let _again = register(path, "ann", "127.0.0.1:7433");
        assert!(!left.exists());
        assert_eq!(names(path).len(), 5);
        let kept = before.iter().filter(|name| names(path).contains(name)).count();
        assert_eq!(kept, 4);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        let none = directory.path().join("none");
        let error = Registration::write(&none, "ann", bound, socket).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("--register {}: cannot write", none.display())),
            "{error}"
        );
    }
}
