//! The figures as drawings.

use std::io;
use std::path::Path;

use crate::figures::Report;

/// Draws everything into a directory.
///
/// # Errors
/// Those of creating the directory and its files.
pub fn all(_: &Report, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)
}
