//! The `tesk` command. One with more storages is this file with a `.with(…)` for each.

fn main() -> std::process::ExitCode {
    tesk_api::main(tesk_backends::builtin())
}
