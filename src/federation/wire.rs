//! What a peer's TLS runs over.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A connection before the TLS of whoever opened it: left, its own TCP connection; right, one that another replica passes on,
/// within the TLS of that replica.
pub(crate) type Wire = Either<TcpStream, Box<TlsStream<TcpStream>>>;
