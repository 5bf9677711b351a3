//! The runtime's root services.
