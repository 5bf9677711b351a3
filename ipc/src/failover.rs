//! Names that several instances serve, one at a time: who may take a name, and what becomes of
//! what was sent to the one before.

pub(crate) mod course;
pub(crate) mod detector;
pub(crate) mod kept;
pub(crate) mod post;
pub(crate) mod replay;
pub(crate) mod rule;
pub(crate) mod standing;
