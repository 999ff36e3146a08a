//! Whether our own mesh lets services to and from the peer work. What only is open wider than it need be is told, and breaks
//! nothing.

use super::View;
use crate::diagnose::check::{Finding, Side};
use crate::model::mesh::Seen;
use crate::plan::{exports, mesh as planned};

pub(super) fn mesh(view: View<'_>) -> Finding {
    let Some(mesh) = view.world.mesh.as_deref() else {
        return Finding::skipped("no mesh is followed here");
    };
    let peer = &view.peer.trust_domain;
    let report = planned::report(view.world, view.world, &exports::exports(view.world));
    let found = report.of(peer);
    if let Some(worst) = found.first().filter(|_| report.breaks(peer)) {
        let others = planned::in_words(found.get(1..).unwrap_or_default());
        let message = if others.is_empty() {
            worst.message.clone()
        } else {
            format!("{}; and {others}", worst.message)
        };
        return Finding::failed(Side::Ours, message, worst.remedy.clone());
    }
    let seen = match &mesh.config {
        Seen::Unread => return Finding::skipped("the mesh configuration was not read yet"),
        Seen::Absent if found.is_empty() => return Finding::skipped("there is no mesh configuration here"),
        Seen::Absent => "there is no mesh configuration here".to_owned(),
        Seen::Unreadable(why) => format!("the mesh configuration cannot be read: {why}"),
        Seen::There(config) => format!("ConfigMap {} lets services with {peer} work", config.object),
    };
    let told = planned::unseen_sds(mesh).filter(|_| report.has_services(peer)).map(str::to_owned);
    let words: Vec<String> = std::iter::once(seen)
        .chain((!found.is_empty()).then(|| planned::in_words(found)))
        .chain(told)
        .collect();
    Finding::passed(words.join("; but "))
}
