//! Candidates for one lease of a stand-in.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::config::Span;
use tesk_core::kubernetes::LeaseSettings;
use tesk_core::kubernetes::lease::Lease;
use tesk_core::scheduler::Election as _;

use super::cluster;
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "election":
        of_two_candidates_one_is_elected_and_hands_over_at_once,
        a_candidate_that_vanishes_is_replaced_after_its_lease,
        a_server_begins_though_the_first_answer_takes_longer_than_a_renewal_may,
        a_holder_that_cannot_renew_stops_before_its_lease_runs_out,
    ]
}

const LASTS: Duration = Duration::from_secs(3);

async fn stand(server: &FakeApi) -> Result<Lease> {
    let settings = LeaseSettings {
        duration: Span(LASTS),
        renew: Span(LASTS / 6),
    };
    let lease = Lease::stand(cluster(server), settings).await;
    lease.map_err(anyhow::Error::msg)
}

/// Who holds the lease.
fn holder(server: &FakeApi) -> Option<Value> {
    let lease = server.object("leases", "tesk-scheduler")?;
    Some(lease["spec"]["holderIdentity"].clone())
}

async fn is_elected(lease: &Lease) -> bool {
    let soon = Duration::from_millis(300);
    tokio::time::timeout(soon, lease.elected()).await.is_ok()
}

async fn of_two_candidates_one_is_elected_and_hands_over_at_once() -> Result<()> {
    let server = FakeApi::new();
    let one = stand(&server).await?;
    let term = one.elected().await;
    let two = stand(&server).await?;
    tokio::time::sleep(LASTS + LASTS / 2).await;
    ensure!(term.holds() && !is_elected(&two).await);
    let before = holder(&server);
    let begun = Instant::now();
    one.resign().await;
    ensure!(!term.holds());
    ensure!(holder(&server) != before, "it has kept the lease");
    ensure!(two.elected().await.holds() && begun.elapsed() < LASTS);
    Ok(())
}

async fn a_candidate_that_vanishes_is_replaced_after_its_lease() -> Result<()> {
    let server = FakeApi::new();
    let one = stand(&server).await?;
    let term = one.elected().await;
    let begun = Instant::now();
    let two = stand(&server).await?;
    drop(one);
    tokio::time::timeout(LASTS / 3, term.over()).await?;
    ensure!(!term.holds());
    ensure!(two.elected().await.holds());
    let took = begun.elapsed();
    ensure!(took > LASTS * 3 / 4 && took < LASTS * 2, "{took:?}");
    Ok(())
}

async fn a_server_begins_though_the_first_answer_takes_longer_than_a_renewal_may() -> Result<()> {
    let server = FakeApi::new();
    let mut first = true;
    server.intercept(move |call| {
        let late = call.verb == "get" && std::mem::take(&mut first);
        late.then_some(Fault::Delay(LASTS / 3))
    });
    let lease = stand(&server).await?;
    ensure!(lease.elected().await.holds());
    Ok(())
}

async fn a_holder_that_cannot_renew_stops_before_its_lease_runs_out() -> Result<()> {
    let server = FakeApi::new();
    let one = stand(&server).await?;
    let term = one.elected().await;
    server.intercept(|call| (call.verb == "update").then_some(Fault::Hang));
    let begun = Instant::now();
    term.over().await;
    ensure!(begun.elapsed() < LASTS && !term.holds());
    server.heal();
    ensure!(one.elected().await.holds());
    Ok(())
}
