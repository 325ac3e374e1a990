//! Machines for tests of the servers alone: nothing happens on them by itself.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Host, Network, Role};
use crate::task::{Secrets, TaskStatus};

/// Machines that only note what they are to launch.
#[derive(Default)]
pub(crate) struct Pretence {
    pub(crate) dir: PathBuf,
    pub(crate) launched: Mutex<Vec<(PathBuf, Secrets)>>,
}

impl Host for Pretence {
    fn add_agent(&self, _: Role, _: Option<u32>) -> Result<Ipv4Addr, String> {
        Err("no machines here".to_owned())
    }
    fn stop_agent(&self, _: Ipv4Addr) -> Result<(), String> {
        Ok(())
    }
    fn kill_agent(&self, _: Ipv4Addr) -> Result<(), String> {
        Ok(())
    }
    fn revive_agent(&self, _: Ipv4Addr, _: bool) -> Result<(), String> {
        Ok(())
    }
    fn sandbox_root(&self, agent: Ipv4Addr) -> PathBuf {
        self.dir.join(agent.to_string())
    }
    fn launch(&self, _: Ipv4Addr, sandbox: &Path, secrets: &Secrets) -> Result<(), String> {
        self.launched.lock().unwrap().push((sandbox.to_owned(), secrets.clone()));
        Ok(())
    }
    fn executor_alive(&self, _: &TaskStatus) -> bool {
        true
    }
    fn publish(&self, _: &Network, _: &[Ipv4Addr]) {}
}
