//! Unix sockets that the agent listens on: one that an earlier life left behind is replaced, what is no socket or is served
//! by another is not, and each is removed once it is served no more.

use std::fs::{Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another process serves {}; stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is no socket, so it is left alone: move it away, or choose another path", .0.display())]
    Occupied(PathBuf),
    #[error("{path} cannot be served: {1}; choose a path in a folder that this user may write, of at most 102 bytes", path = .0.display())]
    Io(PathBuf, io::Error),
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    left: Left,
}

/// Removes the socket when it is dropped, unless another has taken its place.
#[derive(Debug)]
pub struct Left {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Left {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| inode(&there) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// Listens at the path. The socket is nowhere to be opened before it has this mode; a folder that has to be made for it
    /// can be searched by those who may open the socket.
    ///
    /// # Errors
    /// Where the socket cannot be made, another process serves it, or something else is in its place.
    pub async fn at(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io(path.to_owned(), error);
        match UnixStream::connect(path).await {
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            // too busy to answer, or another user's
            Err(error) => return Err(io(error)),
        }
        if std::fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(SocketError::Occupied(path.to_owned()));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().ok_or_else(|| io(ErrorKind::InvalidInput.into()))?;
        if !folder.as_os_str().is_empty() {
            // Whoever may write the socket may search its folder.
            let searched = 0o700 | ((mode & 0o222) >> 1);
            std::fs::DirBuilder::new().recursive(true).mode(searched).create(folder).map_err(io)?;
        }
        let new = folder.join(format!(".{}.new", name.to_string_lossy()));
        if std::fs::symlink_metadata(&new).is_ok_and(|there| there.file_type().is_socket()) {
            std::fs::remove_file(&new).map_err(io)?;
        }
        let listener = UnixListener::bind(&new).map_err(io)?;
        std::fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(io)?;
        let inode = inode(&std::fs::symlink_metadata(&new).map_err(io)?);
        std::fs::rename(&new, path).map_err(io)?;
        Ok(Self { listener, left: Left { path: path.to_owned(), inode } })
    }

    /// The listener, and what removes the socket.
    #[must_use]
    pub fn split(self) -> (UnixListener, Left) {
        (self.listener, self.left)
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
