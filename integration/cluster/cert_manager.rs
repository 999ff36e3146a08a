//! What cert-manager does for SPIRE's plugin: it signs the CertificateRequests of a namespace by an Issuer's root. The definitions
//! are cert-manager's own; its controller does not run here.

use crate::kubernetes::Kubernetes;
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Where SPIRE's server has its requests, and by which Issuer.
pub(crate) const NAMESPACE: &str = "spire-server";
pub(crate) const ISSUER: &str = "spire-server-ca";
const REQUEST: (&str, &str) = ("cert-manager.io/v1", "CertificateRequest");
const LOOK: Duration = Duration::from_millis(200);

/// Signs until dropped.
#[derive(Debug)]
pub(crate) struct CertManager(JoinHandle<()>);

impl Drop for CertManager {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl CertManager {
    /// Installs the definitions, and begins to sign, with a root as cert-manager makes it: it has a common name, and names no
    /// trust domain.
    pub(crate) async fn start(kubernetes: &Kubernetes) -> Result<Self> {
        crate::crds::install_cert_manager(kubernetes).await?;
        kubernetes.namespace(NAMESPACE).await?;
        let root = Root::new()?;
        let requests = kubernetes.api(REQUEST.0, REQUEST.1, Some(NAMESPACE)).await?;
        Ok(Self(tokio::spawn(async move {
            loop {
                if let Err(error) = root.sign_all(&requests).await {
                    eprintln!("a CertificateRequest was not signed: {error:#}");
                }
                tokio::time::sleep(LOOK).await;
            }
        })))
    }
}

impl Root {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "cert-manager");
        params.distinguished_name.push(DnType::CommonName, "a root");
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    async fn sign_all(&self, requests: &Api<DynamicObject>) -> Result<()> {
        for request in requests.list(&ListParams::default()).await? {
            if request.data.pointer("/status/certificate").is_some() {
                continue;
            }
            let name = request.metadata.name.as_deref().context("a request without a name")?;
            let text = request.data["spec"]["request"].as_str().context("no spec.request")?;
            let pem = self.sign(&String::from_utf8(STANDARD.decode(text)?)?)?;
            let status = json!({"status": {
                "certificate": STANDARD.encode(pem),
                "ca": STANDARD.encode(&self.pem),
                "conditions": [{"type": "Ready", "status": "True", "reason": "Issued", "message": "signed"}],
            }});
            requests.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        }
        Ok(())
    }

    fn sign(&self, request: &str) -> Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request)?;
        request.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        request.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        request.params.use_authority_key_identifier_extension = true;
        request.params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        request.params.not_after = rcgen::date_time_ymd(2054, 1, 1);
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}
