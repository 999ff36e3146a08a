//! A chain of certificates in words, and which authority of which bundle it leads to.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::bundles::Held;
use super::{Svid, names};
use crate::cli::output::{Screen, Tone, plain, span, wrapped};
use crate::identity::verify::{Role, SvidError, claimed_id, moment, verify_svid};
use crate::model::{Authority, Bundle, SpiffeId, TrustDomain};

/// The most certificates of a chain that are described.
const DESCRIBED: usize = 16;
/// As much of a key's ID as tells it from others.
const SHORT: usize = 16;

/// A chain, and what came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Chain {
    from: String,
    #[serde(rename = "spiffeID")]
    id: Option<String>,
    certificates: Vec<Certificate>,
    /// The authority that signed it; absent where none is held.
    authority: Option<Anchor>,
    /// Why it is not verified.
    problem: Option<String>,
}

/// One certificate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    is_ca: bool,
    subject: String,
    issuer: String,
    serial: String,
    uris: Vec<String>,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    key_id: Option<String>,
    /// The key that signed it, as it says itself.
    issuer_key_id: Option<String>,
}

/// The authority that a chain ends at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Anchor {
    trust_domain: String,
    id: String,
    subject: String,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Where the bundle is from.
    bundle: String,
}

/// Reads a chain, and verifies it with the bundle of the trust domain that its leaf names, and no other.
pub(super) fn judge(svid: &Svid, held: &Held, now: Timestamp) -> Chain {
    let certificates: Vec<Certificate> =
        svid.certificates.iter().take(DESCRIBED).map(|der| read(der.as_ref())).collect();
    let id = svid.certificates.first().and_then(|leaf| claimed_id(leaf.as_ref()));
    let (authority, problem) = match anchor(svid, id.as_ref(), held, now) {
        Ok(anchor) => (Some(anchor), None),
        Err(error) => (None, Some(explain(&error, &certificates, held))),
    };
    Chain { from: svid.from.clone(), id: id.map(|id| id.to_string()), certificates, authority, problem }
}

fn anchor(svid: &Svid, id: Option<&SpiffeId>, held: &Held, now: Timestamp) -> Result<Anchor, SvidError> {
    let Some(id) = id else {
        // it is no SVID: which rule it breaks is for the verifier to say
        verify(&svid.certificates, None, now)?;
        return Err(SvidError::NoUriSan);
    };
    let mut last = SvidError::NoBundle(id.trust_domain().clone());
    for (bundle, from) in held.of(id.trust_domain()) {
        match verify(&svid.certificates, Some(bundle), now) {
            Ok(()) => {
                let signer = bundle.authorities().find(|authority| {
                    let alone = Bundle::new(bundle.trust_domain().clone(), [(*authority).clone()]);
                    verify(&svid.certificates, Some(&Arc::new(alone)), now).is_ok()
                });
                if let Some(signer) = signer {
                    return Ok(of_authority(signer, bundle.trust_domain(), from));
                }
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// By either role: an SVID may be meant for one alone.
fn verify(
    chain: &[CertificateDer<'_>],
    bundle: Option<&Arc<Bundle>>,
    now: Timestamp,
) -> Result<(), SvidError> {
    let now = moment(now);
    let bundle_for = |name: &TrustDomain| bundle.filter(|bundle| bundle.trust_domain() == name).cloned();
    match verify_svid(chain, &bundle_for, Role::Server, now) {
        Err(SvidError::ExtendedKeyUsage(_)) => verify_svid(chain, &bundle_for, Role::Client, now),
        verdict => verdict,
    }
    .map(drop)
}

fn of_authority(authority: &Authority, trust_domain: &TrustDomain, from: &str) -> Anchor {
    Anchor {
        trust_domain: trust_domain.to_string(),
        id: authority.id().to_string(),
        subject: read(authority.der()).subject,
        not_before: authority.not_before(),
        not_after: authority.not_after(),
        bundle: from.to_owned(),
    }
}

/// What to do about it, as far as the chain itself shows that.
fn explain(error: &SvidError, certificates: &[Certificate], held: &Held) -> String {
    let mut words = error.to_string();
    match error {
        SvidError::NoBundle(_) => {
            words.push_str(&format!("; held are: {}", names(held)));
            if let Some(problem) = &held.problem {
                words.push_str(&format!(" ({problem})"));
            }
        }
        SvidError::UnknownAuthority(name) => {
            let Some(signer) = certificates.last().and_then(|top| top.issuer_key_id.as_ref()) else {
                return words;
            };
            let owns =
                |bundle: &Bundle| bundle.authorities().any(|authority| authority.id().as_str() == signer);
            match held.bundles.iter().find(|(bundle, _)| owns(bundle)) {
                Some((bundle, _)) if bundle.trust_domain() != name => words.push_str(&format!(
                    "; it was signed by {signer}, an authority of {}, which cannot speak for {name}",
                    bundle.trust_domain()
                )),
                _ => words
                    .push_str(&format!("; it was signed by {signer}, which is in no bundle that is held")),
            }
        }
        _ => {}
    }
    words
}

fn read(der: &[u8]) -> Certificate {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        let unread = "(cannot be read)".to_owned();
        return Certificate {
            is_ca: false,
            subject: unread.clone(),
            issuer: unread,
            serial: String::new(),
            uris: Vec::new(),
            not_before: None,
            not_after: None,
            key_id: None,
            issuer_key_id: None,
        };
    };
    let (mut key_id, mut issuer_key_id) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(hex::encode(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                issuer_key_id = id.key_identifier.as_ref().map(|id| hex::encode(id.0));
            }
            _ => {}
        }
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let at = |seconds| Timestamp::from_second(seconds).ok();
    Certificate {
        is_ca: certificate.is_ca(),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.raw_serial_as_string().replace(':', ""),
        uris: uris.collect(),
        not_before: at(certificate.validity().not_before.timestamp()),
        not_after: at(certificate.validity().not_after.timestamp()),
        key_id,
        issuer_key_id,
    }
}

impl Chain {
    pub(super) const fn is_verified(&self) -> bool {
        self.authority.is_some()
    }

    /// For people: leaf first, the authority last, and the verdict.
    pub(super) fn describe(&self, screen: Screen, now: Timestamp) -> String {
        let id = self.id.as_deref().unwrap_or("no SPIFFE ID");
        let mut text = format!("{}  from {}\n", screen.paint(Tone::Title, &plain(id)), plain(&self.from));
        for (at, certificate) in self.certificates.iter().enumerate() {
            let role = match (at, certificate.is_ca) {
                (0, _) => "leaf",
                (_, true) => "intermediate",
                (_, false) => "not a CA",
            };
            let names = if at == 0 { Vec::new() } else { certificate.uris.clone() };
            let subject = std::iter::once(certificate.subject.clone()).chain(names);
            let subject: Vec<String> = subject.filter(|name| !name.is_empty()).collect();
            text.push_str(&format!("  {role:<14}{}\n", plain(&subject.join(", "))));
            let key =
                certificate.key_id.as_deref().map(|id| format!(", key {}", short(id))).unwrap_or_default();
            let signer = certificate.issuer_key_id.as_deref().map(|id| format!(" ({})", short(id)));
            text.push_str(&format!("  {:14}serial {}{key}\n", "", certificate.serial));
            text.push_str(&format!(
                "  {:14}{}\n",
                "",
                lifetime(certificate.not_before, certificate.not_after, screen, now)
            ));
            text.push_str(&format!(
                "  {:14}signed by {}{}\n",
                "",
                plain(&certificate.issuer),
                signer.unwrap_or_default()
            ));
        }
        if let Some(anchor) = &self.authority {
            let subject = if anchor.subject.is_empty() {
                String::new()
            } else {
                format!(", {}", plain(&anchor.subject))
            };
            text.push_str(&format!(
                "  {:<14}{} of {}{subject}\n",
                "authority",
                short(&anchor.id),
                anchor.trust_domain
            ));
            let lifetime = lifetime(Some(anchor.not_before), Some(anchor.not_after), screen, now);
            text.push_str(&format!("  {:14}{lifetime}\n", ""));
            let verdict =
                format!("verified by the bundle of {}, from {}", anchor.trust_domain, plain(&anchor.bundle));
            text.push_str(&format!("  {}\n", screen.paint(Tone::Good, &verdict)));
        }
        if let Some(problem) = &self.problem {
            let width = screen.width.map(|width| width.saturating_sub(4));
            let lines = wrapped(&plain(&format!("NOT VERIFIED: {problem}")), width);
            for line in lines {
                text.push_str(&format!("  {}\n", screen.paint(Tone::Bad, &line)));
            }
        }
        text
    }
}

fn short(id: &str) -> String {
    id.chars().take(SHORT).collect()
}

fn lifetime(from: Option<Timestamp>, until: Option<Timestamp>, screen: Screen, now: Timestamp) -> String {
    let (Some(from), Some(until)) = (from, until) else { return "its validity cannot be read".to_owned() };
    let (tone, left) = match until.as_second() - now.as_second() {
        _ if now < from => (Tone::Bad, "NOT VALID YET".to_owned()),
        left if left < 0 => (Tone::Bad, format!("EXPIRED {} ago", span(-left))),
        left => (Tone::Plain, format!("{} left", span(left))),
    };
    format!("valid {from:.0} to {until:.0}, {}", screen.paint(tone, &left))
}
