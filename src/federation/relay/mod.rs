//! Peers' connections, passed on by the replicas that do not lead to the one that does.
//!
//! One replica writes and talks to peers, but any may be dialled: a Service spreads connections over all. One that does
//! not lead passes what it accepted on, unopened, so TLS stays between the peer and the leader, and who reads a replica's
//! memory that does not lead reads no peer's words.
//!
//! - Where to: the leader's Lease says it (`entente.dev/relay-address`), as an IP address and a port.
//! - What keeps others out: the address can be reached by anyone who a NetworkPolicy lets, and the annotation can be
//!   written by anyone who may write Leases in our namespace. So replicas speak TLS 1.3 to each other with their own SVID and
//!   accept exactly their own SPIFFE ID: nobody else is passed a peer's bytes, and nobody else can say of a connection that it
//!   comes from elsewhere.
//! - Who it is from: one [`Header`] before the bytes has the address that the connection really came from. Rates and places
//!   are counted by that, so that all that comes by one replica is not punished as one source; and it is worth no more than
//!   that: who a peer is, its own TLS shows.
//! - No loops: what comes to the relay listener is served or closed, never passed on.
//! - Bounds: [`PASSED`] connections at a time of a follower, each within the rate of its source, and [`IDLE`] without a byte
//!   ends one. What a stranger can hold of them is bounded by its rate and the leader's time for a handshake.
//! - A change of leader: a connection that finds none is kept for [`HOLD`], and goes to whoever leads next; one that was
//!   passed on to a replica that leads no more is cut [`PARTING`] later, time for its goodbye.

mod door;
mod pass;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub(super) use door::Door as RelayDoor;
pub(super) use pass::Passing;

/// Connections that one replica passes on at a time.
const PASSED: usize = 1024;
/// How long nothing may pass in either direction. Peers say something every ten seconds.
const IDLE: Duration = Duration::from_secs(60);
/// How long a connection waits for a leader: less than a dialler waits for its handshake.
const HOLD: Duration = Duration::from_secs(8);
/// How soon a leader that was not reached is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the leader has to take a connection.
const REACH: Duration = Duration::from_secs(3);
/// How long connections to a leader live on when it leads no more.
const PARTING: Duration = Duration::from_secs(2);
/// Replicas that have not yet shown who they are: in all, and of one address. A stranger fills no more than its part.
const UNPROVEN: usize = 256;
const UNPROVEN_OF_ONE: usize = 32;
/// What the leader says once it has taken a connection.
const TAKEN: u8 = 1;

/// What a connection that is passed on begins with: 4 or 6, the address in 16 bytes (of an IPv4 address the first 4, then
/// zeros), and the port, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header(pub(super) SocketAddr);

impl Header {
    pub(super) const LENGTH: usize = 19;

    pub(super) fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (family, rest) = bytes.split_at_mut(1);
        let (address, port) = rest.split_at_mut(16);
        let number = match self.0.ip().to_canonical() {
            IpAddr::V4(ip) => {
                address.iter_mut().zip(ip.octets()).for_each(|(to, from)| *to = from);
                4
            }
            IpAddr::V6(ip) => {
                address.copy_from_slice(&ip.octets());
                6
            }
        };
        family.fill(number);
        port.copy_from_slice(&self.0.port().to_be_bytes());
        bytes
    }

    /// # Errors
    /// Where the bytes are none of those that [`Self::encode`] makes.
    pub(super) fn decode(bytes: &[u8; Self::LENGTH]) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "what was passed on has no good header");
        let ([family, rest @ ..], [.., high, low]) = (bytes, bytes);
        let address: &[u8; 16] = rest.first_chunk().ok_or_else(broken)?;
        let ip = match (family, address) {
            (4, [a, b, c, d, zeros @ ..]) if zeros.iter().all(|zero| *zero == 0) => {
                IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d))
            }
            (6, address) => IpAddr::V6(Ipv6Addr::from(*address)),
            _ => return Err(broken()),
        };
        Ok(Self(SocketAddr::new(ip, u16::from_be_bytes([*high, *low]))))
    }
}
