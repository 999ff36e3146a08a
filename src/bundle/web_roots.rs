//! The certificates that endpoints of `https_web` are held against.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::identity::tls::provider;

/// Why they cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebRootsError {
    #[error("{}: it cannot be read: {cause}", path.display())]
    File { path: PathBuf, cause: String },
    #[error("certificate {number} of the extra Web PKI roots cannot be used: {cause}")]
    Certificate { number: usize, cause: String },
}

/// Mozilla's roots, and those of a PEM text, which may be empty.
///
/// # Errors
/// [`WebRootsError`] names the certificate that cannot be used.
pub fn web_roots(extra_pem: &str) -> Result<RootCertStore, WebRootsError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for (index, certificate) in CertificateDer::pem_slice_iter(extra_pem.as_bytes()).enumerate() {
        let bad = |cause: String| WebRootsError::Certificate { number: index + 1, cause };
        roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    Ok(roots)
}

type Verifier = Option<Arc<WebPkiServerVerifier>>;

/// Roots that stay as they are, or such of a file that someone renews. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WebRoots(Source);

#[derive(Clone, Debug)]
enum Source {
    Fixed(Verifier),
    File { path: PathBuf, last: Arc<Mutex<Last>> },
}

/// What was read of a file, and was good.
#[derive(Debug)]
struct Last {
    text: String,
    verifier: Verifier,
    /// Why it cannot be read any more, as it was said.
    said: Option<WebRootsError>,
}

impl WebRoots {
    #[must_use]
    pub fn fixed(roots: RootCertStore) -> Self {
        Self(Source::Fixed(verifier(roots)))
    }

    /// Mozilla's, and those of a PEM file: it is read again with each use, and where it is not good any more, what it held last
    /// counts.
    ///
    /// # Errors
    /// Where it is not good now.
    pub fn of_file(path: &Path) -> Result<Self, WebRootsError> {
        let text = read(path)?;
        let last = Last { verifier: verifier(web_roots(&text)?), text, said: None };
        Ok(Self(Source::File { path: path.to_owned(), last: Arc::new(Mutex::new(last)) }))
    }

    /// What an endpoint is held against now; `None` where there are no roots.
    pub(super) fn current(&self) -> Verifier {
        let (path, last) = match &self.0 {
            Source::Fixed(verifier) => return verifier.clone(),
            Source::File { path, last } => (path, last),
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = last.follow(path).err();
        if let Some(error) = problem.as_ref().filter(|error| last.said.as_ref() != Some(error)) {
            tracing::warn!(path = %path.display(), %error, "--web-roots: what was read before stays in use");
        }
        last.said = problem;
        last.verifier.clone()
    }
}

impl Last {
    fn follow(&mut self, path: &Path) -> Result<(), WebRootsError> {
        let text = read(path)?;
        // Who writes it may not be done.
        if text.trim().is_empty() && !self.text.trim().is_empty() {
            return Err(WebRootsError::File { path: path.to_owned(), cause: "it is empty now".to_owned() });
        }
        if text != self.text {
            self.verifier = verifier(web_roots(&text)?);
            self.text = text;
            tracing::info!(path = %path.display(), "--web-roots was read anew");
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, WebRootsError> {
    let bad = |error: std::io::Error| WebRootsError::File { path: path.to_owned(), cause: error.to_string() };
    std::fs::read_to_string(path).map_err(bad)
}

fn verifier(roots: RootCertStore) -> Verifier {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing::ca_params;
    use crate::observe::testing::Logs;

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        ca_params().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn they_are_mozillas_and_the_extra_ones() {
        let mozilla = web_roots("").unwrap().len();
        assert!(mozilla > 50);
        assert_eq!(web_roots(&pem()).unwrap().len(), mozilla + 1);
        assert!(web_roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }

    /// trust-manager renews the ConfigMap, in which the file is replaced.
    #[test]
    fn a_file_is_followed_and_what_was_good_last_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        assert!(WebRoots::of_file(&path).unwrap_err().to_string().contains("ca.crt"), "not at start");
        std::fs::write(&path, pem()).unwrap();
        let roots = WebRoots::of_file(&path).unwrap();
        let first = roots.current().unwrap();
        assert!(Arc::ptr_eq(&first, &roots.clone().current().unwrap()), "nothing is made of the same anew");
        std::fs::write(&path, pem()).unwrap();
        let second = roots.current().unwrap();
        assert!(!Arc::ptr_eq(&first, &second));

        let logs = Logs::of_this_thread();
        let said = || logs.warnings().matches("what was read before stays in use").count();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, expected) in
            [(Some(bad), 1), (Some(bad), 1), (None, 2), (None, 2), (Some(""), 3), (Some(bad), 4)]
        {
            match text {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap_or_default(),
            }
            assert!(Arc::ptr_eq(&second, &roots.current().unwrap()), "{text:?}");
            assert_eq!(said(), expected, "{}", logs.warnings());
        }
        std::fs::write(&path, pem()).unwrap();
        assert!(!Arc::ptr_eq(&second, &roots.current().unwrap()));
        assert_eq!(said(), 4);
    }
}
