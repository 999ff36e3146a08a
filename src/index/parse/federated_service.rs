//! FederatedService to [`DeclaredService`].

use std::collections::BTreeSet;

use super::field::{self, Problem};
use super::{names, reject, selector, spec};
use crate::api::v1alpha1::federated_service::{
    Clients, Endpoint, FederatedServiceSpec, Gateway as GivenGateway, GatewayType as GivenType, Port,
    TargetPort as GivenTarget,
};
use crate::api::v1alpha1::limits;
use crate::model::cluster::TargetPort;
use crate::model::export::{Backing, DeclaredPort, DeclaredService};
use crate::model::name::NameError;
use crate::model::service::{Address, AppProtocol, ClientPattern, Gateway, GatewayAddress, GatewayType};
use crate::model::world::Rejected;
use crate::model::{NamespacedName, Object, ServiceName, TrustDomain};

/// Reads a FederatedService. `own` is our own trust domain, once the Workload API told it: before that, what is said about it
/// is not checked, so the object must be read again then. Without gateways or server IDs it is well formed all the same.
///
/// # Errors
/// [`Rejected`] with the field and the rule.
pub fn parse(object: &Object, own: Option<&TrustDomain>) -> Result<DeclaredService, Rejected> {
    read(object, own).map_err(|problem| reject(object, None, problem))
}

fn read(object: &Object, own: Option<&TrustDomain>) -> Result<DeclaredService, Problem> {
    names(object)?;
    let namespace = object.key.namespace.as_deref().unwrap_or_default();
    let spec: FederatedServiceSpec = spec(object)?;
    let exported_to = exported_to(&spec.exported_trust_domains, own)?;
    let ids = "spec.serverSPIFFEIDs";
    field::at_most(ids, spec.server_spiffe_ids.len(), limits::SERVER_IDS)?;
    field::at_most("spec.gateways", spec.gateways.len(), limits::GATEWAYS)?;
    let backing = backing(&spec)?;
    let clients_of_all = clients("spec.clients.spiffeIDs", &spec.clients, &exported_to)?;
    Ok(DeclaredService {
        object: NamespacedName::new(namespace, &object.key.name),
        uid: object.meta.uid.clone(),
        generation: object.meta.generation,
        created: object.meta.created,
        deletion: object.meta.deletion,
        name: service_name(object, spec.name.as_deref(), own)?,
        ports: ports(&spec.ports, &backing, &exported_to)?,
        backing,
        tls_mode: spec.tls_mode.into(),
        clients: clients_of_all,
        exported_to,
        server_ids: field::set(ids, &spec.server_spiffe_ids, |path, text| match own {
            Some(own) => field::spiffe_id_in(path, text, own, "our own trust domain"),
            None => field::spiffe_id(path, text),
        })?,
        gateways: spec
            .gateways
            .iter()
            .enumerate()
            .map(|(i, given)| gateway(&format!("spec.gateways[{i}]"), given))
            .collect::<Result<_, _>>()?,
    })
}

/// A host name that our trust domain makes illegal as a whole is not this object's fault, and not refused here.
fn service_name(
    object: &Object,
    given: Option<&str>,
    own: Option<&TrustDomain>,
) -> Result<ServiceName, Problem> {
    let (path, name, hint) = match given {
        Some(name) => ("spec.name", name, ""),
        None => ("metadata.name", object.key.name.as_str(), ": give spec.name to call the service otherwise"),
    };
    let namespace = object.key.namespace.as_deref().unwrap_or_default();
    let name = ServiceName::new(namespace, name).map_err(|cause| {
        let rule = format!("it is the first label of the service's host name, and {cause}{hint}");
        Problem::of(path, name, rule)
    })?;
    match own.map(|own| name.host(own)) {
        Some(Err(cause @ NameError::TooLong(_))) => {
            Err(Problem::of(path, name.name(), format!("{cause}: give a shorter spec.name")))
        }
        _ => Ok(name),
    }
}

fn backing(spec: &FederatedServiceSpec) -> Result<Backing, Problem> {
    let path = "spec.workloadLabels";
    match (&spec.workload_labels, &spec.service_ref, spec.endpoints.as_slice()) {
        (Some(labels), None, []) if labels.is_empty() => {
            Err(Problem::new(path, "it is empty, and would select every pod: give at least one label"))
        }
        (Some(labels), None, []) => selector::labels(path, labels).map(Backing::Labels),
        (None, Some(given), []) => {
            field::dns_label("spec.serviceRef.name", &given.name)?;
            Ok(Backing::Service(given.name.clone()))
        }
        (None, None, []) => Err(Problem::new(
            path,
            "it is missing: give the labels of the pods that back the service, or outside of a cluster its endpoints",
        )),
        (None, None, given) => endpoints(given).map(Backing::Endpoints),
        _ => Err(Problem::new(path, "give one of workloadLabels, serviceRef and endpoints, and not two")),
    }
}

fn endpoints(given: &[Endpoint]) -> Result<BTreeSet<Address>, Problem> {
    field::at_most("spec.endpoints", given.len(), limits::SERVICE_ENDPOINTS)?;
    let endpoint = |(i, given): (usize, &Endpoint)| {
        let path = format!("spec.endpoints[{i}]");
        let address = address(&path, given.hostname.as_deref(), given.ip.as_deref())?;
        match &address {
            Address::Ip(ip) if ip.is_unspecified() || ip.is_multicast() => {
                Err(Problem::of(&format!("{path}.ip"), &ip.to_string(), "nobody can be called there"))
            }
            _ => Ok(address),
        }
    };
    given.iter().enumerate().map(endpoint).collect()
}

pub(super) fn exported_to(
    given: &[String],
    own: Option<&TrustDomain>,
) -> Result<BTreeSet<TrustDomain>, Problem> {
    let path = "spec.exportedTrustDomains";
    field::some_of(path, given.len(), limits::EXPORTED_TRUST_DOMAINS)?;
    field::set(path, given, |path, text| {
        let trust_domain = field::trust_domain(path, text)?;
        if own == Some(&trust_domain) {
            let rule = "it is our own trust domain, to which nothing needs to be exported: leave it out";
            return Err(Problem::of(path, text, rule));
        }
        Ok(trust_domain)
    })
}

/// Clients, each in a trust domain that it is exported to.
pub(super) fn clients(
    path: &str,
    given: &Clients,
    exported_to: &BTreeSet<TrustDomain>,
) -> Result<BTreeSet<ClientPattern>, Problem> {
    field::some_of(path, given.spiffe_ids.len(), limits::CLIENTS)?;
    field::set(path, &given.spiffe_ids, |path, text| {
        let pattern = field::client_pattern(path, text)?;
        if exported_to.contains(pattern.trust_domain()) {
            return Ok(pattern);
        }
        let rule = format!(
            "trust domain {} is not in spec.exportedTrustDomains: add it there, or leave this client out",
            pattern.trust_domain()
        );
        Err(Problem::of(path, text, rule))
    })
}

fn ports(
    given: &[Port],
    backing: &Backing,
    exported_to: &BTreeSet<TrustDomain>,
) -> Result<Vec<DeclaredPort>, Problem> {
    match backing {
        Backing::Labels(_) | Backing::Endpoints(_) => {
            field::some_of("spec.ports", given.len(), limits::PORTS)?
        }
        Backing::Service(_) => field::at_most("spec.ports", given.len(), limits::PORTS)?,
    }
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(given.len());
    for (i, given) in given.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name_path = format!("{path}.name");
        field::dns_label(&name_path, &given.name)?;
        if !port_names.insert(&given.name) {
            return Err(Problem::of(
                &name_path,
                &given.name,
                "another port has this name: give each its own",
            ));
        }
        let port = field::port(&format!("{path}.port"), given.port)?;
        if !numbers.insert(port) {
            let rule = format!("{port}: another port has this number: give each its own");
            return Err(Problem::new(format!("{path}.port"), rule));
        }
        let clients_path = format!("{path}.clients.spiffeIDs");
        ports.push(DeclaredPort {
            name: given.name.clone(),
            port,
            target: target(&path, given)?,
            protocol: protocol(&path, given)?,
            clients: match &given.clients {
                Some(given) => Some(clients(&clients_path, given, exported_to)?),
                None => None,
            },
        });
    }
    Ok(ports)
}

fn target(path: &str, given: &Port) -> Result<Option<TargetPort>, Problem> {
    let path = format!("{path}.targetPort");
    match &given.target_port {
        None => Ok(None),
        Some(GivenTarget::Number(number)) => Ok(Some(TargetPort::Number(field::port(&path, *number)?))),
        Some(GivenTarget::Name(name)) => {
            let is_name = (1..=15).contains(&name.len())
                && name.bytes().any(|b| b.is_ascii_lowercase())
                && crate::model::name::is_dns_label(name);
            if is_name {
                return Ok(Some(TargetPort::Name(name.clone())));
            }
            let rule = "neither a number nor the name of a port: 1 to 15 of a-z, 0-9 and '-', with at least one letter and no '-' \
                        at either end (RFC 6335)";
            Err(Problem::of(&path, name, rule))
        }
    }
}

/// What `appProtocol` says. Without it the name of the port may say that it cannot be exported.
fn protocol(path: &str, given: &Port) -> Result<Option<AppProtocol>, Problem> {
    let no_udp = "UDP cannot be exported: neither mutual TLS nor a gateway's SNI is there for it";
    if let Some(text) = &given.app_protocol {
        let path = format!("{path}.appProtocol");
        return match AppProtocol::parse(text) {
            Some(protocol) => Ok(Some(protocol)),
            None if text.eq_ignore_ascii_case("udp") => Err(Problem::of(&path, text, no_udp)),
            None => {
                let rule = "it must be tcp, http, http2, grpc, https, tls or kubernetes.io/h2c; tcp serves any protocol \
                            over TCP";
                Err(Problem::of(&path, text, rule))
            }
        };
    }
    if AppProtocol::of_port_name(&given.name).is_some() {
        return Ok(None);
    }
    Err(Problem::of(&format!("{path}.name"), &given.name, format!("it begins with udp. {no_udp}")))
}

fn gateway(path: &str, given: &GivenGateway) -> Result<Gateway, Problem> {
    let gateway_type = match given.kind {
        GivenType::IngressGateway => GatewayType::IngressGateway,
        GivenType::EastWestGateway => GatewayType::EastWestGateway,
    };
    let address = address(path, given.hostname.as_deref(), given.ip.as_deref())?;
    let port = field::port(&format!("{path}.port"), given.port)?;
    Ok(Gateway { gateway_type, at: GatewayAddress { address, port } })
}

/// What is given as a name or as an IP address.
fn address(path: &str, hostname: Option<&str>, ip: Option<&str>) -> Result<Address, Problem> {
    match (hostname, ip) {
        (Some(hostname), None) => {
            let path = format!("{path}.hostname");
            match field::address(&path, hostname)? {
                Address::Ip(_) => Err(Problem::of(&path, hostname, "it is an IP address: give it as ip")),
                name @ Address::Dns(_) => Ok(name),
            }
        }
        (None, Some(ip)) => Ok(Address::Ip(field::ip(&format!("{path}.ip"), ip)?)),
        _ => Err(Problem::new(path, "give exactly one of hostname and ip")),
    }
}

#[cfg(test)]
#[path = "federated_service_tests.rs"]
pub(super) mod tests;
