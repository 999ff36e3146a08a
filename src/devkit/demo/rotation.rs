//! A step of the demo: one side changes its signing authority, while calls go on.

use anyhow::Context as _;
use tokio::sync::watch;

use super::run::{EAST, HOST, PEERS, PORT, STEP, Stage, WEST};
use super::story::Story;
use super::{LOOK, eventually};
use crate::model::AuthorityId;

/// What was seen of the calls that go on.
#[derive(Clone, Debug, Default)]
struct Seen {
    calls: u32,
    signed_by: Option<AuthorityId>,
}

impl Stage {
    pub(super) async fn rotate(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("West changes its signing authority, while calls go on")?;
        let (seen, mut calls) = watch::channel(Seen::default());
        let calling = async {
            loop {
                let answer = self.frontend.call(HOST, PORT).await.context("a call failed in the rotation")?;
                seen.send_modify(|seen| {
                    seen.calls += 1;
                    seen.signed_by = answer.server_signed_by;
                });
                tokio::time::sleep(LOOK / 5).await;
            }
        };
        // One call that fails ends the demo.
        tokio::select! {
            failed = calling => failed,
            rotated = self.change_authority(&mut calls, story) => rotated,
        }
    }

    async fn change_authority(
        &self,
        calls: &mut watch::Receiver<Seen>,
        story: &mut Story<'_>,
    ) -> anyhow::Result<()> {
        let spire = self.west.spire();
        let old = spire.slots().active;
        let new = spire.prepare()?;
        story.say(format!("{WEST}: prepared authority {new}; {old} still signs"))?;
        // It is safe once the other side says that it holds the new authority.
        eventually("the other side holds the new authority", STEP, async || {
            let held = self.east.spire().federated_bundle(self.west.trust_domain());
            let held = held.map(|bundle| bundle.authority_ids()).unwrap_or_default();
            anyhow::ensure!(held.contains(&new), "{EAST} does not hold {new}");
            let [_, status, _, message] = self.west.condition(PEERS, EAST, "RotationSafe")?;
            anyhow::ensure!(status == "True", "{message}");
            let identity = self.frontend.identity().context("it has an SVID")?;
            let received = identity.federated.get(self.west.trust_domain());
            anyhow::ensure!(received.is_some_and(|b| b.authority_ids().contains(&new)), "not delivered");
            Ok(())
        })
        .await?;
        story.say(format!("{EAST}: holds it, delivers it, and said so: RotationSafe"))?;
        spire.activate(&new)?;
        spire.taint(&old)?;
        story.say(format!("{WEST}: activated {new}; {old} is tainted, its SVIDs are replaced"))?;
        let answered =
            tokio::time::timeout(STEP, calls.wait_for(|seen| seen.signed_by.as_ref() == Some(&new)));
        let count = answered.await.with_context(|| format!("no answer with an SVID of {new}"))??.calls;
        story.say(format!(
            "the service answers with an SVID of {new}; {count} calls meanwhile, none failed"
        ))?;
        Ok(())
    }
}
