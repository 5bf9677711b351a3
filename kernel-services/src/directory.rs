//! The runtime directory: whose it is, who serves it, and what stands in it.
//!
//! ```text
//!   ipcd.lock   the lock of the runtime that serves here, and its pid; it stays
//!   ipcd.sock   where nodes connect; gone after an orderly end
//!   ipcd.N.sock where services of user N come back, if they run as others than we
//!   epochs      the first epoch that is not reserved yet; likewise
//!   failover    how names are configured; see `plans`
//!   served      at which epoch each name was served last; see `served`
//!   ids         the first id that is not reserved yet; it must outlive the services
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ipc::Status;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
};

use crate::{
    epochs::{EpochSource, Epochs},
    error::KernelError,
    failpoint::{self, At},
    ids::{BLOCK, IdSource, Ids},
};

/// Longest socket path, in bytes: `sun_path` without its final zero.
const SOCKET_PATH: usize = 107;

/// A runtime directory that this process serves, alone.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    // The fields are dropped in this order: first the lock, then the claim within the process.
    _lock: File,
    _claim: Claim,
}

impl Directory {
    /// Makes the directory where it is missing, checks that it is ours alone, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Directory, KernelError> {
        // The process may change its own directory before the socket is removed.
        let path = &std::path::absolute(path)
            .map_err(|source| KernelError::Open { path: path.to_owned(), source })?;
        let length = path.join("ipcd.sock").as_os_str().as_bytes().len();
        if length > SOCKET_PATH {
            let path = path.join("ipcd.sock");
            return Err(KernelError::PathTooLong { path, length, limit: SOCKET_PATH });
        }
        if !path.exists() {
            create(path)?;
        }
        let found = check(path)?;
        // Before the file is opened at all: closing it again would give up the lock that another
        // kernel of this process holds on it.
        let claim = Claim::take(path, (found.dev(), found.ino()))?;
        let lock = lock(path)?;
        Ok(Directory { path: path.to_owned(), _lock: lock, _claim: claim })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the counter of ids above everything that was reserved here, and reserves a block.
    pub(crate) fn ids(&self) -> Result<Ids, KernelError> {
        let path = self.path.join("ids");
        let first: u32 = match fs::read_to_string(&path) {
            Ok(text) => {
                text.trim_end().parse().map_err(|_| KernelError::Ids { path: path.clone() })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KernelError::Ids { path });
            }
            Err(error) => return Err(KernelError::write(path, error)),
        };
        let end = first.checked_add(BLOCK).ok_or(KernelError::Ids { path: path.clone() })?;
        let file = IdFile { directory: self.path.clone() };
        file.write(end).map_err(|error| KernelError::write(path, error))?;
        Ok(Ids::new(first..end, Box::new(file)))
    }

    /// Opens the counter of epochs above everything that was reserved here.
    pub(crate) fn epochs(&self) -> Result<Epochs, KernelError> {
        let path = self.path.join("epochs");
        let first = match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().parse().map_err(|_| KernelError::Ids { path })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KernelError::Ids { path });
            }
            Err(error) => return Err(KernelError::write(path, error)),
        };
        let mut epochs = Epochs::new(first, Box::new(EpochFile { directory: self.path.clone() }));
        // Now, while there is a place to write to.
        epochs.reserve().map_err(|_| KernelError::Ids { path: self.path.join("epochs") })?;
        Ok(epochs)
    }

    /// Removes the socket that a killed runtime left, and listens on a new one.
    pub(crate) fn listen(&self) -> Result<(Door, UnixListener), KernelError> {
        listen_at(self.path.join("ipcd.sock"), None)
    }

    /// Listens on a socket to which one other user may connect: processes of that user which were
    /// started with a connection have no other way back when the runtime died. Others may pass
    /// through the directory from then on, to what each of its files lets them do: nothing.
    #[cfg(feature = "node")]
    pub(crate) fn listen_for(&self, uid: u32) -> Result<(Door, UnixListener), KernelError> {
        let path = self.path.join(format!("ipcd.{uid}.sock"));
        let open = listen_at(path, Some(uid))?;
        let passable = |found: fs::Metadata| {
            let mode = Permissions::from_mode(found.mode() & 0o7777 | 0o011);
            fs::set_permissions(&self.path, mode)
        };
        fs::metadata(&self.path)
            .and_then(passable)
            .map_err(|error| KernelError::write(self.path.clone(), error))?;
        Ok(open)
    }
}

fn listen_at(path: PathBuf, owner: Option<u32>) -> Result<(Door, UnixListener), KernelError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(KernelError::write(path, error));
        }
        Ok(()) | Err(_) => {}
    }
    let failed = |errno: Errno| KernelError::system("cannot make the runtime's socket", errno);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
    // Linux gives the file the mode of the socket, so at no time is it open to others.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
    let address = UnixAddr::new(&path).map_err(failed)?;
    bind(socket.as_raw_fd(), &address).map_err(|errno| KernelError::write(path.clone(), errno))?;
    let door = Door::of(path)?;
    // A umask could have taken the owner's own rights.
    fs::set_permissions(&door.path, Permissions::from_mode(0o600))
        .and_then(|()| chown(&door.path, owner, None))
        .map_err(|error| KernelError::write(door.path.clone(), error))?;
    listen(&socket, Backlog::MAXCONN).map_err(failed)?;
    Ok((door, socket.into()))
}

/// The socket's file, removed with this.
#[derive(Debug)]
pub(crate) struct Door {
    path: PathBuf,
    file: (u64, u64),
    pid: u32,
}

impl Door {
    fn of(path: PathBuf) -> Result<Door, KernelError> {
        let file = identity(&path).map_err(|error| KernelError::write(path.clone(), error))?;
        Ok(Door { path, file, pid: std::process::id() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Door {
    /// Leaves alone what is not ours: a forked child's copy, and another runtime's socket where
    /// the directory was removed and made anew.
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|file| file == self.file);
        if ours && std::process::id() == self.pid {
            // It may be gone meanwhile, which is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Directories served by this process: a POSIX lock excludes other processes only.
static SERVED: Mutex<Vec<Served>> = Mutex::new(Vec::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Served {
    directory: (u64, u64),
    /// A forked child inherits the list, but serves nothing.
    pid: u32,
}

#[derive(Debug)]
struct Claim(Served);

impl Claim {
    fn take(path: &Path, directory: (u64, u64)) -> Result<Claim, KernelError> {
        let served = Served { directory, pid: std::process::id() };
        let mut all = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
        if all.contains(&served) {
            return Err(KernelError::Running { path: path.to_owned(), pid: served.pid });
        }
        all.push(served);
        Ok(Claim(served))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|served| *served != self.0);
    }
}

fn create(path: &Path) -> Result<(), KernelError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| KernelError::Create { path: path.to_owned(), source })
}

fn check(path: &Path) -> Result<fs::Metadata, KernelError> {
    let open = |source| KernelError::Open { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(open)?;
    if !found.is_dir() {
        return Err(open(Errno::ENOTDIR.into()));
    }
    let us = nix::unistd::geteuid().as_raw();
    if found.uid() != us {
        return Err(KernelError::Owner { path: path.to_owned(), owner: found.uid(), us });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(KernelError::Shared { path: path.to_owned(), mode });
    }
    Ok(found)
}

/// Tells whether a file is ours, and nobody else can read or write it, under this name or another.
pub(crate) fn is_private(found: &fs::Metadata) -> bool {
    let others = found.mode() & (libc::S_IRWXG | libc::S_IRWXO);
    let ours = found.uid() == nix::unistd::geteuid().as_raw();
    found.is_file() && ours && others == 0 && found.nlink() == 1
}

/// Takes the lock and writes our pid beside it. Not `flock`: a forked child would keep that.
fn lock(directory: &Path) -> Result<File, KernelError> {
    let path = directory.join("ipcd.lock");
    let write = |source: io::Error| KernelError::write(path.clone(), source);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(write)?;
    match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let pid = holder(&mut file);
            return Err(KernelError::Running { path: directory.to_owned(), pid });
        }
        Err(errno) => return Err(KernelError::system("cannot lock ipcd.lock", errno)),
    }
    file.set_len(0).map_err(write)?;
    writeln!(file, "{}", std::process::id()).map_err(write)?;
    Ok(file)
}

/// Asks the kernel who holds the lock, or else the file: a holder in another pid namespace has no
/// number here but the one it wrote.
fn holder(file: &mut File) -> u32 {
    let mut held = whole_file();
    let asked = fcntl(&*file, FcntlArg::F_GETLK(&mut held)).map(|_| held.l_pid);
    let pid = asked.ok().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0);
    pid.or_else(|| {
        let mut text = String::new();
        file.take(16).read_to_string(&mut text).ok()?;
        text.trim_end().parse().ok()
    })
    .unwrap_or(0)
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The file `ids`.
#[derive(Debug)]
struct IdFile {
    directory: PathBuf,
}

impl IdFile {
    fn write(&self, end: u32) -> io::Result<()> {
        keep_number(&self.directory, "ids", u64::from(end), || failpoint::reach(At::IdsWritten))?;
        failpoint::reach(At::IdsReserved);
        Ok(())
    }
}

/// Makes a number durable in a file of its own; `written` runs before it takes the place of the one
/// before.
fn keep_number(
    directory: &Path,
    name: &str,
    number: u64,
    written: impl FnOnce(),
) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)?;
    writeln!(file, "{number}")?;
    file.sync_all()?;
    written();
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// The file `epochs`.
#[derive(Debug)]
struct EpochFile {
    directory: PathBuf,
}

impl EpochSource for EpochFile {
    fn reserve(&mut self, end: u64) -> Result<(), Status> {
        keep_number(&self.directory, "epochs", end, || {}).map_err(|_| Status::IO)
    }
}

impl IdSource for IdFile {
    fn reserve(&mut self, end: u32) -> Result<(), Status> {
        self.write(end).map_err(|_| Status::IO)
    }
}
