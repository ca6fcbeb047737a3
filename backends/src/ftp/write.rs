//! Writing a file: under another name first, then renamed.

use std::sync::Arc;

use futures_util::stream::StreamExt as _;
use tesk_core::rooted;
use tesk_core::storage::cleanup::Undo;
use tesk_core::storage::{ByteRange, Error, ErrorKind, Result, Source, StorageUrl, Written};
use tokio::io::AsyncWriteExt as _;

use super::connection::Data;
use super::listing::Kind;
use super::path;
use super::pool::{Lease, Site, Use};
use super::reply::Failure;

const MESSAGE: &str = "cannot be written";

/// Writes `source` to the file `target`; its directories are made.
pub(super) async fn write(
    mut lease: Lease,
    url: &StorageUrl,
    target: &str,
    source: &Source,
) -> Result<Written> {
    let Some(parent) = path::parent(target) else {
        let message = "is the root directory, not a file";
        return Err(Error::new(ErrorKind::Invalid, url, message));
    };
    make_directory(&mut lease, url, parent).await?;
    let name = path::join(parent, &rooted::temp_name());
    let remove = || tidy(&lease.site, url, &name, None);
    let temporary = Undo::new(remove()).and_late(remove());
    let done = async {
        let size = store(&mut lease, url, parent, &name, source).await?;
        rename(&mut lease, url, &name, target).await?;
        Ok(Written {
            size,
            version: None,
            checksum: None,
        })
    }
    .await;
    // Frees the connection for the removal, if it is still good.
    drop(lease);
    temporary.unless_ok(done).await
}

async fn store(
    lease: &mut Lease,
    url: &StorageUrl,
    parent: &str,
    name: &str,
    source: &Source,
) -> Result<u64> {
    let mut bytes = source.read(ByteRange::FULL).await?;
    let command = format!("STOR {name}");
    let opened = match lease.open_data(&command, 0).await {
        // The directory may be gone since it was seen.
        Err(Failure::Reply(reply)) if matches!(reply.code, 450 | 550 | 553) => {
            lease.site.forget_directories();
            make_directory(lease, url, parent).await?;
            lease.open_data(&command, 0).await
        }
        opened => opened,
    };
    let mut data = opened.map_err(|failure| lease.error(failure, url, MESSAGE))?;
    let mut size = 0;
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk?;
        if let Err(error) = data.write_all(&chunk).await {
            return Err(broken(lease, url, data, error).await);
        }
        size += chunk.len() as u64;
    }
    if let Err(error) = data.shutdown().await {
        return Err(broken(lease, url, data, error).await);
    }
    // How long a server may take to confirm is for core to say.
    let done = lease.finish(data, None).await;
    done.map_err(|failure| lease.error(failure, url, MESSAGE))?;
    // An end of the stream is all that a server sees of a connection that was cut.
    let found = lease.size(name).await;
    match found.map_err(|failure| lease.error(failure, url, MESSAGE))? {
        Some(found) if found != size => {
            let message = format!("{found} bytes arrived of {size}");
            Err(Error::new(ErrorKind::Corrupt, url, message))
        }
        _ => Ok(size),
    }
}

async fn broken(lease: &mut Lease, url: &StorageUrl, data: Data, error: std::io::Error) -> Error {
    let failure = lease.why_broken(data, error).await;
    lease.error(failure, url, MESSAGE)
}

/// Renames a file over whatever file is at `to`.
pub(super) async fn rename(
    lease: &mut Lease,
    url: &StorageUrl,
    from: &str,
    to: &str,
) -> Result<()> {
    let message = "cannot be renamed";
    let fail = |lease: &Lease, reply| Err(lease.error(Failure::Reply(reply), url, message));
    let Err(refused) = rename_once(lease, url, from, to).await? else {
        return Ok(());
    };
    let at_target = lease.stat(to).await;
    match at_target.map_err(|failure| lease.error(failure, url, message))? {
        Some(Kind::Directory) => {
            let message = "there is a directory of that name";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        // It may be that the server does not rename over files.
        Some(_) if !refused.says_denied() => {}
        _ => {
            let found = lease.stat(from).await;
            if matches!(found, Ok(None)) {
                let message = "there is no such file";
                return Err(Error::new(ErrorKind::NotFound, url, message));
            }
            return fail(lease, refused);
        }
    }
    let parent = path::parent(to).unwrap_or("/");
    let name = path::join(parent, &rooted::temp_name());
    let aside = Undo::new(tidy(&lease.site, url, &name, Some(to)));
    if rename_once(lease, url, to, &name).await?.is_err() {
        aside.keep();
        return fail(lease, refused);
    }
    if let Err(refused) = rename_once(lease, url, from, to).await? {
        if rename_once(lease, url, &name, to).await?.is_ok() {
            aside.keep();
        }
        return fail(lease, refused);
    }
    let deleted = lease.command(format!("DELE {name}")).await;
    if deleted.is_ok_and(|reply| reply.is_done()) {
        aside.keep();
    }
    Ok(())
}

/// The inner result is what the server says.
async fn rename_once(
    lease: &mut Lease,
    url: &StorageUrl,
    from: &str,
    to: &str,
) -> Result<Result<(), super::reply::Reply>> {
    let fail = |lease: &Lease, failure| lease.error(failure, url, "cannot be renamed");
    let reply = lease.command(format!("RNFR {from}")).await;
    let reply = reply.map_err(|failure| fail(lease, failure))?;
    if reply.code != 350 {
        return Ok(Err(reply));
    }
    let reply = lease.command(format!("RNTO {to}")).await;
    let reply = reply.map_err(|failure| fail(lease, failure))?;
    Ok(if reply.is_done() { Ok(()) } else { Err(reply) })
}

/// Makes the directory `path` and those it is in.
pub(super) async fn make_directory(lease: &mut Lease, url: &StorageUrl, path: &str) -> Result<()> {
    if lease.site.knows_directory(path) {
        return Ok(());
    }
    let message = "its directory cannot be made";
    let site = lease.site.clone();
    let _alone = site.making.lock().await;
    let mut missing = Vec::new();
    let mut at = path;
    while !lease.site.knows_directory(at) {
        let there = lease.is_directory(at).await;
        if there.map_err(|failure| lease.error(failure, url, message))? {
            lease.site.learn_directory(at);
            break;
        }
        missing.push(at);
        at = path::parent(at).unwrap_or("/");
    }
    for path in missing.into_iter().rev() {
        let reply = lease.command(format!("MKD {path}")).await;
        let reply = reply.map_err(|failure| lease.error(failure, url, message))?;
        if !reply.is_done() {
            // Somebody else may have been faster.
            let there = lease.is_directory(path).await;
            if !there.map_err(|failure| lease.error(failure, url, message))? {
                match lease.stat(path).await {
                    // One that cannot be listed, perhaps only just now, may still be written to.
                    Ok(Some(Kind::Directory)) => {}
                    Ok(Some(Kind::File(_))) => {
                        let message = format!("`{path}` is a file, not a directory");
                        return Err(Error::new(ErrorKind::Invalid, url, message));
                    }
                    _ => return Err(lease.error(Failure::Reply(reply), url, message)),
                }
            }
        }
        lease.site.learn_directory(path);
    }
    Ok(())
}

/// Removes the file or the empty directory `path`.
pub(super) async fn remove(lease: &mut Lease, url: &StorageUrl, path: &str) -> Result<()> {
    let message = "cannot be removed";
    let fail = |lease: &Lease, failure| Err(lease.error(failure, url, message));
    let reply = match lease.command(format!("DELE {path}")).await {
        Ok(reply) if reply.is_done() => return Ok(()),
        Ok(reply) => reply,
        Err(failure) => return fail(lease, failure),
    };
    match lease.stat(path).await {
        Ok(None) => Ok(()),
        Ok(Some(Kind::Directory)) => {
            lease.site.forget_directory(path);
            match lease.command(format!("RMD {path}")).await {
                Ok(reply) if reply.is_done() => Ok(()),
                Ok(reply) if reply.says_not_empty() => {
                    let message = "the directory is not empty";
                    Err(Error::new(ErrorKind::Invalid, url, message))
                }
                Ok(reply) => fail(lease, Failure::Reply(reply)),
                Err(failure) => fail(lease, failure),
            }
        }
        Ok(Some(_)) => fail(lease, Failure::Reply(reply)),
        Err(failure) => fail(lease, failure),
    }
}

/// Removes the file `path`, which is not finished, or gives it the name `target` again, for which
/// it stepped aside.
fn tidy(
    site: &Arc<Site>,
    url: &StorageUrl,
    path: &str,
    target: Option<&str>,
) -> impl Future<Output = ()> + Send + use<> {
    let (site, url, path) = (site.clone(), url.clone(), path.to_owned());
    let target = target.map(str::to_owned);
    async move {
        let removed = async {
            let mut lease = site.lease(Use::Commands, &url).await?;
            match target {
                Some(target) => put_back(&mut lease, &url, &path, &target).await,
                None => remove(&mut lease, &url, &path).await,
            }
        };
        // The first error is the one to tell.
        if let Err(error) = removed.await {
            tracing::warn!(%error, path, "a temporary file is left behind");
        }
    }
}

/// Gives the file `path` the name `target` again, or removes it if something else has that name.
async fn put_back(lease: &mut Lease, url: &StorageUrl, path: &str, target: &str) -> Result<()> {
    let message = "what was to be replaced cannot be put back";
    let is_there = async |lease: &mut Lease, path| {
        let found = lease.stat(path).await;
        found
            .map(|found| found.is_some())
            .map_err(|failure| lease.error(failure, url, message))
    };
    if !is_there(lease, target).await? {
        let Err(refused) = rename_once(lease, url, path, target).await? else {
            return Ok(());
        };
        // Unless another was faster, or it never stepped aside.
        if is_there(lease, path).await? && !is_there(lease, target).await? {
            return Err(lease.error(Failure::Reply(refused), url, message));
        }
    }
    remove(lease, url, path).await
}
