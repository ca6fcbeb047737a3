//! Writing a file: under another name first, then moved.

use std::sync::Arc;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tesk_core::storage::cleanup::Undo;
use tesk_core::storage::{Error, ErrorKind, Result, Source, StorageUrl, Written};

use super::super::{client, head, put, reply};
use super::{Dav, Kind, directory, done, header, parent, plain, temp_name};

impl Dav {
    /// Writes `source` to the file `url`; its directories are made.
    pub(in super::super) async fn write(
        self: &Arc<Self>,
        url: &StorageUrl,
        source: &Source,
    ) -> Result<Written> {
        let url = plain(url)?;
        let Some(parent) = parent(&url) else {
            let message = "is the root directory, not a file";
            return Err(Error::new(ErrorKind::Invalid, &url, message));
        };
        self.have_directory(&parent).await?;
        if self.atomic_put {
            return self.store(&url, &url, &parent, source).await;
        }
        let at = url.sibling(&temp_name());
        let remove = || {
            let (dav, at) = (self.clone(), at.clone());
            async move { remove_quietly(&dav, &at).await }
        };
        let temporary = Undo::new(remove()).and_late(remove());
        let stored = async {
            let written = self.store(&url, &at, &parent, source).await?;
            self.place(&at, &url).await?;
            Ok(written)
        };
        let stored = stored.await;
        temporary.unless_ok(stored).await
    }

    /// Stores `source` at `at`, what is to become the file `url`.
    async fn store(
        &self,
        url: &StorageUrl,
        at: &StorageUrl,
        parent: &StorageUrl,
        source: &Source,
    ) -> Result<Written> {
        let mut reply = put(&self.client, at, source).await?;
        // The directory may be gone since it was seen.
        if matches!(
            reply.status(),
            StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::GONE
        ) {
            self.forget();
            self.have_directory(parent).await?;
            reply = put(&self.client, at, source).await?;
        }
        if !matches!(
            reply.status(),
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT
        ) {
            return Err(reply::refusal(url, &reply));
        }
        // What arrived is seen before it takes the place of anything.
        let size = source.size();
        let found = head(&self.client, at).await?.unwrap_or_default();
        if let Some(found) = found.size.filter(|found| *found != size) {
            let message = format!("{found} bytes arrived of {size}");
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        Ok(Written {
            size,
            version: None,
            checksum: found.checksum,
        })
    }

    /// Renames the file `from` to `to`; the directories of `to` are made.
    pub(in super::super) async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        let (from, to) = (plain(from)?, plain(to)?);
        if client::request_url(&from)?.origin() != client::request_url(&to)?.origin() {
            let message = "cannot be renamed to another server";
            return Err(Error::new(ErrorKind::Invalid, &from, message));
        }
        if self.kind(&from).await?.is_none() {
            let message = "there is no such file";
            return Err(Error::new(ErrorKind::NotFound, &from, message));
        }
        if let Some(parent) = parent(&to) {
            self.have_directory(&parent).await?;
        }
        self.place(&from, &to).await
    }

    /// Moves the file `from`, which is there, over whatever file is at `to`.
    async fn place(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        if self.move_once(from, to, "F").await? {
            return Ok(());
        }
        // Something is there. A directory would go with everything in it.
        if self.kind(to).await? == Some(Kind::Directory) {
            let message = "there is a directory of that name";
            return Err(Error::new(ErrorKind::Invalid, to, message));
        }
        if self.move_once(from, to, "T").await? {
            return Ok(());
        }
        let message = "the server does not replace the file that is there";
        Err(Error::new(ErrorKind::Denied, to, message))
    }

    /// False if something is there already, and may not be overwritten.
    async fn move_once(
        &self,
        from: &StorageUrl,
        to: &StorageUrl,
        overwrite: &'static str,
    ) -> Result<bool> {
        let target = client::request_url(to)?;
        // Behind a proxy a server may take its own address for that of another; without host it
        // is asked again. Some take none without host.
        let mut address = target.clone();
        address.set_query(None);
        for destination in [address.as_str(), target.path()] {
            let value = HeaderValue::try_from(destination)
                .map_err(|e| Error::new(ErrorKind::Invalid, to, "is no http url").with_source(e))?;
            let mut headers = HeaderMap::from_iter([header("overwrite", overwrite)]);
            headers.insert(HeaderName::from_static("destination"), value);
            let reply = self.send(from, b"MOVE", headers).await?;
            let repeated = reply.extensions().get::<client::Repeated>().is_some();
            match reply.status() {
                // It was there: if it is no more, the first of the two has moved it.
                StatusCode::PRECONDITION_FAILED => {
                    return Ok(repeated && self.kind(from).await?.is_none());
                }
                StatusCode::NOT_FOUND if repeated => return Ok(true),
                StatusCode::BAD_REQUEST | StatusCode::BAD_GATEWAY
                    if destination != target.path() => {}
                _ => return done(to, reply).await.map(|()| true),
            }
        }
        Ok(false)
    }

    /// Makes the directory `url` and those it is in.
    pub(in super::super) async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let url = plain(url)?;
        // It may be gone since it was seen.
        self.known().remove(&super::key(&url));
        self.have_directory(&url).await
    }

    async fn have_directory(&self, url: &StorageUrl) -> Result<()> {
        if self.knows(url) {
            return Ok(());
        }
        let making = self.making(url)?;
        let _alone = making.lock().await;
        let mut missing = Vec::new();
        let mut at = directory(url);
        while !self.knows(&at) {
            let Some(above) = parent(&at) else {
                break;
            };
            if self.is_directory(&at).await? {
                self.learn(&at);
                break;
            }
            missing.push(at);
            at = above;
        }
        for at in missing.into_iter().rev() {
            let reply = self.send(&at, b"MKCOL", HeaderMap::new()).await?;
            if !reply.status().is_success() {
                let refusal = reply::refusal(&at, &reply);
                // Somebody else may have been faster.
                if !self.is_directory(&at).await? {
                    return Err(refusal);
                }
            }
            self.learn(&at);
        }
        Ok(())
    }

    async fn is_directory(&self, url: &StorageUrl) -> Result<bool> {
        match self.kind(url).await? {
            Some(Kind::Directory) => Ok(true),
            None => Ok(false),
            Some(Kind::File) => {
                let message = "is a file, not a directory";
                Err(Error::new(ErrorKind::Invalid, url, message))
            }
        }
    }
}

/// The first error is the one to tell; this one is only logged.
async fn remove_quietly(dav: &Dav, url: &StorageUrl) {
    if let Err(error) = dav.delete(url).await {
        tracing::warn!(%error, "a temporary file is left behind");
    }
}
