//! Host names, addresses and ports, parsed once.
//!
//! A name ends up as a directory below `/etc/docker/certs.d` that root writes to, as a SAN in a certificate and as a
//! constraint of the CA. So nothing else than [`Host`] may carry one: it cannot hold a `/`, a `..` or a NUL.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Why a text is not a host or not a `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// Longer than DNS allows.
    #[error("a host name has at most 253 characters, a label at most 63")]
    TooLong,
    /// A character that no host name has.
    #[error("{0:?} is not allowed in a host name (a-z, 0-9, '-' and '.'; no label starts or ends with '-')")]
    Character(char),
    /// A label is empty or starts or ends with a hyphen.
    #[error("the label {0:?} is empty or starts or ends with '-'")]
    Label(String),
    /// Looks like an IPv4 address, but is none.
    #[error("it looks like an IPv4 address but is none (four numbers from 0 to 255)")]
    BadAddress,
    /// An IPv6 address.
    #[error("IPv6 addresses are not supported: DC/OS virtual addresses are IPv4")]
    Ipv6,
    /// The port is missing or no number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535, as in {0}:443")]
    Port(String),
}

/// A lower-case DNS name or an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Host {
    /// An IPv4 address.
    Ip(Ipv4Addr),
    /// A DNS name, lower case, without a trailing dot.
    Dns(String),
}

impl Host {
    /// The address, when the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::Ip(ip) => Some(IpAddr::V4(*ip)),
            Host::Dns(_) => None,
        }
    }
}

/// Addresses come first, in their order. Agents are looked up by host everywhere, and what `derive` makes compares addresses byte by
/// byte: a fifth of what the controller of 10,000 agents did.
impl Ord for Host {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Ip(one), Self::Ip(other)) => one.to_bits().cmp(&other.to_bits()),
            (Self::Dns(one), Self::Dns(other)) => one.cmp(other),
            (Self::Ip(_), Self::Dns(_)) => Ordering::Less,
            (Self::Dns(_), Self::Ip(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Host {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() || text.starts_with('[') {
            return Err(NameError::Ipv6);
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(ip));
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '.')) {
            return Err(NameError::Character(bad));
        }
        if text.len() > 253 || text.split('.').any(|label| label.len() > 63) {
            return Err(NameError::TooLong);
        }
        if let Some(label) = text.split('.').find(|l| l.is_empty() || l.starts_with('-') || l.ends_with('-')) {
            return Err(NameError::Label(label.to_string()));
        }
        // A last label of digits only is no top-level domain: clients would take the name for an address.
        if text.rsplit('.').next().is_some_and(|label| label.chars().all(|c| c.is_ascii_digit())) {
            return Err(NameError::BadAddress);
        }
        Ok(Host::Dns(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Host {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

/// As text. The record of a large cluster names every agent, so none is copied for that.
impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Host::Ip(ip) => ip.serialize(serializer),
            Host::Dns(name) => serializer.serialize_str(name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(ip) => write!(f, "{ip}"),
            Host::Dns(name) => f.write_str(name),
        }
    }
}

/// A host with a port: what an image reference starts with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl HostPort {
    /// Puts the two together. A port 0 is refused when parsed, so callers pass a port they have parsed or defined.
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// The spellings that an image reference may use for this name: `host:port`, and for port 443 also `host` alone.
    ///
    /// Docker looks for a directory of exactly the spelling that the reference has (moby `hostCertsDir`).
    pub fn spellings(&self) -> Vec<String> {
        let full = self.to_string();
        if self.port == 443 { vec![self.host.to_string(), full] } else { vec![full] }
    }
}

impl HostPort {
    /// The same where no TLS is spoken: without a port docker then takes 80.
    pub fn plain_spellings(&self) -> Vec<String> {
        let full = self.to_string();
        if self.port == 80 { vec![self.host.to_string(), full] } else { vec![full] }
    }
}

impl FromStr for HostPort {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| NameError::Port(text.to_string()))?;
        let host: Host = host.parse()?;
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self { host, port }),
            _ => Err(NameError::Port(host.to_string())),
        }
    }
}

impl TryFrom<String> for HostPort {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(name: HostPort) -> String {
        name.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        assert_eq!("192.168.0.1".parse(), Ok(Host::Ip(Ipv4Addr::new(192, 168, 0, 1))));
        assert_eq!("Registry.Example.com".parse(), Ok(Host::Dns("registry.example.com".into())));
    }

    #[test]
    fn addresses_come_in_their_order_and_before_names() {
        let sorted = ["9.0.0.1", "10.0.0.2", "10.0.0.10", "192.168.0.1", "a.example.com", "b"].map(|text| text.parse::<Host>().unwrap());
        let mut hosts = sorted.clone();
        hosts.reverse();
        hosts.sort();
        assert_eq!(hosts, sorted);
        assert!(sorted.iter().all(|host| host.cmp(host) == Ordering::Equal));
    }

    #[test]
    fn nothing_that_could_leave_a_directory_is_a_host() {
        for bad in ["", ".", "..", "a/b", "../a", "a..b", "a\0b", "a b", "-a", "a-", "192.168.0.300", "192.168.0", "::1", "[::1]"] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?} was accepted");
        }
        assert!("a".repeat(64).parse::<Host>().is_err());
        assert!(format!("{}.com", "a.".repeat(130)).parse::<Host>().is_err());
    }

    #[test]
    fn a_name_on_port_443_has_two_spellings() {
        let name: HostPort = "192.168.0.1:443".parse().unwrap();
        assert_eq!(name.spellings(), ["192.168.0.1", "192.168.0.1:443"]);
        let name: HostPort = "registry.marathon.mesos:5000".parse().unwrap();
        assert_eq!(name.spellings(), ["registry.marathon.mesos:5000"]);
    }

    #[test]
    fn a_port_must_be_given_and_be_real() {
        for bad in ["192.168.0.1", "192.168.0.1:", "192.168.0.1:0", "192.168.0.1:65536", ":443"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?} was accepted");
        }
    }
}
