//! Node role.

#![allow(dead_code)]

mod files;
