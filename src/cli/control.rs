//! The client of a running agent's control socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::identity::tls::provider;

/// Beyond what any single request of the control API takes: long work is asked for in steps.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which agent is asked.
#[derive(Args, Clone, Debug)]
pub(super) struct ControlArgs {
    /// The control socket of the agent.
    #[arg(long, env = "ENTENTE_CONTROL", default_value = crate::config::CONTROL_SOCKET)]
    control: PathBuf,
}

impl ControlArgs {
    /// A client; nothing is asked yet.
    pub(super) fn client(&self) -> anyhow::Result<ControlClient> {
        // No TLS on a Unix socket; the HTTP client wants a configuration of it all the same, which trusts nobody.
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(self.control.clone())
            .timeout(PATIENCE)
            .build()
            .context("the client of the control socket cannot be made")?;
        Ok(ControlClient { http, socket: self.control.clone() })
    }
}

/// The agent answered, and did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The HTTP status.
    status: u16,
    /// Its own words.
    message: String,
}

impl Refusal {
    /// Whether it may do it later, asked in the same words: it is not so yet (409), or something did not answer (503).
    pub(super) const fn may_pass(&self) -> bool {
        matches!(self.status, 409 | 503)
    }

    /// Whether it was asked by what is no longer so (412).
    pub(super) const fn is_changed(&self) -> bool {
        self.status == 412
    }

    /// Whether it was tried, and failed elsewhere (502).
    pub(super) const fn is_failure(&self) -> bool {
        self.status == 502
    }
}

/// Asks one agent.
#[derive(Clone, Debug)]
pub(super) struct ControlClient {
    http: reqwest::Client,
    socket: PathBuf,
}

impl ControlClient {
    /// `GET path`.
    ///
    /// # Errors
    /// The agent's own words where it refuses; else what failed on the way to it.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST path` with a body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_string(body).context("the request cannot be written")?;
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        self.send(request.body(body)).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(self.request(Method::DELETE, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://agent{path}"))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let socket = self.socket.display();
        let answer = request.send().await.with_context(|| {
            format!(
                "no agent answers at {socket}: run this beside a running agent, or name its socket with --control"
            )
        })?;
        let status = answer.status();
        let text =
            answer.text().await.with_context(|| format!("the agent at {socket} broke off its answer"))?;
        if !status.is_success() {
            let error: Option<Value> = serde_json::from_str(&text).ok();
            let error = error.as_ref().and_then(|e| e.get("error")).and_then(Value::as_str);
            let message = error.unwrap_or(text.trim()).to_owned();
            return Err(Refusal { status: status.as_u16(), message }.into());
        }
        serde_json::from_str(&text).with_context(|| format!("the agent at {socket} is of another version"))
    }
}
