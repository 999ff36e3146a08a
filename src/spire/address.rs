//! Where the SPIRE server listens.

use std::fmt;
use std::path::PathBuf;

/// The address of a SPIRE server: `unix:///absolute/path`, whose callers SPIRE trusts as local, or `host:port`, which
/// takes an admin SVID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerAddress {
    Unix(PathBuf),
    /// `host:port`; an IPv6 host is in brackets.
    Tcp(String),
}

/// Why text is no address of a SPIRE server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "{0:?} is no SPIRE server address: after unix: comes an absolute path, as in unix:///run/spire/api.sock"
    )]
    Path(String),
    #[error("{0:?} is no SPIRE server address: use unix:///absolute/path or host:port")]
    Form(String),
    #[error("{0:?} is no SPIRE server address: the port is a number from 1 to 65535")]
    Port(String),
}

impl ServerAddress {
    /// Reads `unix:///path` (also `unix:/path`) or `host:port`.
    ///
    /// # Errors
    /// [`AddressError`] says what form it should have.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix("unix:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let legal = path.starts_with('/') && path.len() > 1 && !path.contains('\0');
            return if legal {
                Ok(Self::Unix(path.into()))
            } else {
                Err(AddressError::Path(text.to_owned()))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::Form(text.to_owned()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let legal = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !legal {
            return Err(AddressError::Form(text.to_owned()));
        }
        match port.parse::<u16>() {
            Ok(1..) => Ok(Self::Tcp(text.to_owned())),
            _ => Err(AddressError::Port(text.to_owned())),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_and_writes_them_back() {
        for text in ["unix:///run/spire/api.sock", "spire-server.spire:8081", "10.0.0.1:443", "[::1]:8081"] {
            assert_eq!(ServerAddress::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            ServerAddress::parse("unix:/run/api.sock").unwrap(),
            ServerAddress::Unix("/run/api.sock".into())
        );
    }

    #[test]
    fn refuses_everything_else() {
        for text in
            ["", "unix://", "unix:", "unix://run/api.sock", "host", ":8081", "http://host:1", "::1:80"]
        {
            assert!(ServerAddress::parse(text).is_err(), "{text}");
        }
        for text in ["host:0", "host:65536", "host:", "host:+1x"] {
            assert_eq!(ServerAddress::parse(text), Err(AddressError::Port(text.to_owned())));
        }
    }
}
