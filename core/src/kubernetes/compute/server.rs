//! What the API server can, and what the namespace asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LimitRange;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ListParams;

use crate::kubernetes::cluster::{ApiError, Cluster};
use crate::kubernetes::pod::{Features, Least};

/// Asks the server. A version that is too old is an error.
pub(super) async fn features(cluster: &Cluster) -> Result<Features, String> {
    let version = cluster
        .answer(cluster.client().apiserver_version())
        .await
        .map_err(|error| format!("cannot ask for the cluster's version: {error}"))?;
    let digits = |text: &str| {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text[..end].parse::<u32>().unwrap_or(0)
    };
    let version = (digits(&version.major), digits(&version.minor));
    if version < (1, 25) {
        return Err(format!(
            "the cluster is Kubernetes {}.{}; 1.25 or later is needed",
            version.0, version.1
        ));
    }
    let least = least(cluster).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read limit ranges; if there are any, pods may be refused");
        Least::default()
    });
    Ok(Features {
        pod_resources: version >= (1, 34),
        least,
    })
}

/// The strictest minimum of the namespace's limit ranges.
pub(super) async fn least(cluster: &Cluster) -> Result<Least, ApiError> {
    let api = cluster.api::<LimitRange>();
    let ranges = cluster.answer(api.list(&ListParams::default())).await?;
    let limits = ranges.into_iter().filter_map(|range| range.spec);
    let limits = limits.flat_map(|spec| spec.limits);
    let minima = limits
        .filter(|limit| limit.type_ == "Container")
        .filter_map(|limit| limit.min);
    Ok(minima.fold(Least::default(), |least, min| Least {
        millicores: least.millicores.max(quantity(&min, "cpu", 1000)),
        memory: least.memory.max(quantity(&min, "memory", 1)),
    }))
}

/// An amount in units of `1 / factor`, rounded up; 0 if it is not there or cannot be read.
fn quantity(amounts: &BTreeMap<String, Quantity>, name: &str, factor: u64) -> u64 {
    const UNITS: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("", 1.0),
    ];
    let Some(text) = amounts.get(name).map(|amount| amount.0.trim()) else {
        return 0;
    };
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (unit, size) = unit.unwrap_or(&("", 1.0));
    let number: f64 = text[..text.len() - unit.len()].parse().unwrap_or(0.0);
    (number * size * factor as f64).ceil() as u64
}
