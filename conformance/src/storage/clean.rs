//! Leaves a storage as it was found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tesk_core::storage::{EntryKind, Error, ErrorKind, Storage, StorageUrl};

/// How long that may take.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Files removed at the same time.
const AT_ONCE: usize = 8;
/// An object store can have a file and a directory of one name: then one pass shows the other.
const PASSES: usize = 3;

/// Removes a directory with all that is in it, where the storage can. Gives the reason why
/// something is left after trying for as long as `patience`.
pub(super) async fn remove(
    storage: &Arc<dyn Storage>,
    url: &StorageUrl,
    patience: Duration,
) -> Result<(), String> {
    let claims = storage.capabilities();
    for (claim, name) in [(claims.list, "list"), (claims.remove, "remove")] {
        if !claim {
            return Err(format!("`{name}` is not claimed"));
        }
    }
    let begun = Instant::now();
    loop {
        match try_remove(storage, url).await {
            // The storage itself may still be about to remove something.
            Err(_) if begun.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

async fn try_remove(storage: &Arc<dyn Storage>, url: &StorageUrl) -> Result<(), String> {
    // A task of its own: a storage that panics has been judged already.
    let (storage, url) = (storage.clone(), url.clone());
    let mut removing = tokio::spawn(async move { remove_tree(&storage, &url).await });
    match tokio::time::timeout(TIMEOUT, &mut removing).await {
        Ok(Ok(done)) => done.map_err(|error| error.to_string()),
        Ok(Err(_)) => Err("the storage panicked".to_owned()),
        Err(_) => {
            removing.abort();
            Err(format!("it took longer than {} s", TIMEOUT.as_secs()))
        }
    }
}

async fn remove_tree(storage: &Arc<dyn Storage>, url: &StorageUrl) -> Result<(), Error> {
    for _ in 0..PASSES {
        let listed = match storage.list(url).await {
            Ok(entries) => entries.try_collect::<Vec<_>>().await,
            Err(error) => Err(error),
        };
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (mut directories, mut files) = (vec![url.clone()], Vec::new());
        for entry in entries {
            let at = url.join(&entry.path);
            match entry.kind {
                EntryKind::File(_) => files.push(at),
                EntryKind::Directory => directories.push(at),
            }
        }
        let removals = stream::iter(files).map(|file| async move { storage.remove(&file).await });
        let mut removals = removals.buffer_unordered(AT_ONCE);
        while let Some(removed) = removals.next().await {
            removed?;
        }
        // The deepest first.
        directories.sort_by_key(|url| std::cmp::Reverse(url.path_and_rest().len()));
        for directory in directories {
            storage.remove(&directory).await?;
        }
        if storage.stat(url).await?.is_none() {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Other, url, "something in it remains"))
}
