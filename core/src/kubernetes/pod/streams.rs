//! Inputs that executors see where they are, on a claim, instead of a copy in scratch.
//!
//! What can be decided without a look at the claim is decided here; what is not possible is
//! copied. The rest the filer looks at before any executor's container starts
//! ([`check_mounted`](crate::staging::check_mounted)), and if it has to refuse, the next attempt
//! copies: so an input that is missing ends its task in the same words as any other.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::VolumeMount;

use super::volumes::{extra_name, read_only};
use crate::kubernetes::{Audience, ExtraMount, file_path};
use crate::plan::{InputSource, Plan, mounts, paths};
use crate::scheduler::AttemptId;

/// Marks the inputs of `plan` that are mounted, and gives their mounts.
pub(super) fn choose(
    attempt: &AttemptId,
    plan: &mut Cow<'_, Plan>,
    extras: &[ExtraMount],
) -> Vec<VolumeMount> {
    // What was wrong with the first attempt may have been a mount.
    let hinted = plan.inputs.iter().any(|input| input.streamable);
    if attempt.number > 1 || !hinted || extras.iter().all(|extra| extra.streamable.is_none()) {
        return Vec::new();
    }
    let room = mounts::MOST.saturating_sub(plan.mounts.len());
    let mut streams = Vec::new();
    let inputs = plan.to_mut().inputs.iter_mut();
    for input in inputs.filter(|input| input.streamable) {
        let InputSource::Url(url) = &input.from else {
            continue;
        };
        // A cluster mounts nothing at a path with a colon.
        if input.path.contains(':') || streams.len() == room.min(mounts::WANTED) {
            continue;
        }
        let Some((number, sub_path, seen)) = place(url, extras) else {
            continue;
        };
        streams.push(VolumeMount {
            sub_path: Some(sub_path),
            ..read_only(&extra_name(number), &input.path)
        });
        input.mounted = Some(seen);
    }
    streams
}

/// Which of the mounts has what is at `url`, at which path below its claim, and where the filer
/// sees it.
fn place(url: &str, extras: &[ExtraMount]) -> Option<(usize, String, String)> {
    let path = file_path(url)?;
    let prefixes = extras.iter().enumerate().filter_map(|(number, extra)| {
        let prefix = file_path(extra.streamable.as_deref()?)?;
        let below = path.strip_prefix(&prefix)?;
        Some((number, prefix, below))
    });
    let (number, _, below) =
        prefixes.max_by_key(|(_, prefix, _)| prefix.as_path().as_os_str().len())?;
    // All of a claim is more than an input.
    let below = below.as_path().to_str()?;
    if below.is_empty() || below.contains(char::is_control) {
        return None;
    }
    let from = &extras[number];
    let seen = format!("{}/{below}", from.path);
    // Below a path of the filer there may be another mount, which executors would not have there.
    let hides = |other: &ExtraMount| {
        other.audience == Audience::Filer
            && other.path.len() > from.path.len()
            && paths::is_within(&seen, &other.path)
    };
    if extras.iter().any(hides) {
        return None;
    }
    let within = from.sub_path.as_deref().unwrap_or_default();
    let sub_path = match within.trim_matches('/') {
        "" => below.to_owned(),
        within => format!("{within}/{below}"),
    };
    Some((number, sub_path, seen))
}
