//! The plan as a file, and what executors may see of it.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use tesk_core::plan::{Plan, VERSION};

/// The name of the plan that [`prepare`](crate::prepare) puts beside the binary, for executors.
pub const FOR_EXECUTORS: &str = "plan.json";

/// Reads a plan; one of another version is refused.
pub fn read(path: &Path) -> anyhow::Result<Plan> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let json = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let broken = || format!("{} is not a plan", path.display());
    let Versioned { version } = serde_json::from_slice(&json).with_context(broken)?;
    if version != VERSION {
        bail!(
            "{} is a plan of version {version}; this filer reads version {VERSION}",
            path.display()
        );
    }
    serde_json::from_slice(&json).with_context(broken)
}

/// The plan without what is none of an executor's business: inputs, and where outputs go.
/// Addresses may hold credentials, and a command could read them.
#[must_use]
pub fn for_executors(mut plan: Plan) -> Plan {
    plan.inputs = Vec::new();
    for output in &mut plan.outputs {
        output.url = String::new();
    }
    plan
}
