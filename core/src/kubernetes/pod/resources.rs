//! What containers ask for.
//!
//! Executors run one after another, so each may have all that the task asks for, and the pod
//! must not ask for more than that once: either the pod itself does, where the server knows such
//! resources, or the first executor does, and all others ask for as little as they may.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Surroundings;
use super::parameters::Asked;

type Amounts = BTreeMap<String, Quantity>;

fn quantity(amount: &impl ToString) -> Quantity {
    Quantity(amount.to_string())
}

fn amounts<const N: usize>(amounts: [(&str, Quantity); N]) -> Amounts {
    amounts
        .map(|(name, amount)| (name.to_owned(), amount))
        .into()
}

/// As little as the namespace allows.
fn least(surroundings: &Surroundings) -> Amounts {
    let least = surroundings.features.least;
    let cpu = match least.millicores {
        0 => quantity(&0),
        some => quantity(&format!("{some}m")),
    };
    amounts([("cpu", cpu), ("memory", quantity(&least.memory))])
}

/// All that the task asks for, and no less than the namespace allows.
fn whole(asked: &Asked, surroundings: &Surroundings) -> Amounts {
    let least = surroundings.features.least;
    let cpu = if u64::from(asked.cpu_cores) * 1000 >= least.millicores {
        quantity(&asked.cpu_cores)
    } else {
        quantity(&format!("{}m", least.millicores))
    };
    amounts([
        ("cpu", cpu),
        ("memory", quantity(&asked.memory.max(least.memory))),
    ])
}

/// `None` where the server has no such thing.
pub(super) fn of_pod(asked: &Asked, surroundings: &Surroundings) -> Option<ResourceRequirements> {
    if !surroundings.features.pod_resources {
        return None;
    }
    // No less than its containers together, which the server would refuse.
    let least = surroundings.features.least;
    let containers = asked.executors as u64 + 2;
    let millicores = (u64::from(asked.cpu_cores) * 1000).max(least.millicores * containers);
    let memory = asked.memory.max(least.memory * containers);
    Some(ResourceRequirements {
        requests: Some(amounts([
            ("cpu", quantity(&format!("{millicores}m"))),
            ("memory", quantity(&memory)),
        ])),
        ..ResourceRequirements::default()
    })
}

pub(super) fn of_filer(surroundings: &Surroundings) -> ResourceRequirements {
    let memory = surroundings.settings.filer_memory.0;
    let memory = memory.max(surroundings.features.least.memory);
    ResourceRequirements {
        requests: Some(least(surroundings)),
        limits: Some(amounts([("memory", quantity(&memory))])),
        claims: None,
    }
}

pub(super) fn of_executor(
    number: usize,
    asked: &Asked,
    surroundings: &Surroundings,
) -> ResourceRequirements {
    let mut limits = whole(asked, surroundings);
    if asked.cpu_cores == 0 {
        limits.remove("cpu");
    }
    let mut requests = if number == 0 && !surroundings.features.pod_resources {
        whole(asked, surroundings)
    } else {
        least(surroundings)
    };
    if let Some(size) = asked
        .scratch
        .filter(|_| number == 0 && asked.scratch_class.is_none())
    {
        requests.insert("ephemeral-storage".into(), quantity(&size));
    }
    // These cannot be lent from one container to the next.
    for (name, count) in &asked.extended {
        limits.insert(name.clone(), quantity(count));
        requests.insert(name.clone(), quantity(count));
    }
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        claims: None,
    }
}
