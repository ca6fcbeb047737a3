//! The filer as real processes, without Kubernetes: the containers of a pod are processes that
//! share a hand-over directory, and scratch is `/`, so that container paths are real ones.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod integration {
    // What one pod does from its first container to its report.
    mod chain;
    // `filer copy`.
    mod copy;
    // Hand-over files as a hostile command would leave them.
    mod hostile;
    // Each step killed at each stage: the others end, and tell the truth.
    mod killed;
    // Inputs that are mounted, and whether they can be.
    mod mounted;
    // Plans in volumes, and the passwords that they miss.
    mod packed;
    // The pod that the others run.
    mod pod;
    // A delivery that is told to end leaves nothing at its server.
    mod stopped;
    // Supervision as only a real process can be: PID 1, signals, memory.
    mod supervisor;
}
