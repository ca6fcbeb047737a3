//! The plan as a file, and what executors may see of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use tesk_core::plan::{Plan, VERSION, packed};
use tesk_core::tes::UrlSecrets;

/// The name of the plan that [`prepare`](crate::prepare) puts beside the binary, for executors.
pub const FOR_EXECUTORS: &str = "plan.json";

/// Reads a plan; one of another version is refused. It is a file with JSON, or a directory with
/// the parts of a packed plan ([`packed`]): all files whose names begin with `plan`, in order.
pub fn read(path: &Path) -> anyhow::Result<Plan> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let unreadable = || format!("cannot read {}", path.display());
    let json = if path.is_dir() {
        let parts = parts(path).with_context(unreadable)?;
        packed::unpack(&parts)
            .map_err(|error| anyhow!("{} is not a packed plan: {error}", path.display()))?
    } else {
        std::fs::read(path).with_context(unreadable)?
    };
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

/// The same with the passwords of its urls, if they are kept in a file of their own.
pub fn read_whole(path: &Path, secrets: Option<&Path>) -> anyhow::Result<Plan> {
    let mut plan = read(path)?;
    if let Some(secrets) = secrets {
        let json =
            std::fs::read(secrets).with_context(|| format!("cannot read {}", secrets.display()))?;
        // What serde would say of it could quote a password.
        let secrets: UrlSecrets = serde_json::from_slice(&json)
            .map_err(|_| anyhow!("{} does not hold passwords of urls", secrets.display()))?;
        plan.restore(&secrets);
    }
    Ok(plan)
}

fn parts(directory: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(b"plan") {
            names.push(name);
        }
    }
    names.sort();
    let mut parts = String::new();
    for name in names {
        File::open(directory.join(name))?.read_to_string(&mut parts)?;
    }
    Ok(parts)
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
