//! The SPIRE Server API over TCP, with an SVID of its own that peers never see.

use super::{PEER, READY, both_ready, delete, gone, make_peers, quick, spire_holds};
use crate::agent::{Agent, AgentOptions};
use crate::bundle_server::certificates;
use crate::pair::with_pair;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// East's agent becomes ready, federates and ends the relationship over TCP; what listens for peers has the agent's own
/// SPIFFE ID.
#[test]
fn an_agent_federates_by_the_server_api_over_tcp() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.register_agent_as_admin().await?;
        let over_tcp =
            AgentOptions { spire_server: Some(east.spire.server_address().to_string()), ..quick() };
        let mut agents = (Agent::start(east, over_tcp)?, Agent::start(west, quick())?);
        tokio::try_join!(agents.0.ready(READY), agents.1.ready(READY))?;
        make_peers(pair).await?;
        both_ready(pair).await?;
        spire_holds(east, west).await?;
        ensure!(presented_to_peers(east).await? == east.agent_id(), "peers see another SVID");
        // Deleting a bundle is for administrators alone.
        delete(east, PEER, None, "west.example").await?;
        gone(east, PEER, None, "west.example").await?;
        ensure!(east.spire.federated_bundles().await?.is_empty(), "SPIRE holds a bundle");
        ensure!(agents.0.stop().await? == 0, "the agent ended badly");
        Ok(())
    });
}

/// The SPIFFE ID of the certificate that the agent presents to whoever dials it.
async fn presented_to_peers(domain: &Domain) -> Result<String> {
    let chain = crate::bundle_server::presented(domain.agent_address()).await?;
    let leaf = certificates(&chain)?.into_iter().next().context("no certificate")?;
    let (_, leaf) = X509Certificate::from_der(&leaf)?;
    let names = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    match names.context("no names")?.as_slice() {
        [GeneralName::URI(id)] => Ok((*id).to_owned()),
        other => anyhow::bail!("{other:?}"),
    }
}
