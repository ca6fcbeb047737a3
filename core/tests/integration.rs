//! The local engine from outside: its store, and tasks from end to end.
//!
//! This binary is also the program that the engine starts for each attempt, and the server that
//! the crash tests kill: [`main`] looks at its arguments before it becomes a test runner.

mod integration {
    pub(crate) mod store;
}

use std::process::ExitCode;

use integration::store;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("__store-writer") => return store::writer(&arguments[2]),
        _ => {}
    }
    let mut trials = Vec::new();
    trials.extend(store::trials());
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
