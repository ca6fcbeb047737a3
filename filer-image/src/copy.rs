//! `filer copy`: moves files between any two storages, or a storage and this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use futures_util::{TryStreamExt, stream};
use tesk_core::rooted::{RelPath, Root, Symlinks};
use tesk_core::storage::{EntryKind, LocalPath, RegistryBuilder, StorageUrl};
use tesk_core::transfer::Engine;

use crate::{progress, storages};

/// Files on their way at once. What really runs in parallel the engine's own limits decide.
const PARALLEL: usize = 32;

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

enum End {
    Url(StorageUrl),
    Local(LocalPath),
}

/// Copies, and prints files, bytes and seconds. Gives the exit code: 0.
pub async fn run(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<u8> {
    let engine = storages::engine(plugins, options.config.as_deref())?;
    let (from, mut to) = (end(&options.from)?, end(&options.to)?);
    if options.config.is_none() && matches!((&from, &to), (End::Local(_), End::Local(_))) {
        // Without a configuration file urls mean this machine, so that a path is one too.
        to = End::Url(StorageUrl::from_path(&std::path::absolute(&options.to)?));
    }
    let begin = Instant::now();
    let work = async {
        if options.recursive {
            directory(&engine, from, to).await
        } else {
            file(&engine, from, to).await
        }
    };
    let (files, bytes) = progress::shown("copy", &engine, work).await?;
    println!(
        "{files} files, {bytes} bytes, {:.3} s",
        begin.elapsed().as_secs_f64()
    );
    Ok(0)
}

fn end(text: &str) -> anyhow::Result<End> {
    if text.contains("://") {
        return Ok(End::Url(
            text.parse().map_err(|error| anyhow!("the url {error}"))?,
        ));
    }
    let path = Path::new(text);
    let unusable = || format!("{text} is not usable");
    let name = path.file_name().with_context(unusable)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let root = Root::open(parent, Symlinks::Beneath).with_context(unusable)?;
    Ok(End::Local(LocalPath {
        root: Arc::new(root),
        path: RelPath::new(name.as_encoded_bytes()).with_context(unusable)?,
    }))
}

async fn file(engine: &Engine, from: End, to: End) -> anyhow::Result<(usize, u64)> {
    let moved = match (from, to) {
        (End::Url(from), End::Local(to)) => engine.fetch_file(&from, &to, false).await?,
        (End::Local(from), End::Url(to)) => engine.store_file(&from, &to).await?,
        (End::Url(from), End::Url(to)) => engine.copy(&from, &to).await?,
        (End::Local(_), End::Local(_)) => bail!("one of the two must be a url"),
    };
    Ok((1, moved.size))
}

async fn directory(engine: &Engine, from: End, to: End) -> anyhow::Result<(usize, u64)> {
    match (from, to) {
        (End::Url(from), End::Local(to)) => {
            let moved = engine.fetch_directory(&from, &to).await?;
            Ok((moved.len(), moved.iter().map(|file| file.size).sum()))
        }
        (End::Local(from), End::Url(to)) => {
            let found = from
                .root
                .walk(&from.path)?
                .map(|found| found.map_err(anyhow::Error::from));
            let copies = stream::iter(found).map_ok(async |found| {
                let url = to.join(text(&found.path)?);
                if found.metadata.is_dir() {
                    engine.make_directory(&url).await?;
                    return Ok(None);
                }
                let file = LocalPath {
                    root: from.root.clone(),
                    path: from.path.join(&found.path),
                };
                anyhow::Ok(Some(engine.store_file(&file, &url).await?.size))
            });
            sum(copies.try_buffer_unordered(PARALLEL)).await
        }
        (End::Url(from), End::Url(to)) => {
            let storage = engine.registry().route(&from)?;
            let entries = storage.list(&from).await?.map_err(anyhow::Error::from);
            let copies = entries.map_ok(async |entry| {
                // What a server lists may be hostile.
                let path = RelPath::new(&entry.path)
                    .filter(|path| !path.is_root())
                    .with_context(|| format!("the server lists the name {:?}", entry.path))?;
                let to = to.join(text(&path)?);
                match entry.kind {
                    EntryKind::Directory => {
                        engine.make_directory(&to).await?;
                        Ok(None)
                    }
                    EntryKind::File(_) => {
                        let moved = engine.copy(&from.join(&entry.path), &to).await?;
                        anyhow::Ok(Some(moved.size))
                    }
                }
            });
            sum(copies.try_buffer_unordered(PARALLEL)).await
        }
        (End::Local(_), End::Local(_)) => bail!("one of the two must be a url"),
    }
}

fn text(path: &RelPath) -> anyhow::Result<&str> {
    let path = path.as_path();
    path.to_str()
        .with_context(|| format!("{}: its name is not UTF-8", path.display()))
}

/// Files and bytes of all that was copied.
async fn sum(
    copies: impl stream::Stream<Item = anyhow::Result<Option<u64>>>,
) -> anyhow::Result<(usize, u64)> {
    copies
        .try_fold((0, 0), async |(files, bytes), size| {
            Ok(match size {
                Some(size) => (files + 1, bytes + size),
                None => (files, bytes),
            })
        })
        .await
}
