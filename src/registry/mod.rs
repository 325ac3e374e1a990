//! Registry role.
