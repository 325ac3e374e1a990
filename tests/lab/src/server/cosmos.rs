//! Cosmos 0.6.3: repositories, the catalog, install, update and uninstall of packages.

mod error;
mod media;
mod mustache;
mod options;
