//! Another user for everything that jobs do: looked up while the worker still can, and taken on by
//! the spawner for good before it serves.

use std::ffi::OsStr;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, User};

/// The user that the processes of jobs run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    name: String,
    home: PathBuf,
    uid: Uid,
    gid: Gid,
    /// All groups, its first one too.
    groups: Vec<Gid>,
}

/// Why jobs cannot run as a user.
#[derive(Debug, thiserror::Error)]
pub enum RunAsError {
    /// There is none of that name.
    #[error(
        "--run-as {0}: there is no such user on this host (`getent passwd` lists them, `useradd --system {0}` makes one)"
    )]
    Unknown(String),
    /// It is root, by whatever name.
    #[error(
        "--run-as {0}: that user is root itself, whom jobs are kept apart from: name another one \
         (`useradd --system widemap` makes one), or start the worker without --run-as"
    )]
    Root(String),
    /// Users or groups cannot be looked up.
    #[error("--run-as {name}: cannot look up {what}: {errno}")]
    LookUp {
        /// The user.
        name: String,
        /// What was looked up.
        what: &'static str,
        /// The system's answer.
        errno: Errno,
    },
    /// Only root can become another user.
    #[error(
        "--run-as {name}: only root can run jobs as another user, and this is {me}: start the worker as root, \
         or as {name} and without --run-as"
    )]
    NotRoot {
        /// The user that was asked for.
        name: String,
        /// The one that the worker runs as.
        me: String,
    },
    /// The system refused, root or not.
    #[error("--run-as {name}: cannot become that user: {step}: {errno}")]
    Refused {
        /// The user.
        name: String,
        /// What was refused.
        step: Step,
        /// The system's answer.
        errno: Errno,
    },
    /// Its private directories could not be made.
    #[error(
        "--run-as {name}: that user may not make directories in {}: {errno} \
         (start the worker with TMPDIR=DIR, a directory that it may)", .directory.display()
    )]
    Temporary {
        /// The user.
        name: String,
        /// Where private directories are made.
        directory: PathBuf,
        /// The system's answer.
        errno: Errno,
    },
    /// There is no such thing here.
    #[error(
        "--run-as {0}: this system has no way to do so that widemap knows: start the worker as that user"
    )]
    NoSuchThing(String),
}

/// A step on the way from root to another user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Taking on its groups.
    Groups,
    /// Taking on its first group.
    Group,
    /// Taking on the user.
    User,
    /// Checking that what was given up cannot be had again.
    Check,
    /// Looking at the directory for private directories.
    Temporary,
}

impl Step {
    const ALL: [Self; 5] = [Self::Groups, Self::Group, Self::User, Self::Check, Self::Temporary];

    pub(super) fn number(self) -> u8 {
        self as u8
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.number() == number)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Groups => "its groups",
            Self::Group => "its first group",
            Self::User => "the user",
            Self::Check => "what was given up can be had again",
            Self::Temporary => "its directories",
        })
    }
}

impl RunAs {
    /// Looks a user up, by name or by number.
    ///
    /// # Errors
    /// [`RunAsError`] if there is none, or it is root: nothing would be given up.
    pub fn find(name: &str) -> Result<Self, RunAsError> {
        let look_up = |what| move |errno| RunAsError::LookUp { name: name.to_owned(), what, errno };
        let mut user = User::from_name(name).map_err(look_up("the user"))?;
        if let (None, Ok(number)) = (&user, name.parse()) {
            user = User::from_uid(Uid::from_raw(number)).map_err(look_up("the user"))?;
        }
        let user = user.ok_or_else(|| RunAsError::Unknown(name.to_owned()))?;
        if user.uid.is_root() {
            return Err(RunAsError::Root(name.to_owned()));
        }
        let groups = groups_of(&user).map_err(look_up("its groups"))?;
        Ok(Self { name: user.name, home: user.dir, uid: user.uid, gid: user.gid, groups })
    }

    /// The user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variables by which programs know who they run as.
    pub(crate) fn variables(&self) -> [(&'static str, &OsStr); 3] {
        let name = OsStr::new(&self.name);
        [("HOME", self.home.as_os_str()), ("USER", name), ("LOGNAME", name)]
    }

    /// Whether this process is of that user already.
    pub(super) fn is_me(&self) -> bool {
        self.uid == nix::unistd::geteuid()
    }

    /// Checks that this process may become the user.
    pub(super) fn check(&self) -> Result<(), RunAsError> {
        let me = nix::unistd::geteuid();
        if self.is_me() || me.is_root() {
            return Ok(());
        }
        let known = User::from_uid(me).ok().flatten();
        let me = known.map_or_else(|| format!("user {me}"), |user| user.name);
        Err(RunAsError::NotRoot { name: self.name.clone(), me })
    }

    /// Makes this process one of the user's, for good. It must have no other thread.
    #[cfg(not(target_vendor = "apple"))]
    pub(super) fn take_on(&self) -> Result<(), (Step, Errno)> {
        use nix::unistd::{getgroups, setgid, setgroups, setuid};

        if self.is_me() {
            return Ok(());
        }
        // In this order: none of them is allowed to one that is not root any more.
        setgroups(&self.groups).map_err(|errno| (Step::Groups, errno))?;
        setgid(self.gid).map_err(|errno| (Step::Group, errno))?;
        setuid(self.uid).map_err(|errno| (Step::User, errno))?;
        let kept = |groups: Vec<Gid>| groups.iter().any(|group| !self.groups.contains(group));
        let regained = setuid(Uid::from_raw(0)).is_ok()
            || setgroups(&[Gid::from_raw(0)]).is_ok()
            || rustix::process::getuid().as_raw() != self.uid.as_raw()
            || rustix::process::geteuid().as_raw() != self.uid.as_raw()
            || rustix::process::getgid().as_raw() != self.gid.as_raw()
            || rustix::process::getegid().as_raw() != self.gid.as_raw()
            || getgroups().map_or(true, kept);
        if regained { Err((Step::Check, Errno::EPERM)) } else { Ok(()) }
    }

    /// Makes this process one of the user's, which nobody has tried here.
    #[cfg(target_vendor = "apple")]
    pub(super) fn take_on(&self) -> Result<(), (Step, Errno)> {
        if self.is_me() { Ok(()) } else { Err((Step::Groups, Errno::ENOSYS)) }
    }

    /// The error that the spawner has told of.
    pub(super) fn error(&self, step: Step, errno: Errno) -> RunAsError {
        let name = self.name.clone();
        match step {
            Step::Temporary => {
                RunAsError::Temporary { name, directory: std::env::temp_dir(), errno }
            }
            _ if errno == Errno::ENOSYS => RunAsError::NoSuchThing(name),
            step => RunAsError::Refused { name, step, errno },
        }
    }
}

#[cfg(not(target_vendor = "apple"))]
fn groups_of(user: &User) -> Result<Vec<Gid>, Errno> {
    let name = std::ffi::CString::new(user.name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    nix::unistd::getgrouplist(&name, user.gid)
}

#[cfg(target_vendor = "apple")]
fn groups_of(user: &User) -> Result<Vec<Gid>, Errno> {
    Ok(vec![user.gid])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number_or_not_at_all() {
        let nobody = RunAs::find("nobody").unwrap();
        assert_eq!(nobody.name(), "nobody");
        assert!(nobody.groups.contains(&nobody.gid));
        assert_eq!(RunAs::find(&nobody.uid.to_string()).unwrap(), nobody);
        let error = RunAs::find("no-such-user").unwrap_err();
        assert!(matches!(error, RunAsError::Unknown(_)));
        assert!(error.to_string().starts_with("--run-as no-such-user: there is no such user"));
    }

    #[test]
    fn root_is_refused_by_name_and_by_number() {
        for name in ["root", "0"] {
            let error = RunAs::find(name).unwrap_err();
            assert!(matches!(&error, RunAsError::Root(told) if told == name), "{error:?}");
        }
    }

    #[test]
    fn each_step_survives_the_way() {
        for step in Step::ALL {
            assert_eq!(Step::from_number(step.number()), Some(step));
        }
        assert_eq!(Step::from_number(99), None);
    }
}
