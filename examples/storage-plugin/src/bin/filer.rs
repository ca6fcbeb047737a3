//! The filer with DRS: cargo build --features filer --bin filer

fn main() -> std::process::ExitCode {
    tesk_filer::main(&tesk_backends::builtin().with("drs", tesk_drs::DrsFactory))
}
