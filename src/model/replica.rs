//! The replicas of one agent: one leads, which writes and talks to peers; the others pass peers' connections on to it.

use std::net::{IpAddr, SocketAddr};

/// The name of the Lease that the replica which leads holds, in the agent's namespace: one for each instance.
#[must_use]
pub fn leader_lease(instance: &str) -> String {
    format!("{instance}-leader")
}

/// This replica, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its name in Leases: no two have the same.
    pub name: String,
    /// Where it takes the connections that others pass on, while it leads.
    pub relay: Option<SocketAddr>,
}

impl Replica {
    /// One to which nothing is passed on.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), relay: None }
    }
}

/// Who leads, as this replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leader {
    /// Nobody does, or it is not known who.
    #[default]
    Nobody,
    /// We do. Each time that the lead comes from another, the term is another.
    Us { term: i64 },
    Other {
        name: String,
        /// Where it takes what is passed on; none where it does not.
        relay: Option<SocketAddr>,
    },
}

impl Leader {
    #[must_use]
    pub const fn is_us(&self) -> bool {
        matches!(self, Self::Us { .. })
    }

    #[must_use]
    pub const fn is_known(&self) -> bool {
        !matches!(self, Self::Nobody)
    }

    /// The name of another that leads.
    #[must_use]
    pub fn other(&self) -> Option<&str> {
        match self {
            Self::Other { name, .. } => Some(name),
            Self::Nobody | Self::Us { .. } => None,
        }
    }
}

/// The address at which a replica says that it takes connections: an IP address and a port that can be dialled, or nothing.
/// Names are not resolved, so that who writes it chooses no more than an address.
#[must_use]
pub fn relay_address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let is_broadcast = matches!(address.ip(), IpAddr::V4(ip) if ip.is_broadcast());
    let dialled = address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
    (dialled && !is_broadcast).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_can_be_dialled_is_one() {
        for good in ["10.0.0.1:7444", "127.0.0.1:1", "[fd00::1]:7444"] {
            assert_eq!(relay_address(good).map(|a| a.to_string()).as_deref(), Some(good));
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1:0",
            "0.0.0.0:7444",
            "[::]:7444",
            "224.0.0.1:7444",
            "255.255.255.255:1",
            "leader.example:7444",
            "unix:/run/x",
            "10.0.0.1:7444 ",
            "10.0.0.1:70000",
            "fd00::1:7444",
        ] {
            assert_eq!(relay_address(bad), None, "{bad}");
        }
    }
}
