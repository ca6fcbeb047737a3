//! Places where tests end or stop the server: each is between one thing that others can see and
//! the next.
//!
//! A release knows nothing of them: all of it is compiled to nothing. A debug build that was started
//! with `TESK_CRASH=<point>` kills itself when it comes there, as `conformance/cluster/faults` does:
//!
//! | variable | |
//! |---|---|
//! | `TESK_CRASH=<point>[:<n>]` | SIGKILL when it comes to the point for the n-th time (1) |
//! | `TESK_STOP=<point>[:<n>]` | SIGSTOP instead |
//! | `TESK_SWEEP=<seconds>` | how often it sweeps, and looks for left-over objects, which count as such when they are ten times as old |

/// Every point, and what has been done when it is reached.
#[cfg(any(test, debug_assertions))]
pub(crate) const POINTS: &[(&str, &str)] = &[
    ("start.config", "the filer's configuration is written"),
    ("lease.taken", "the lease is taken"),
    ("lease.renewed", "the lease is renewed"),
    ("lease.released", "the lease is given back"),
    ("create.key", "an idempotency key is taken"),
    ("create.document", "the parts of a document are made"),
    ("create.note", "it is noted that there will be a Secret"),
    ("create.secret", "the Secret is made"),
    ("create.head", "the record is made, and nobody told"),
    ("update.logs", "the parts of new logs are made"),
    ("update.head", "a record is changed"),
    ("update.discard", "the logs before are removed"),
    ("secret.removed", "a Secret is removed, its note is not"),
    ("attempt.reserved", "the number of an attempt is reserved"),
    ("attempt.plan", "a part of a plan is made"),
    ("attempt.pod", "a pod is made"),
    ("attempt.stopped", "a pod that is stuck is told so"),
    ("attempt.lost", "an attempt is given up, its pod is there"),
    (
        "attempt.ended",
        "a final state is written, the pod is there",
    ),
    ("cancel.requested", "CANCELING is written, and nobody told"),
    ("cancel.pod", "the pod of a canceled task is told to end"),
    ("remove.pod", "a pod is removed, its plan is not"),
    ("remove.plan", "a part of a plan is removed"),
    ("sweep.attempt", "a left-over attempt is ended or removed"),
    ("sweep.key", "the key of an old task is removed"),
    ("sweep.head", "the record of an old task is removed"),
    ("sweep.texts", "its document and logs are removed"),
    ("sweep.orphan", "a left-over object is removed"),
];

/// A place in the code by its name in `POINTS`.
#[cfg(not(any(test, debug_assertions)))]
#[inline]
pub(crate) fn point(_name: &'static str) {}

#[cfg(all(test, feature = "kubernetes"))]
pub(crate) use armed::on_this_thread;
#[cfg(any(test, debug_assertions))]
pub(crate) use armed::point;
#[cfg(all(debug_assertions, feature = "kubernetes"))]
pub(crate) use armed::sweep;

#[cfg(any(test, debug_assertions))]
mod armed {
    use std::cell::RefCell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::POINTS;

    type Hook = Box<dyn FnMut(&'static str)>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// What happens where, once.
    struct Armed {
        name: String,
        left: AtomicU32,
        signal: Signal,
    }

    /// A place in the code by its name in `POINTS`.
    pub(crate) fn point(name: &'static str) {
        HOOK.with_borrow_mut(|hook| {
            if let Some(hook) = hook {
                hook(name);
            }
        });
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        for armed in ARMED.get_or_init(from_environment) {
            if armed.name == name && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                // It fails for no process that may be signaled, as this one may.
                let _ = kill_process(getpid(), armed.signal);
            }
        }
    }

    fn from_environment() -> Vec<Armed> {
        let signals = [("TESK_CRASH", Signal::KILL), ("TESK_STOP", Signal::STOP)];
        let armed = signals.into_iter().filter_map(|(variable, signal)| {
            let text = std::env::var(variable).ok()?;
            let (name, n) = text.split_once(':').unwrap_or((&text, "1"));
            assert!(
                POINTS.iter().any(|(point, _)| *point == name),
                "{variable}: there is no point {name}"
            );
            let n = n.parse().expect("TESK_CRASH, TESK_STOP: <point>:<n>");
            let left = AtomicU32::new(n);
            let name = name.to_owned();
            Some(Armed { name, left, signal })
        });
        armed.collect()
    }

    /// `TESK_SWEEP`.
    #[cfg(all(debug_assertions, feature = "kubernetes"))]
    pub(crate) fn sweep() -> Option<std::time::Duration> {
        let seconds = std::env::var("TESK_SWEEP").ok()?.parse().ok()?;
        Some(std::time::Duration::from_secs(seconds))
    }

    /// Has `hook` called at each point that this thread comes to.
    #[cfg(all(test, feature = "kubernetes"))]
    pub(crate) fn on_this_thread(hook: impl FnMut(&'static str) + 'static) {
        HOOK.set(Some(Box::new(hook)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::POINTS;

    fn sources(directory: &Path, text: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_point_is_at_one_place_in_the_code_and_has_a_name_in_the_list() {
        let mut text = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut text,
        );
        let call = concat!("crash::", "point(\"");
        let mut found: Vec<&str> = text
            .split(call)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        found.sort_unstable();
        let mut listed: Vec<&str> = POINTS.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        assert_eq!(found, listed);
    }
}
