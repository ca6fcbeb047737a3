//! What a task asks for, with the operator's defaults, and what its `backend_parameters` mean.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::settings::{Parameters, ReferenceData, Settings};
use super::is_label_value;
use crate::config::Span;
use crate::plan::Plan;
use crate::tes::ParameterCheck;

/// The least scratch space, in bytes.
const LEAST_SCRATCH: u64 = 64 << 20;
/// The most of an extended resource that can be asked for.
const MOST_RESOURCES: u32 = 1024;

/// What a task asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asked {
    pub(super) executors: usize,
    pub(super) cpu_cores: u32,
    /// Bytes.
    pub(super) memory: u64,
    /// Bytes; `None` is no limit.
    pub(super) scratch: Option<u64>,
    pub(super) scratch_class: Option<String>,
    pub(super) extended: BTreeMap<String, u32>,
    pub(super) node_selector: BTreeMap<String, String>,
    pub(super) priority_class: Option<String>,
    pub(super) runtime_class: Option<String>,
    pub(super) image_pull_secret: Option<String>,
    pub(super) queue: Option<String>,
    pub(super) reference_data: Vec<ReferenceData>,
    pub(super) time_limit: Option<Duration>,
}

impl Asked {
    pub(super) fn new(plan: &Plan, settings: &Settings) -> Result<Self, String> {
        let resources = &plan.resources;
        let memory = resources.ram_bytes.unwrap_or(settings.default_memory.0);
        let scratch = match resources.disk_bytes {
            Some(bytes) => Some(bytes.max(LEAST_SCRATCH)),
            None => Some(settings.default_scratch.0).filter(|bytes| *bytes > 0),
        };
        let mut asked = Self {
            executors: plan.executors.len(),
            cpu_cores: resources.cpu_cores.unwrap_or(settings.default_cpu_cores),
            memory: memory.max(settings.min_memory.0),
            scratch,
            scratch_class: settings.scratch_class.clone(),
            ..Self::default()
        };
        for (key, value) in &resources.backend_parameters {
            // What was accepted under another configuration may not be allowed any more.
            check(&settings.parameters, key, value)
                .map_err(|msg| format!("backend parameter {key} {msg}"))?;
            asked.take(&settings.parameters, key, value);
        }
        Ok(asked)
    }

    fn take(&mut self, parameters: &Parameters, key: &str, value: &str) {
        let named = || Some(value.to_owned());
        match key {
            "priority_class" => self.priority_class = named(),
            "queue" => self.queue = named(),
            "runtime_class" => self.runtime_class = named(),
            "storage_class" => self.scratch_class = named(),
            "image_pull_secret" => self.image_pull_secret = named(),
            "time_limit" => self.time_limit = value.parse().ok().map(|Span(limit)| limit),
            "reference_data" => {
                // Named twice it is mounted once.
                let names: BTreeSet<&str> = list(value).collect();
                let known = names
                    .into_iter()
                    .filter_map(|name| parameters.reference_data.get(name));
                self.reference_data = known.cloned().collect();
            }
            _ => {
                if let Some(name) = parameters.resources.get(key) {
                    let count = value.parse().unwrap_or_default();
                    self.extended.insert(name.clone(), count);
                } else if let Some(label) = parameters.node_selector.get(key) {
                    self.node_selector.insert(label.clone(), value.to_owned());
                }
            }
        }
    }
}

/// Parameters whose names the operator cannot give away.
pub(in super::super) const NAMES: [&str; 7] = [
    "image_pull_secret",
    "priority_class",
    "queue",
    "reference_data",
    "runtime_class",
    "storage_class",
    "time_limit",
];

/// The parameters that are supported, each with the check of its value, for validation.
pub fn checks(parameters: &Parameters) -> BTreeMap<String, ParameterCheck> {
    // Of a name that is not supported every value is refused so.
    let supported = |name: &&str| check(parameters, name, "") != unsupported();
    let names = NAMES.into_iter().filter(supported);
    let own = parameters
        .resources
        .keys()
        .chain(parameters.node_selector.keys());
    names
        .chain(own.map(String::as_str))
        .map(|key| {
            let (parameters, name) = (parameters.clone(), key.to_owned());
            let check = move |value: &str| check(&parameters, &name, value);
            (key.to_owned(), ParameterCheck::new(check))
        })
        .collect()
}

fn unsupported() -> Result<(), String> {
    Err("is not supported by this server".into())
}

pub(super) fn check(parameters: &Parameters, key: &str, value: &str) -> Result<(), String> {
    let one_of = |allowed: &[String]| {
        if allowed.is_empty() {
            unsupported()
        } else if allowed.iter().any(|name| name == value) {
            Ok(())
        } else {
            Err(format!("must be {}", allowed.join(" or ")))
        }
    };
    match key {
        "priority_class" => one_of(&parameters.priority_classes),
        "queue" => one_of(&parameters.queues),
        "runtime_class" => one_of(&parameters.runtime_classes),
        "storage_class" => one_of(&parameters.storage_classes),
        "image_pull_secret" => one_of(&parameters.image_pull_secrets),
        "time_limit" if parameters.time_limit => match value.parse() {
            Ok(Span(limit)) if limit >= Duration::from_secs(1) => Ok(()),
            _ => Err("must be a length of time such as 90m, of a second at least".into()),
        },
        "reference_data" if !parameters.reference_data.is_empty() => {
            let known = &parameters.reference_data;
            if list(value).all(|name| known.contains_key(name)) {
                return Ok(());
            }
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            Err(format!("must be a list of {}", names.join(", ")))
        }
        _ if parameters.resources.contains_key(key) => match value.parse::<u32>() {
            Ok(1..=MOST_RESOURCES) => Ok(()),
            _ => Err(format!("must be a number from 1 to {MOST_RESOURCES}")),
        },
        _ if parameters.node_selector.contains_key(key) => {
            if is_label_value(value) {
                Ok(())
            } else {
                Err("must be a label value: letters, digits and -_. , at most 63".into())
            }
        }
        _ => unsupported(),
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}
