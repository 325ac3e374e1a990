//! Node role.
