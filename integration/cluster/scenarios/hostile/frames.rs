//! The protocol itself: versions, hellos, frames that are none, catalogues that are not what they claim.

use crate::hostile::{Line, frame, version_of};
use crate::scenarios::trio::{Trio, WEST, encoded, with_trio};
use crate::scenarios::{SOON, peer_says};
use crate::wait::{always, eventually};
use anyhow::{Context, Result, ensure};
use entente::proto::federation::v1::frame::Body;
use entente::proto::federation::v1::{CatalogueAck, CatalogueSnapshot, HeldBundle, Hello, TrustReport};
use prost::Message as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// West has one good service imported.
async fn with_one(trio: &Trio, line: &Line) -> Result<()> {
    let service = trio.hostile.service("shop", "good");
    trio.offer(line, &encoded(&[service]), &["good.shop"]).await?;
    Ok(())
}

/// What was imported is still there, as it was.
async fn stands(trio: &Trio, during: Duration) -> Result<()> {
    let host = format!("good.shop.{WEST}");
    let of = |all: super::super::trio::Everything| -> Vec<(String, String)> {
        all.into_iter()
            .filter(|(name, _)| name.starts_with("ServiceEntry") && name.ends_with(&host))
            .collect()
    };
    let before = of(trio.everything().await?);
    ensure!(before.len() == 1, "{before:?}");
    always("what was imported stands", during, || async {
        let now = of(trio.everything().await?);
        ensure!(now == before, "{before:?}, now {now:?}");
        Ok(())
    })
    .await
}

/// A hello that cannot be: each ends the exchange, with the reason in the agent's goodbye.
#[test]
fn wrong_hellos_end_the_exchange() {
    with_trio(async |trio, line| {
        with_one(trio, &line).await?;
        drop(line);
        let good = trio.hostile.hello();
        let wrong = [
            (Hello { protocol_version: 0, ..good.clone() }, "without a protocol version"),
            (Hello { trust_domain: "north.example".to_owned(), ..good.clone() }, "over the identity of"),
            (Hello { trust_domain: "east.example".to_owned(), ..good.clone() }, "over the identity of"),
            (Hello { trust_domain: String::new(), ..good.clone() }, "over the identity of"),
        ];
        for (hello, words) in wrong {
            let ended = trio.hostile.dial(frame(Body::Hello(hello))).await?.ended().await?;
            ensure!(ended.contains(words), "{ended}");
        }
        let first = frame(Body::TrustReport(TrustReport::default()));
        let ended = trio.hostile.dial(first).await?.ended().await?;
        ensure!(ended.contains("before the Hello"), "{ended}");
        stands(trio, Duration::from_secs(2)).await
    });
}

/// A version of the protocol that is not here yet is met at ours; frames that are not known are passed over.
#[test]
fn a_later_version_is_met_at_ours() {
    with_trio(async |trio, line| {
        drop(line);
        let later = Hello { protocol_version: u32::MAX, ..trio.hostile.hello() };
        let line = eventually("the agent takes a later version", SOON, || async {
            let line = trio.hostile.dial(frame(Body::Hello(later.clone()))).await?;
            // A frame of field 1,000.
            line.bytes(vec![0xc2, 0x3e, 4, 1, 2, 3, 4]).await?;
            line.offer(&[]).await?;
            Ok(line)
        })
        .await?;
        with_one(trio, &line).await
    });
}

/// Bytes that are no frame end the exchange, and take nothing away.
#[test]
fn broken_frames_take_nothing_away() {
    with_trio(async |trio, line| {
        with_one(trio, &line).await?;
        let short =
            |bytes: &[u8]| CatalogueSnapshot { version: bytes.to_vec(), ..CatalogueSnapshot::default() };
        let broken: Vec<(&str, Vec<u8>)> = vec![
            ("no protobuf", vec![0xff; 64]),
            ("a length past the end", vec![0x1a, 0xff, 0xff, 0xff, 0x7f, 1]),
            ("a second hello", frame(Body::Hello(trio.hostile.hello()))),
            ("a version of one byte", frame(Body::Catalogue(short(&[1])))),
            ("a catalogue that is not its version", frame(Body::Catalogue(short(&[7; 32])))),
            ("an answer to no version", frame(Body::CatalogueAck(CatalogueAck::default()))),
            (
                "a digest of 3 bytes",
                frame(Body::TrustReport(TrustReport {
                    held: Some(HeldBundle { digest: vec![1, 2, 3], authority_ids: Vec::new() }),
                    ..TrustReport::default()
                })),
            ),
            ("a frame over the limit", vec![0x1a; 5 * 1024 * 1024]),
        ];
        let mut line = line;
        for (what, bytes) in broken {
            line.bytes(bytes).await?;
            let ended = line.ended().await.context(what)?;
            drop(line);
            stands(trio, Duration::from_millis(500)).await.with_context(|| format!("{what}: {ended}"))?;
            line = eventually("the agent takes it back", SOON, || async {
                let line = trio.hostile.dial(frame(Body::Hello(trio.hostile.hello()))).await?;
                let services = encoded(&[trio.hostile.service("shop", "good")]);
                line.offer(&services).await?;
                Ok(line)
            })
            .await?;
        }
        stands(trio, Duration::from_secs(1)).await
    });
}

/// What is no gRPC at all, on a connection with the right identity.
#[test]
fn noise_on_the_connection_harms_nothing() {
    with_trio(async |trio, line| {
        with_one(trio, &line).await?;
        for noise in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
        ] {
            let mut stream = trio.hostile.tls().await?;
            stream.write_all(noise).await?;
            let mut answer = Vec::new();
            let end = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
            ensure!(end.is_ok(), "the agent holds on to {} bytes of noise", noise.len());
        }
        stands(trio, Duration::from_secs(1)).await?;
        peer_says(&trio.east, &trio.west, "Connected", "True", "Connected").await?;
        Ok(())
    });
}

/// A catalogue of which the end never comes says nothing; nor does a line that is cut in the middle of it.
#[test]
fn an_unfinished_catalogue_takes_nothing_away() {
    with_trio(async |trio, line| {
        with_one(trio, &line).await?;
        let services = encoded(&[trio.hostile.service("shop", "other")]);
        let version = version_of(&services);
        line.say(Body::Catalogue(CatalogueSnapshot { version, services, more: true })).await?;
        stands(trio, Duration::from_secs(2)).await?;
        drop(line);
        stands(trio, Duration::from_secs(2)).await
    });
}

/// A peer that says hello and no catalogue has not said that it exports nothing.
#[test]
fn a_peer_that_offers_nothing_at_all_takes_nothing_away() {
    with_trio(async |trio, line| {
        with_one(trio, &line).await?;
        drop(line);
        let line = eventually("the agent takes a hello", SOON, || async {
            let line = trio.hostile.dial(frame(Body::Hello(trio.hostile.hello()))).await?;
            line.say(Body::TrustReport(TrustReport::default())).await?;
            always("the line stays", Duration::from_secs(1), || async {
                ensure!(line.said().ended.is_none(), "{:?}", line.said().ended);
                Ok(())
            })
            .await?;
            Ok(line)
        })
        .await?;
        stands(trio, Duration::from_secs(5)).await?;
        drop(line);
        Ok(())
    });
}

/// A service that is no protobuf harms only itself.
#[test]
fn a_service_that_cannot_be_decoded_harms_only_itself() {
    with_trio(async |trio, line| {
        let good = trio.hostile.service("shop", "good").encode_to_vec();
        let services = vec![vec![0xff; 40], vec![], vec![0x0a; 600 * 1024], good];
        let outcomes = trio.offer(&line, &services, &["good.shop"]).await?;
        ensure!(outcomes.get("good.shop") == Some(&None), "{outcomes:?}");
        // Those that do not even tell a name are alike to the peer.
        ensure!(outcomes.get(".") == Some(&Some("Malformed".to_owned())), "{outcomes:?}");
        trio.says(&["1 imported", "3 refused"]).await
    });
}
