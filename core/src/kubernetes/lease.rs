//! Leader election by a `Lease`: which of several engines of one instance schedules.
//!
//! The holder renews the lease every few seconds. Another takes it when it has seen no change of
//! it for as long as it lasts, by its own clock and from when it saw the last one: clocks of
//! different machines are never compared. The holder's [`Term`] ends earlier, counted from before
//! the request that renewed it was sent, so that two terms never overlap. Who takes the lease
//! names the version that it has seen; of two that come at once the API server refuses one.
//!
//! The same requests tell every replica whether the API server answers: see
//! [`Contact`](super::cluster::Contact).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::{ApiError, Cluster, Part, digest};
use super::settings::LeaseSettings;
use crate::crash;
use crate::scheduler::{Election, Office, Term};

/// A candidate for one lease. Dropping it ends its term, and leaves the lease to run out.
#[derive(Debug)]
pub struct Lease {
    terms: watch::Receiver<Option<Term>>,
    stop: CancellationToken,
    campaign: Mutex<Option<JoinHandle<()>>>,
}

impl Lease {
    /// Looks at the lease, and stands for it from then on. An error is for people: the lease
    /// cannot be read at all.
    pub async fn stand(cluster: Cluster, settings: LeaseSettings) -> Result<Self, String> {
        let name = name(cluster.instance());
        let says = watch::Sender::new(None);
        let terms = says.subscribe();
        let mut campaign = Campaign {
            api: cluster.api(),
            labels: cluster.labels(Part::Lease),
            cluster,
            identity: identity(),
            duration: settings.duration.0,
            renew: settings.renew.0,
            seen: None,
            says,
            complaint: String::new(),
            name,
        };
        // As patient as all else at the start: nobody counts on this server yet.
        let look = campaign
            .cluster
            .answer(campaign.api.get_opt(&campaign.name));
        look.await.map_err(|error| {
            let name = &campaign.name;
            format!(
                "cannot read the lease {name}, by which servers agree on which schedules: {error}"
            )
        })?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let campaign = tokio::spawn(async move { campaign.run(token).await });
        Ok(Self {
            terms,
            stop,
            campaign: Mutex::new(Some(campaign)),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let campaign = self.campaign.get_mut();
        if let Some(campaign) = campaign.unwrap_or_else(PoisonError::into_inner) {
            campaign.abort();
        }
    }
}

#[async_trait]
impl Election for Lease {
    async fn elected(&self) -> Term {
        let mut terms = self.terms.clone();
        let elected = terms.wait_for(|term| term.as_ref().is_some_and(Term::holds));
        match elected.await.map(|term| term.clone()) {
            Ok(Some(term)) => term,
            // The campaign is over, and so is every term.
            _ => std::future::pending().await,
        }
    }

    async fn resign(&self) {
        self.stop.cancel();
        let campaign = {
            let mut campaign = self.campaign.lock().unwrap_or_else(PoisonError::into_inner);
            campaign.take()
        };
        if let Some(campaign) = campaign {
            // A panic in there was reported when it happened.
            let _ = campaign.await;
        }
    }
}

/// The name of the lease of an instance: engines of different ones never meet.
fn name(instance: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if instance.chars().all(|c| plain(c) || c == '-')
        && instance.starts_with(plain)
        && instance.ends_with(plain)
    {
        return format!("{instance}-scheduler");
    }
    // A label value may have letters that a name may not.
    let hex = digest(instance.as_bytes());
    format!("{hex}.tesk-scheduler")
}

/// Who holds it: the pod or machine, for people, and what no other process has.
fn identity() -> String {
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy().into_owned();
    format!("{machine}_{:016x}", rand::random::<u64>())
}

struct Campaign {
    cluster: Cluster,
    api: Api<Object>,
    name: String,
    labels: std::collections::BTreeMap<String, String>,
    identity: String,
    duration: Duration,
    renew: Duration,
    /// The version of the lease that was seen last, and since when it has been the same.
    seen: Option<(String, Instant)>,
    says: watch::Sender<Option<Term>>,
    /// What was complained of last.
    complaint: String,
}

impl Campaign {
    async fn run(&mut self, stop: CancellationToken) {
        loop {
            let Some((lease, office)) = stop.run_until_cancelled(self.follow()).await else {
                return;
            };
            let lease = self.lead(lease, &office, &stop).await;
            // The term is over before another can know that it is.
            drop(office);
            self.says.send_replace(None);
            if stop.is_cancelled() {
                if let Some(lease) = lease {
                    self.release(lease).await;
                }
                return;
            }
        }
    }

    /// Looks at the lease until it is to be had.
    async fn follow(&mut self) -> (Object, Office) {
        loop {
            match self.look().await {
                Ok(Some(taken)) => return taken,
                Ok(None) => self.complaint.clear(),
                Err(error) => self.complain(&error),
            }
            tokio::time::sleep(self.poll()).await;
        }
    }

    /// Takes the lease if it is free.
    async fn look(&mut self) -> Result<Option<(Object, Office)>, ApiError> {
        let there = self.get().await?;
        let free = match &there {
            None => true,
            Some(lease) => self.is_free(lease),
        };
        if !free {
            return Ok(None);
        }
        let sent = Instant::now();
        let taken = self.put(there.as_ref(), &self.identity, self.renew);
        match taken.await {
            Ok(lease) => {
                crash::point("lease.taken");
                let (office, term) = Office::take(sent + self.term());
                self.says.send_replace(Some(term));
                Ok(Some((lease, office)))
            }
            // Another was faster.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether its holder has given it up, or has not renewed it for as long as it lasts.
    fn is_free(&mut self, lease: &Object) -> bool {
        let version = lease
            .metadata
            .resource_version
            .as_deref()
            .unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version.to_owned(), now));
                now
            }
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        // Its holder may have been told of another duration.
        let said = spec.lease_duration_seconds.unwrap_or_default();
        let said = Duration::from_secs(said.try_into().unwrap_or_default());
        // What is ours was taken by a request whose answer was lost, or whose term has ended.
        holder.is_empty() || holder == self.identity || since.elapsed() >= said.max(self.duration)
    }

    /// Renews the lease as long as that succeeds in time. The lease as it is, if it is held
    /// still.
    async fn lead(
        &mut self,
        mut lease: Object,
        office: &Office,
        stop: &CancellationToken,
    ) -> Option<Object> {
        let mut wait = self.renew;
        loop {
            let next = Instant::now() + wait;
            tokio::select! {
                () = stop.cancelled() => return Some(lease),
                () = tokio::time::sleep_until(next.min(office.end())) => {}
            }
            let left = office.end().saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the lease could not be renewed in time");
                return None;
            }
            let sent = Instant::now();
            let renewal = self.put(Some(&lease), &self.identity, left.min(self.renew));
            match renewal.await {
                Ok(renewed) => {
                    crash::point("lease.renewed");
                    lease = renewed;
                    wait = self.renew;
                    self.complaint.clear();
                    if office.extend(sent + self.term()).is_err() {
                        return None;
                    }
                }
                Err(error) if error.is_conflict() => match self.get().await {
                    // By a renewal whose answer was lost, or by somebody's hand.
                    Ok(Some(there)) if holder(&there) == Some(&self.identity) => {
                        lease = there;
                        wait = Duration::ZERO;
                    }
                    Ok(_) => {
                        tracing::warn!("another server has the lease");
                        return None;
                    }
                    Err(error) => {
                        self.complain(&error);
                        wait = self.poll();
                    }
                },
                Err(error) if error.is_not_found() => {
                    tracing::warn!("somebody has removed the lease");
                    return None;
                }
                Err(error) => {
                    self.complain(&error);
                    wait = self.poll();
                }
            }
        }
    }

    /// Gives the lease back, so that nobody has to wait until it runs out.
    async fn release(&self, lease: Object) {
        if let Err(error) = self.put(Some(&lease), "", self.renew).await {
            tracing::warn!(%error, "the lease could not be given back; it runs out by itself");
        } else {
            crash::point("lease.released");
        }
    }

    async fn get(&self) -> Result<Option<Object>, ApiError> {
        self.ask(self.renew, self.api.get_opt(&self.name)).await
    }

    /// Writes the lease anew, if it is still as it was seen. Waits for `limit` at most.
    async fn put(
        &self,
        there: Option<&Object>,
        holder: &str,
        limit: Duration,
    ) -> Result<Object, ApiError> {
        let now = MicroTime(Timestamp::now());
        let before = there.and_then(|lease| lease.spec.clone());
        let before = before.unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(holder);
        let seconds = self.duration.as_secs_f64().ceil() as i32;
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds.max(1)),
            acquire_time: before
                .acquire_time
                .clone()
                .filter(|_| same)
                .or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(-1) + i32::from(!same)),
            ..before
        };
        let params = PostParams::default();
        let Some(there) = there else {
            let lease = Object {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some(self.labels.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    lease_transitions: Some(0),
                    ..spec
                }),
            };
            return self.ask(limit, self.api.create(&params, &lease)).await;
        };
        let lease = Object {
            metadata: there.metadata.clone(),
            spec: Some(spec),
        };
        let replaced = self.api.replace(&self.name, &params, &lease);
        self.ask(limit, replaced).await
    }

    /// Makes a request, and notes whether there was an answer.
    async fn ask<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        self.cluster.contact().try_out(limit, request).await
    }

    /// How long the holder counts on the lease after it was renewed. The rest is for clocks that
    /// run at different speeds, and for requests on their way.
    fn term(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// How often others look at it, and how soon a renewal that failed is tried again.
    fn poll(&self) -> Duration {
        self.renew / 5
    }

    fn complain(&mut self, error: &ApiError) {
        let complaint = error.to_string();
        if complaint != self.complaint {
            tracing::warn!(
                error = complaint,
                lease = self.name,
                "cannot take part in the election"
            );
            self.complaint = complaint;
        }
    }
}

fn holder(lease: &Object) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}
