//! The X.509 authority of a trust domain, with SPIRE's slots and thresholds. Pure but for key generation: time comes
//! in as a value.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::svid::{Svid, Validity};
use crate::model::{self, AuthorityId, Bundle, SpiffeId, TrustDomain};

/// Certificates are valid from a little before they are made, for clocks that differ, as SPIRE's are.
const CUSHION: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Lifetimes of an authority and of what it signs; the defaults are SPIRE's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lifetime of an authority.
    pub ca_ttl: Duration,
    /// Lifetime of an SVID, cut short where its authority ends sooner.
    pub svid_ttl: Duration,
    /// `spiffe_refresh_hint` of the bundle.
    pub refresh_hint: Duration,
    /// When the first authority is made.
    pub start: Timestamp,
}

impl Settings {
    /// SPIRE's defaults: authorities of 24 hours, SVIDs of one, a refresh hint of five minutes.
    #[must_use]
    pub const fn new(start: Timestamp) -> Self {
        Self {
            ca_ttl: DAY,
            svid_ttl: Duration::from_secs(60 * 60),
            refresh_hint: Duration::from_secs(5 * 60),
            start,
        }
    }
}

/// Why the authority did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("a key or certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("a certificate that was made does not parse: {0}")]
    Parse(#[from] model::authority::AuthorityError),
    #[error("unexpected authority ID")]
    UnknownAuthority,
    #[error("only Prepared authorities can be activated")]
    NotPrepared,
    #[error("only Old local authorities can be tainted or revoked")]
    NotOld,
    #[error("root CA is already tainted")]
    AlreadyTainted,
    #[error("it is not possible to revoke an untainted root CA")]
    Untainted,
    #[error("no root CA found with provided subject key ID")]
    Gone,
}

/// The authorities in their slots, as SPIRE's `GetX509AuthorityState` gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    pub active: AuthorityId,
    pub prepared: Option<AuthorityId>,
    pub old: Option<AuthorityId>,
}

struct Slot {
    id: AuthorityId,
    key: KeyPair,
    params: CertificateParams,
    made: Timestamp,
    not_after: Timestamp,
}

impl Slot {
    /// The time before the end at which a fraction of the life is left, at most `cap`.
    fn threshold(&self, divisor: i64, cap: Duration) -> Timestamp {
        let life = self.not_after.as_second() - self.made.as_second();
        let left = (life / divisor).clamp(0, i64::try_from(cap.as_secs()).unwrap_or(i64::MAX));
        earlier(self.not_after, Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }
}

/// What the second slot holds.
enum Next {
    Empty,
    Prepared(Box<Slot>),
    /// Rotated out: still in the bundle, signs no more.
    Old(AuthorityId),
}

/// An X.509 authority: what it has signed with, signs with and will sign with.
pub struct Authority {
    trust_domain: TrustDomain,
    settings: Settings,
    active: Slot,
    next: Next,
    /// What is published: every authority that was made and is neither revoked nor long expired.
    published: Vec<model::Authority>,
    sequence: u64,
    bundle: Arc<Bundle>,
    previous: Arc<Bundle>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("slots", &self.slots())
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the first authority and activates it, as a new SPIRE server does.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if no key or certificate could be made.
    pub fn new(trust_domain: TrustDomain, settings: Settings) -> Result<Self, AuthorityError> {
        let (active, authority) = make(&trust_domain, &settings, settings.start)?;
        let empty = Arc::new(Bundle::new(trust_domain.clone(), []));
        let mut this = Self {
            trust_domain,
            settings,
            active,
            next: Next::Empty,
            published: vec![authority],
            sequence: 0,
            bundle: Arc::clone(&empty),
            previous: empty,
        };
        this.publish();
        this.previous = Arc::clone(&this.bundle);
        Ok(this)
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The bundle as it is published: prepared, active and old authorities.
    #[must_use]
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// The bundle before its last change; the same one while there was none.
    #[must_use]
    pub fn previous_bundle(&self) -> &Arc<Bundle> {
        &self.previous
    }

    #[must_use]
    pub fn slots(&self) -> Slots {
        let (prepared, old) = match &self.next {
            Next::Empty => (None, None),
            Next::Prepared(slot) => (Some(slot.id.clone()), None),
            Next::Old(id) => (None, Some(id.clone())),
        };
        Slots { active: self.active.id.clone(), prepared, old }
    }

    /// When an authority of the bundle ends.
    #[must_use]
    pub fn expiry(&self, id: &AuthorityId) -> Option<Timestamp> {
        self.published.iter().find(|a| a.id() == id).map(model::Authority::not_after)
    }

    /// Makes and publishes the next authority. Preparing again puts another in its place, as in SPIRE: the one before
    /// stays in the bundle.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if no key or certificate could be made.
    pub fn prepare(&mut self, now: Timestamp) -> Result<AuthorityId, AuthorityError> {
        let (slot, authority) = make(&self.trust_domain, &self.settings, now)?;
        let id = slot.id.clone();
        self.published.push(authority);
        self.next = Next::Prepared(Box::new(slot));
        self.publish();
        Ok(id)
    }

    /// Signs with the prepared authority from now on; the active one becomes the old one.
    ///
    /// # Errors
    /// [`AuthorityError::UnknownAuthority`] for another ID than that of the second slot,
    /// [`AuthorityError::NotPrepared`] where that holds the old authority.
    pub fn activate(&mut self, id: &AuthorityId) -> Result<(), AuthorityError> {
        match std::mem::replace(&mut self.next, Next::Empty) {
            Next::Prepared(slot) if slot.id == *id => {
                let old = std::mem::replace(&mut self.active, *slot);
                self.next = Next::Old(old.id);
                Ok(())
            }
            next => {
                let is_old = matches!(&next, Next::Old(old) if old == id);
                self.next = next;
                Err(if is_old { AuthorityError::NotPrepared } else { AuthorityError::UnknownAuthority })
            }
        }
    }

    /// Marks the old authority as tainted: SVIDs that it signed are replaced, and it stays in the bundle.
    ///
    /// # Errors
    /// [`AuthorityError::NotOld`] for any other authority, [`AuthorityError::Gone`] once it is revoked,
    /// [`AuthorityError::AlreadyTainted`] the second time.
    pub fn taint(&mut self, id: &AuthorityId) -> Result<(), AuthorityError> {
        if self.old_in_bundle(id)?.tainted {
            return Err(AuthorityError::AlreadyTainted);
        }
        self.published.iter_mut().filter(|a| a.id() == id).for_each(|a| a.tainted = true);
        self.publish();
        Ok(())
    }

    /// Takes the old authority, which must be tainted, out of the bundle. It stays in its slot, as in SPIRE.
    ///
    /// # Errors
    /// [`AuthorityError::NotOld`] for any other authority, [`AuthorityError::Untainted`] before it is tainted,
    /// [`AuthorityError::Gone`] the second time.
    pub fn revoke(&mut self, id: &AuthorityId) -> Result<(), AuthorityError> {
        if !self.old_in_bundle(id)?.tainted {
            return Err(AuthorityError::Untainted);
        }
        self.published.retain(|a| a.id() != id);
        self.publish();
        Ok(())
    }

    fn old_in_bundle(&self, id: &AuthorityId) -> Result<&model::Authority, AuthorityError> {
        if !matches!(&self.next, Next::Old(old) if old == id) {
            return Err(AuthorityError::NotOld);
        }
        self.published.iter().find(|a| a.id() == id).ok_or(AuthorityError::Gone)
    }

    /// Rotates by time, as SPIRE does: prepares when half of the active authority's life is left (30 days at most),
    /// activates when a sixth is (7 days at most), and drops what expired more than a day ago. Says whether it did.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if no key or certificate could be made.
    pub fn tick(&mut self, now: Timestamp) -> Result<bool, AuthorityError> {
        let mut changed = false;
        let prepared = matches!(self.next, Next::Prepared(_));
        if !prepared && now > self.active.threshold(2, 30 * DAY) {
            self.prepare(now)?;
            changed = true;
        }
        if now > self.active.threshold(6, 7 * DAY)
            && let Next::Prepared(slot) = &self.next
        {
            let id = slot.id.clone();
            self.activate(&id)?;
            changed = true;
        }
        let before = self.published.len();
        let active = self.active.id.clone();
        self.published.retain(|a| *a.id() == active || now <= later(a.not_after(), DAY));
        if self.published.len() != before {
            self.publish();
            changed = true;
        }
        Ok(changed)
    }

    /// Signs an X509-SVID (X509-SVID, sections 2 to 4) with the active authority.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if no key or certificate could be made.
    pub fn issue(&self, id: &SpiffeId, now: Timestamp) -> Result<Svid, AuthorityError> {
        self.issue_as(id, now, Validity::For(self.settings.svid_ttl))
    }

    pub(super) fn issue_as(
        &self,
        id: &SpiffeId,
        now: Timestamp,
        validity: Validity,
    ) -> Result<Svid, AuthorityError> {
        let (from, until) = match validity {
            Validity::For(ttl) => (earlier(now, CUSHION), later(now, ttl).min(self.active.not_after)),
            Validity::Expired => (earlier(now, 2 * DAY), earlier(now, DAY)),
        };
        let mut params = params(from, until, id.to_string())?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_params(&self.active.params, &self.active.key);
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Svid {
            id: id.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
            signer: self.active.id.clone(),
            issued: now,
            not_after: until,
        })
    }

    /// Whether what the authority signed must be replaced: it is tainted, or no longer in the bundle.
    #[must_use]
    pub fn is_tainted(&self, id: &AuthorityId) -> bool {
        self.published.iter().find(|a| a.id() == id).is_none_or(|a| a.tainted)
    }

    fn publish(&mut self) {
        self.sequence += 1;
        let mut bundle = Bundle::new(self.trust_domain.clone(), self.published.iter().cloned());
        bundle.sequence = Some(self.sequence);
        bundle.refresh_hint = Some(self.settings.refresh_hint.as_secs());
        self.previous = std::mem::replace(&mut self.bundle, Arc::new(bundle));
    }
}

fn make(
    trust_domain: &TrustDomain,
    settings: &Settings,
    now: Timestamp,
) -> Result<(Slot, model::Authority), AuthorityError> {
    let not_after = later(now, settings.ca_ttl);
    let mut params = params(earlier(now, CUSHION), not_after, trust_domain.id_string())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let authority = model::Authority::parse(params.self_signed(&key)?.der())?;
    Ok((Slot { id: authority.id().clone(), key, params, made: now, not_after }, authority))
}

/// What CA and leaf have in common. The subject is the same for every authority of every trust domain, as it nearly
/// is in SPIRE: whoever finds an issuer by name alone, finds the wrong one.
fn params(from: Timestamp, until: Timestamp, uri: String) -> Result<CertificateParams, rcgen::Error> {
    let at = |time: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0))
    };
    let mut params = CertificateParams::default();
    params.not_before = at(from);
    params.not_after = at(until);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri)?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SPIFFE");
    params.distinguished_name.push(DnType::OrganizationalUnitName, "entente devkit, not for production");
    Ok(params)
}

pub(super) fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_sub(by).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
