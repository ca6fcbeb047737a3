//! The local engine from outside: its store, and tasks from end to end.
//!
//! This binary is also the program that the engine starts for each attempt, and the server that
//! the crash tests kill: [`main`] looks at its arguments before it becomes a test runner.

mod integration {
    /// Processes that are killed, and what comes after.
    pub(crate) mod crash;
    /// Engines, tasks and waiting for them.
    pub(crate) mod harness;
    /// The parts of the Kubernetes engine.
    #[cfg(feature = "kubernetes")]
    pub(crate) mod kubernetes;
    /// Executors in containers.
    pub(crate) mod podman;
    /// The loop that decides.
    pub(crate) mod scheduler;
    /// The SQLite store.
    pub(crate) mod store;
    /// Tasks from end to end, on this machine itself.
    pub(crate) mod tasks;
}

use std::path::Path;
use std::process::ExitCode;

use integration::{crash, harness, podman, scheduler, store, tasks};
use libtest_mimic::{Arguments, Failed, Trial};
use tesk_core::local::{attempt, sandbox};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match arguments.as_slice() {
        ["__attempt", files, directory] => {
            return attempt::main(Path::new(directory), || {
                harness::transfer_engine(Path::new(files))
            });
        }
        [sandbox::ARGUMENT, ..] => return sandbox::main(),
        ["__server", place] => return crash::server(Path::new(place)),
        ["__store-writer", directory] => return store::writer(directory),
        _ => {}
    }
    let mut trials = store::trials();
    trials.extend(scheduler::trials());
    trials.extend(tasks::trials());
    trials.extend(crash::trials());
    trials.extend(podman::trials());
    #[cfg(feature = "kubernetes")]
    trials.extend(integration::kubernetes::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test of async code, with a runtime of its own.
pub(crate) fn trial<F>(name: impl Into<String>, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>>,
{
    Trial::test(name, move || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(test())
            .map_err(|error| Failed::from(format!("{error:?}")))
    })
}

/// Trials of async functions, under their own names.
#[macro_export]
macro_rules! trials {
    ($group:literal: $($name:ident),* $(,)?) => {
        vec![$($crate::trial(concat!($group, "::", stringify!($name)), $name)),*]
    };
}
