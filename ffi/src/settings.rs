//! What `ipc_config_t` asks for, checked.

#![allow(unsafe_code)] // reads the struct that C passes

use std::{mem::offset_of, path::PathBuf, ptr, time::Duration};

use ipc_core::{Geometry, Spin, Status};

use crate::{
    boundary::{self, UserData},
    error::Failure,
    types::{
        Config, IPC_BULK_VIEWS, IPC_EMBEDDED, IPC_ENCRYPT_ALWAYS, IPC_NO_SHARED_MEMORY, IPC_NO_SPIN,
    },
};

/// Bytes of the first version of the struct, without its reserve.
const SMALLEST: usize = offset_of!(Config, reserved);
/// A later version may be this large; more is no size, but garbage.
const LARGEST: usize = 4096;

/// A configuration as it takes effect: two that ask for the same in different words are equal.
#[allow(clippy::struct_excessive_bools, reason = "flags of C, each by itself")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) runtime_dir: PathBuf,
    pub(crate) embedded: bool,
    pub(crate) bulk_views: bool,
    pub(crate) encrypt: bool,
    pub(crate) share_memory: bool,
    pub(crate) geometry: Geometry,
    pub(crate) spin: Spin,
    pub(crate) max_payload: u64,
    pub(crate) user_data: UserData,
}

impl Default for Settings {
    fn default() -> Settings {
        let core = ipc_core::Config::default();
        Settings {
            runtime_dir: ipc_core::runtime_dir(),
            embedded: false,
            bulk_views: false,
            encrypt: false,
            share_memory: true,
            geometry: core.geometry,
            spin: core.spin,
            max_payload: core.max_payload,
            user_data: UserData(ptr::null_mut()),
        }
    }
}

impl Settings {
    /// Reads and checks what C passes; NULL asks for the defaults.
    ///
    /// # Safety
    /// `config` is NULL or points to as many readable bytes as its first member says.
    pub(crate) unsafe fn read(config: *const Config) -> Result<Settings, Failure> {
        if config.is_null() {
            return Ok(Settings::default());
        }
        // SAFETY: the first member is always there.
        let size = unsafe { (&raw const (*config).size).read_unaligned() } as usize;
        if !(SMALLEST..=LARGEST).contains(&size) {
            return Err(Status::INVALID.into());
        }
        // SAFETY: so many bytes are readable, says the caller.
        let given = unsafe { std::slice::from_raw_parts(config.cast::<u8>(), size) };
        let known = size.min(size_of::<Config>());
        // A later version's members that are not used are zero.
        if given[known..].iter().any(|&byte| byte != 0) {
            return Err(Status::INVALID.into());
        }
        // SAFETY: numbers, pointers and arrays of numbers: all of them may be zero.
        let mut ours: Config = unsafe { std::mem::zeroed() };
        // SAFETY: `known` bytes are within both, and `ours` is not `*config`.
        unsafe { ptr::copy_nonoverlapping(given.as_ptr(), (&raw mut ours).cast::<u8>(), known) };
        // SAFETY: `runtime_dir` is NULL or a string, by clause 2 of the boundary.
        unsafe { Settings::check(&ours) }
    }

    /// # Safety
    /// `runtime_dir` is NULL or a string that C lends.
    unsafe fn check(config: &Config) -> Result<Settings, Failure> {
        let known =
            IPC_EMBEDDED | IPC_NO_SPIN | IPC_BULK_VIEWS | IPC_ENCRYPT_ALWAYS | IPC_NO_SHARED_MEMORY;
        if config.flags & !known != 0 || config.reserved != [0; 4] {
            return Err(Status::INVALID.into());
        }
        let mut settings = Settings {
            embedded: config.flags & IPC_EMBEDDED != 0,
            bulk_views: config.flags & IPC_BULK_VIEWS != 0,
            encrypt: config.flags & IPC_ENCRYPT_ALWAYS != 0,
            share_memory: config.flags & IPC_NO_SHARED_MEMORY == 0,
            user_data: UserData(config.user_data),
            ..Settings::default()
        };
        if !config.runtime_dir.is_null() {
            // SAFETY: not NULL, hence a string.
            unsafe { boundary::path(config.runtime_dir) }.clone_into(&mut settings.runtime_dir);
            if settings.runtime_dir.as_os_str().is_empty() {
                return Err(Status::INVALID.into());
            }
        }
        if config.ring_cells != 0 {
            settings.geometry =
                Geometry::for_cells(config.ring_cells).map_err(|_| Status::INVALID)?;
        }
        settings.spin = match (config.flags & IPC_NO_SPIN != 0, config.spin_us) {
            (true, 0) => Spin::Never,
            (true, _) => return Err(Status::INVALID.into()),
            (false, 0) => settings.spin,
            (false, micros) => Spin::UpTo(Duration::from_micros(micros.into())),
        };
        if config.max_payload != 0 {
            settings.max_payload = config.max_payload;
        }
        Ok(settings)
    }

    /// The core's form of it.
    pub(crate) fn to_core(&self) -> ipc_core::Config {
        ipc_core::Config {
            runtime_dir: Some(self.runtime_dir.clone()),
            geometry: self.geometry,
            spin: self.spin,
            max_payload: self.max_payload,
            encrypt: self.encrypt,
            share_memory: self.share_memory,
            ..ipc_core::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> Config {
        // SAFETY: as in `read`.
        let mut config: Config = unsafe { std::mem::zeroed() };
        config.size = size_of::<Config>() as u32;
        config
    }

    fn read(config: &Config) -> Result<Settings, Status> {
        // SAFETY: every size tested is refused, or at most that of the struct.
        unsafe { Settings::read(config) }.map_err(|failure| failure.status)
    }

    #[test]
    fn zero_means_the_default_and_null_too() {
        // SAFETY: NULL is allowed.
        let defaults = unsafe { Settings::read(ptr::null()) }.expect("defaults");
        assert_eq!(read(&blank()), Ok(defaults));
    }

    #[repr(C)]
    struct Later(Config, [u64; 2]);

    #[test]
    fn the_size_tells_versions_apart() {
        for size in [0, 4, SMALLEST as u32 - 1, LARGEST as u32 + 1, u32::MAX] {
            assert_eq!(read(&Config { size, ..blank() }), Err(Status::INVALID), "{size}");
        }
        assert!(read(&Config { size: SMALLEST as u32, ..blank() }).is_ok());

        let size = size_of::<Later>() as u32;
        for (tail, expected) in [(0, true), (1, false)] {
            let later = Later(Config { size, ..blank() }, [0, tail]);
            // SAFETY: all of `Later` is readable.
            let settings = unsafe { Settings::read((&raw const later).cast()) };
            assert_eq!(settings.is_ok(), expected);
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let refused = [
            Config { flags: 32, ..blank() },
            Config { reserved: [0, 0, 0, 1], ..blank() },
            Config { ring_cells: 65_537, ..blank() },
            Config { flags: IPC_NO_SPIN, spin_us: 1, ..blank() },
            Config { runtime_dir: c"".as_ptr(), ..blank() },
        ];
        for config in refused {
            assert_eq!(read(&config), Err(Status::INVALID), "{config:?}");
        }
        let apart = Config { flags: IPC_NO_SHARED_MEMORY, ..blank() };
        assert!(read(&apart).is_ok_and(|it| !it.share_memory && !it.to_core().share_memory));
        let encrypted = Config { flags: IPC_ENCRYPT_ALWAYS, ..blank() };
        assert!(read(&encrypted).is_ok_and(|it| it.encrypt && it.to_core().encrypt));
    }

    #[test]
    fn every_member_takes_effect() {
        let config = Config {
            flags: IPC_EMBEDDED,
            runtime_dir: c"/tmp/there".as_ptr(),
            ring_cells: 100,
            spin_us: 7,
            max_payload: 4096,
            ..blank()
        };
        let settings = read(&config).expect("valid");
        assert!(settings.embedded);
        assert_eq!(settings.runtime_dir, PathBuf::from("/tmp/there"));
        assert_eq!(settings.geometry.ordinary_cells(), 128);
        assert_eq!(settings.spin, Spin::UpTo(Duration::from_micros(7)));
        assert_eq!(settings.max_payload, 4096);
        let no_spin = Config { flags: IPC_NO_SPIN, ..blank() };
        assert_eq!(read(&no_spin).map(|settings| settings.spin), Ok(Spin::Never));
    }
}
