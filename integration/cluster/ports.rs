//! Ports on 127.0.0.1 for programs that cannot tell which port 0 became.

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which Linux takes the ports of outgoing connections: one of those could take the port
/// between the look here and the start of the program, or while the program is restarted.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// How many ports this process has looked at.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// An address that nothing listens on, and that this process has not given before. Test processes that run at the
/// same time start at places far from each other.
pub(crate) fn free() -> Result<SocketAddr> {
    let start = u16::try_from(u64::from(std::process::id()).wrapping_mul(251) % u64::from(COUNT))?;
    (0..COUNT)
        .find_map(|_| {
            let port = FIRST + (start + TAKEN.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            TcpListener::bind(address).ok().map(|_| address)
        })
        .context("no free port on 127.0.0.1")
}
