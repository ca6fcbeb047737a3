//! `filer copy`: moves files between any two storages, or a storage and this machine.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::anyhow;
use tesk_core::storage::{RegistryBuilder, StorageUrl};
use tesk_core::transfer::End;

use crate::{progress, storages};

/// The options of `filer copy`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where from: a url, or a path of this machine.
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: a url, or a path of this machine. Always the full name of the copy.
    #[arg(value_name = "TO")]
    pub to: String,
    /// Copies a directory with everything below it.
    #[arg(short, long)]
    pub recursive: bool,
    /// The configuration file with the storages.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Copies, and prints files, bytes and seconds. Gives the exit code: 0.
pub async fn run(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<u8> {
    let engine = storages::engine(plugins, options.config.as_deref())?;
    let end = |text: &str| End::parse(text).map_err(|error| anyhow!(error));
    let (from, mut to) = (end(&options.from)?, end(&options.to)?);
    if options.config.is_none() && matches!((&from, &to), (End::Local(_), End::Local(_))) {
        // Without a configuration file urls mean this machine, so that a path is one too.
        to = End::Url(StorageUrl::from_path(&std::path::absolute(&options.to)?));
    }
    let begin = Instant::now();
    let work = async {
        if options.recursive {
            engine.copy_directory(&from, &to).await
        } else {
            engine.copy_file(&from, &to).await
        }
    };
    let copied = progress::shown("copy", &engine, work).await?;
    println!(
        "{} files, {} bytes, {:.3} s",
        copied.files,
        copied.bytes,
        begin.elapsed().as_secs_f64()
    );
    Ok(0)
}
