//! Which ports a service is exported with: their numbers at the workload, and what they speak.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::known::Known;
use crate::api::v1alpha1::conditions::ExportedReason;
use crate::api::v1alpha1::limits;
use crate::model::cluster::{ClusterPort, ClusterService, Pod, TargetPort, Transport};
use crate::model::export::{DeclaredPort, DeclaredService, Note};
use crate::model::name::is_dns_label;
use crate::model::service::{AppProtocol, ExportedPort, TlsMode};

/// What ports are decided by.
pub(super) struct Source<'a> {
    /// How messages name what is exported.
    pub who: &'a str,
    /// The Service that backs it, where one does.
    pub service: Option<&'a ClusterService>,
    pub pods: &'a [&'a Arc<Pod>],
    pub known: &'a Known,
}

type Answer<T> = Result<T, (ExportedReason, String)>;

impl Source<'_> {
    /// The ports, in the order in which they are given. `notes` is told of those of a Service that are left out.
    pub(super) fn ports(
        &self,
        declared: &DeclaredService,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<ExportedPort>, Note> {
        match self.service.filter(|_| declared.ports.is_empty()) {
            Some(service) => self.all_of(service, declared.tls_mode, notes),
            None => {
                let given = declared.ports.iter();
                given.map(|port| self.declared(port, declared.tls_mode, notes)).collect()
            }
        }
    }

    fn note(&self, (reason, cause): (ExportedReason, String)) -> Note {
        Note { reason, message: format!("{}: {cause}", self.who) }
    }

    fn declared(
        &self,
        given: &DeclaredPort,
        tls_mode: TlsMode,
        notes: &mut Vec<Note>,
    ) -> Result<ExportedPort, Note> {
        let of_service = match self.service {
            Some(service) => self.of_service(service, given).map_err(|problem| self.note(problem))?,
            None => None,
        };
        let said = given.protocol.or_else(|| of_service.and_then(ClusterPort::said));
        let protocol = said.or_else(|| AppProtocol::said_by_port_name(&given.name));
        let target = match (&given.target, of_service) {
            (Some(target), _) => target.clone(),
            (None, Some(port)) => port.target.clone(),
            (None, None) => TargetPort::Number(given.port),
        };
        Ok(ExportedPort {
            name: given.name.clone(),
            port: given.port,
            target_port: self.number(given.port, &target, notes)?,
            protocol: protocol.unwrap_or_else(|| unsaid(tls_mode)),
            clients: given.clients.clone(),
        })
    }

    /// The port of the Service with the same number. There must be one, unless the port says itself where it leads.
    fn of_service<'s>(
        &self,
        service: &'s ClusterService,
        given: &DeclaredPort,
    ) -> Answer<Option<&'s ClusterPort>> {
        let mut same = service.ports.iter().filter(|port| port.number == given.port).peekable();
        let is_there = same.peek().is_some();
        let found = same.find(|port| port.transport == Transport::Tcp);
        match found {
            None if is_there => {
                let cause = format!(
                    "port {} of Service {} is not TCP, and nothing else can be exported; take it out of spec.ports",
                    given.port, service.object
                );
                Err((ExportedReason::PortNotTcp, cause))
            }
            None if given.target.is_none() => {
                let cause = format!(
                    "Service {} has no port {}; mend it in spec.ports, or give its targetPort",
                    service.object, given.port
                );
                Err((ExportedReason::PortNotFound, cause))
            }
            found => Ok(found),
        }
    }

    /// Every TCP port of a Service. One whose target is not known is left out, as long as there is another.
    fn all_of(
        &self,
        service: &ClusterService,
        tls_mode: TlsMode,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<ExportedPort>, Note> {
        let (mut ports, mut numbers, mut others) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut unknown = Vec::new();
        for port in &service.ports {
            if port.transport != Transport::Tcp {
                others.push(port.number.to_string());
                continue;
            }
            if !numbers.insert(port.number) {
                continue;
            }
            match self.number(port.number, &port.target, notes) {
                Ok(target_port) => ports.push(ExportedPort {
                    name: name_of(port),
                    port: port.number,
                    target_port,
                    protocol: port.said().unwrap_or_else(|| unsaid(tls_mode)),
                    clients: None,
                }),
                Err(note) => unknown.push(note),
            }
        }
        if !others.is_empty() {
            let cause = format!(
                "of Service {}, what is not TCP cannot be exported and is left out: {}",
                service.object,
                others.join(", ")
            );
            notes.push(self.note((ExportedReason::PortNotTcp, cause)));
        }
        if ports.len() > limits::PORTS {
            let cause = format!(
                "Service {} has {} TCP ports, and importers take at most {} of one; name those to export in the spec.ports \
                 of a FederatedService",
                service.object,
                ports.len(),
                limits::PORTS
            );
            return Err(self.note((ExportedReason::TooManyPorts, cause)));
        }
        if ports.is_empty() {
            let cause =
                format!("Service {} has no TCP port, and nothing else can be exported", service.object);
            let none = || self.note((ExportedReason::NoTcpPort, cause));
            return Err(unknown.into_iter().next().unwrap_or_else(none));
        }
        notes.extend(unknown);
        Ok(ports)
    }

    /// The number of a port at the workload.
    fn number(&self, port: u16, target: &TargetPort, notes: &mut Vec<Note>) -> Result<u16, Note> {
        let name = match target {
            TargetPort::Number(number) => return Ok(*number),
            TargetPort::Name(name) => name,
        };
        let numbers: BTreeSet<u16> =
            self.pods.iter().filter_map(|pod| pod.named_ports.get(name)).copied().collect();
        let out = self.known.target(port);
        match (numbers.first(), out) {
            (Some(number), _) if numbers.len() == 1 => Ok(*number),
            // As when the last pod has gone.
            (None, Some(out)) => Ok(out),
            (None, None) => {
                let cause = format!(
                    "none of the {} pods has a TCP port named {name:?}, where port {port} leads; start the pods, name the \
                     port in them, or give its number as targetPort",
                    self.pods.len()
                );
                Err(self.note((ExportedReason::TargetPortUnknown, cause)))
            }
            (Some(_), out) => {
                let all: Vec<String> = numbers.iter().map(u16::to_string).collect();
                let cause = format!(
                    "the pods have the port named {name:?}, where port {port} leads, at {}; make them equal, or give one \
                     number as targetPort",
                    all.join(", ")
                );
                let unequal = self.note((ExportedReason::TargetPortUnequal, cause));
                // As while the pods are replaced by such as listen elsewhere.
                match out.filter(|out| numbers.contains(out)) {
                    Some(out) => {
                        notes.push(unequal);
                        Ok(out)
                    }
                    None => Err(unequal),
                }
            }
        }
    }
}

/// What a port speaks of which nothing is said. Where the application ends TLS, that is what it speaks.
fn unsaid(tls_mode: TlsMode) -> AppProtocol {
    match tls_mode {
        TlsMode::IstioMtls => AppProtocol::Tcp,
        TlsMode::Mtls => AppProtocol::Tls,
    }
}

/// The only port of a Service may have no name.
fn name_of(port: &ClusterPort) -> String {
    if is_dns_label(&port.name) { port.name.clone() } else { format!("port-{}", port.number) }
}
