//! The flags of the DNS server.

use std::net::SocketAddr;

use clap::Args;

/// How names of imported services are answered.
#[derive(Args, Clone, Debug, Default)]
pub struct DnsArgs {
    /// Answer DNS here, by UDP and TCP: the names of the services that are imported, at the addresses that they were given. Whoever
    /// reaches it learns which services those are, by name. Default: nobody is answered.
    #[arg(long = "dns-listen", id = "dns-listen", env = "ENTENTE_DNS_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,

    /// Whom other names are asked of: `IP` or `IP:port`, several separated by commas, the first that answers. Not one that would
    /// ask this agent for them. Default: they are refused.
    #[arg(
        long = "dns-upstream",
        id = "dns-upstream",
        env = "ENTENTE_DNS_UPSTREAM",
        value_delimiter = ',',
        value_name = "IP[:PORT]"
    )]
    pub upstream: Vec<DnsUpstream>,

    /// How many questions a second are answered to one source (an IPv4 address, or an IPv6 network of 64 bits), and twice as many
    /// at once; a resolver that asks for many clients is one source. Default: 1,000.
    #[arg(long = "dns-rate", id = "dns-rate", env = "ENTENTE_DNS_RATE", value_name = "DNS_RATE", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
}

/// A DNS server; at port 53 where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsUpstream(pub SocketAddr);

impl std::str::FromStr for DnsUpstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let found = whole.or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
        let found = found.filter(|address| !address.ip().is_unspecified() && !address.ip().is_multicast());
        found.map(Self).ok_or_else(|| format!("{text:?} is neither `IP` nor `IP:port` of a DNS server"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_server_that_can_be_asked() {
        let parsed = |text: &str| text.parse().map(|DnsUpstream(at)| at.to_string());
        assert_eq!(parsed("10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(parsed("10.0.0.2:5353").unwrap(), "10.0.0.2:5353");
        assert_eq!(parsed("fd00::2").unwrap(), "[fd00::2]:53");
        assert_eq!(parsed("[fd00::2]:5353").unwrap(), "[fd00::2]:5353");
        for bad in ["", "dns.example", "0.0.0.0", "[::]:53", "10.0.0.2:0", "224.0.0.251"] {
            assert!(parsed(bad).unwrap_err().contains("DNS server"), "{bad}");
        }
    }
}
