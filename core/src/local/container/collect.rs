//! Outputs that lie in a container itself, beside what is mounted.

use std::sync::Arc;

use super::Containers;
use crate::plan::{OutputSource, PlannedOutput, glob::Pattern};
use crate::rooted::RelPath;
use crate::staging::{self, Collected, Failure};

/// Where in scratch the engine's command copies one output to; executors do not see it.
const COPIED: &str = "/.tesk/copied";

impl Containers<'_> {
    pub(super) fn collects(&self) -> bool {
        let mut outputs = self.order.plan.outputs.iter();
        outputs.any(|output| output.collected_at.is_some())
    }

    /// Copies outputs that lie in the container itself to where they are collected.
    pub(super) async fn collect(&self, name: &str) -> Collected {
        let mut collected = Collected::default();
        for output in &self.order.plan.outputs {
            if output.collected_at.is_none() {
                continue;
            }
            let (from, copied) = match &output.from {
                OutputSource::File(path) => (path.clone(), self.copy(name, path).await),
                OutputSource::Directory(path) => {
                    let from = format!("{path}/.");
                    (path.clone(), self.copy(name, &from).await)
                }
                OutputSource::Pattern { pattern, .. } => {
                    let from = Pattern::new(pattern).directory();
                    let copied = self.copy(name, &format!("{from}/.")).await;
                    (from, copied)
                }
            };
            let failed = |error: String| {
                let message = format!(
                    "outputs[{}]: {from} is not collected: {error}",
                    output.index
                );
                let retryable = !is_full(&message);
                Failure { message, retryable }
            };
            match copied {
                Ok(()) => match self.bring_over(output).await {
                    Ok(more) => collected.extend(more),
                    Err(error) => collected.failures.push(failed(error)),
                },
                // A later executor may make it.
                Err(error) if is_missing(&error) => collected.notes.push(failed(error).message),
                Err(error) => collected.failures.push(failed(error)),
            }
        }
        let _ = RelPath::new(COPIED).map(|copied| self.scratch.remove_all(&copied));
        collected
    }

    /// Copies `from` in a container to [`COPIED`]. The engine's command follows the symlinks that
    /// it finds where it writes, with our rights, and it is a command of the task that made what
    /// it copies: so nothing that was copied before may lie there.
    async fn copy(&self, name: &str, from: &str) -> Result<(), String> {
        let fresh = || {
            let copied = RelPath::new(COPIED).ok_or(std::io::ErrorKind::InvalidFilename)?;
            let directory = copied.parent().unwrap_or_default();
            self.scratch.remove_all(&copied)?;
            self.scratch.create_dir_all(&directory, 0o700)
        };
        fresh().map_err(|error: std::io::Error| error.to_string())?;
        let target = self.scratch.path().join(COPIED.trim_start_matches('/'));
        let (from, target) = (format!("{name}:{from}"), target.to_string_lossy());
        let copied = self.engine.output(&["cp", &from, &target]).await;
        copied.map(drop).map_err(|error| error.to_string())
    }

    /// Brings what was copied of an output over to where it is collected.
    async fn bring_over(&self, output: &PlannedOutput) -> Result<Collected, String> {
        let (scratch, output) = (Arc::clone(&self.scratch), output.clone());
        let plan = self.order.plan.clone();
        let work = move || staging::collect_copied(&plan, &output, COPIED, &scratch);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())
    }
}

/// Whether the engine's words mean that a container has nothing at a path.
fn is_missing(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    [
        "could not find the file",
        "could not be found",
        "no such file",
    ]
    .iter()
    .any(|sign| words.contains(sign))
}

/// Whether the engine's words mean that a disk has no room left for a file.
fn is_full(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    ["no space left", "quota exceeded", "file too large"]
        .iter()
        .any(|sign| words.contains(sign))
}
