use prost::Message as _;

use super::*;
use crate::bounded::Refused;
use crate::federation::catalogue::{MAX_SERVICE_BYTES, decode_service};
use crate::federation::convert::{MAX_TROUBLES, message};
use crate::federation::diagnose::MAX_CHECKS;
use crate::federation::manager::MAX_FRAME;
use crate::proto::federation::v1::frame::Body;

/// A frame of one field that is a message, in which one field is there again and again, and empty.
fn flood(body: u32, field: u8, times: usize) -> Vec<u8> {
    let entries = [field << 3 | 2, 0].repeat(times);
    let mut frame = Vec::new();
    prost::encoding::encode_key(body, prost::encoding::WireType::LengthDelimited, &mut frame);
    prost::encoding::encode_varint(entries.len() as u64, &mut frame);
    frame.extend(entries);
    frame
}

#[test]
fn a_frame_of_empty_entries_is_not_built() {
    for (body, field) in [(2, 6), (3, 2), (4, 2), (8, 2), (9, 3), (9, 4)] {
        let full = flood(body, field, MAX_FRAME / 2 - 8);
        assert!(full.len() <= MAX_FRAME, "it can be sent");
        let refused = proto::Frame::decode_bounded(&full);
        assert!(matches!(refused, Err(Refused::TooMany { .. })), "{body}.{field}: {refused:?}");
        // Nor is one that gives its message piece by piece.
        let pieces = flood(body, field, 1_000).repeat(MAX_FRAME / 2_010);
        let refused = proto::Frame::decode_bounded(&pieces);
        assert!(matches!(refused, Err(Refused::TooMany { .. })), "{body}.{field} in pieces");
    }
    let ids = flood(2, 2, MAX_FRAME / 2 - 8);
    for bundle in [1, 2, 4, 5] {
        let report = [vec![bundle << 3 | 2], ids[1..].to_vec()].concat();
        let mut frame = Vec::new();
        prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut frame);
        prost::encoding::encode_varint(report.len() as u64, &mut frame);
        frame.extend(report);
        assert!(matches!(proto::Frame::decode_bounded(&frame), Err(Refused::TooMany { .. })), "{bundle}");
    }
}

#[test]
fn a_service_of_empty_entries_is_not_built() {
    for field in [3, 5, 6, 7, 8] {
        let full = [field << 3 | 2, 0].repeat(MAX_SERVICE_BYTES / 2);
        let refused = proto::Service::decode_bounded(&full);
        assert!(matches!(refused, Err(Refused::TooMany { .. })), "{field}: {refused:?}");
        assert!(decode_service(&full).is_err());
    }
}

/// The largest of what an agent sends.
#[test]
fn what_agents_send_is_taken() {
    let held = Some(proto::HeldBundle {
        digest: vec![7; 32],
        authority_ids: vec!["ab".repeat(64); MAX_AUTHORITIES],
    });
    let longest = message(&"\u{1f512}".repeat(2_000));
    let trouble =
        proto::Trouble { condition: "x".repeat(64), reason: "x".repeat(64), message: longest.clone() };
    let outcome = proto::ServiceOutcome {
        name: "x".repeat(63),
        namespace: "x".repeat(63),
        imported: false,
        reason: "x".repeat(64),
        message: longest.clone(),
    };
    let check = proto::DiagnoseCheck {
        step: "x".repeat(64),
        message: longest.clone(),
        remedy: longest,
        ..Default::default()
    };
    let frames = [
        Body::TrustReport(proto::TrustReport {
            held: held.clone(),
            delivered: held.clone(),
            relationship: true,
            own: held.clone(),
            receipt: held,
            troubles: vec![trouble; MAX_TROUBLES],
        }),
        Body::CatalogueAck(proto::CatalogueAck { outcomes: vec![outcome; 200], ..Default::default() }),
        Body::DiagnoseReply(proto::DiagnoseReply { id: 1, checks: vec![check; MAX_CHECKS] }),
    ];
    for body in frames {
        let frame = proto::Frame { body: Some(body) };
        let bytes = frame.encode_to_vec();
        assert!(bytes.len() <= MAX_FRAME, "{} bytes", bytes.len());
        assert_eq!(proto::Frame::decode_bounded(&bytes), Ok(frame));
    }
}
