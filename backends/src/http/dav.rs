//! WebDAV (RFC 4918): what `webdav = true` adds.

mod href;
mod multistatus;
mod walk;
mod write;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use tesk_core::rooted;
use tesk_core::storage::{EntryStream, Error, ErrorKind, Result, Source, StorageUrl};

use self::href::Named;
use self::multistatus::{Multistatus, Resource};
use super::client::{Client, request_url};
use super::reply;

/// How many directories are remembered to be there.
const MANY_DIRECTORIES: usize = 10_000;
/// What is asked for of each resource.
const PROPFIND: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getetag/><getlastmodified/></prop></propfind>"#;

/// Directories of web servers.
pub(super) struct Dav {
    client: Arc<Client>,
    /// What is put appears only when it is whole.
    atomic_put: bool,
    directories: Mutex<HashSet<String>>,
    /// By the origin of a server: its directories are made by one writer at a time.
    making: Mutex<HashMap<String, Weak<Making>>>,
}

impl fmt::Debug for Dav {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dav")
    }
}

type Making = tokio::sync::Mutex<()>;

/// How far a `PROPFIND` looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Itself,
    Children,
}

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
}

impl Dav {
    pub(super) fn new(client: Arc<Client>, atomic_put: bool) -> Self {
        Self {
            client,
            atomic_put,
            directories: Mutex::default(),
            making: Mutex::default(),
        }
    }

    /// What is at `url`, if anything.
    pub(super) async fn kind(&self, url: &StorageUrl) -> Result<Option<Kind>> {
        let url = plain(url)?;
        let Some(mut reply) = self.propfind(&url, Depth::Itself).await? else {
            return Ok(None);
        };
        let first = reply.next().await?;
        // To the end, so that the connection can be used again.
        while reply.next().await?.is_some() {}
        let Some(resource) = first.filter(|resource| !is_gone(resource)) else {
            return Ok(None);
        };
        refuse_status(&url, &resource)?;
        Ok(Some(kind(&resource)))
    }

    /// Everything below the directory `url`.
    pub(super) async fn list(self: &Arc<Self>, url: &StorageUrl) -> Result<EntryStream> {
        walk::walk(self.clone(), plain(url)?).await
    }

    /// Removes the file or the empty directory `url`.
    pub(super) async fn remove(&self, url: &StorageUrl) -> Result<()> {
        let url = plain(url)?;
        let Some(mut reply) = self.propfind(&url, Depth::Children).await? else {
            return Ok(());
        };
        let mut found = None;
        while let Some(resource) = reply.next().await? {
            let named = named(&url, &reply, &resource)?;
            if named == Named::Itself {
                refuse_status(&url, &resource)?;
                found = Some(kind(&resource));
            } else if !is_gone(&resource) {
                // `DELETE` takes everything with it.
                let message = "the directory is not empty";
                return Err(Error::new(ErrorKind::Invalid, &url, message));
            }
        }
        let at = match found {
            Some(Kind::File) => url.clone(),
            Some(Kind::Directory) => {
                self.forget();
                directory(&url)
            }
            None => {
                let message = "the server does not say what it is";
                return Err(Error::new(ErrorKind::Invalid, &url, message));
            }
        };
        self.delete(&at).await
    }

    /// Removes what is at `url` with all that is below it.
    async fn delete(&self, url: &StorageUrl) -> Result<()> {
        let reply = self.send(url, b"DELETE", HeaderMap::new()).await?;
        match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(()),
            _ => done(url, reply).await,
        }
    }

    /// Asks what is at `url`; `None` if nothing is.
    async fn propfind(&self, url: &StorageUrl, depth: Depth) -> Result<Option<Multistatus>> {
        let mut headers = HeaderMap::new();
        let value = match depth {
            Depth::Itself => "0",
            Depth::Children => "1",
        };
        headers.insert("depth", HeaderValue::from_static(value));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/xml; charset=utf-8"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(PROPFIND.len()));
        let body = Source::bytes(PROPFIND);
        let method = method(url, b"PROPFIND")?;
        let reply = self.client.send(url, &method, &headers, Some(&body));
        let reply = reply.await?;
        match reply.status() {
            StatusCode::MULTI_STATUS => Ok(Some(Multistatus::new(url, reply))),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status
                if status.is_success()
                    || matches!(
                        status,
                        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
                    ) =>
            {
                let message = format!(
                    "the server answered {status} to a PROPFIND: it speaks no WebDAV here, but \
                     `webdav` is set for it"
                );
                Err(Error::new(ErrorKind::Unsupported, url, message))
            }
            _ => Err(reply::refusal(url, &reply)),
        }
    }

    async fn send(
        &self,
        url: &StorageUrl,
        name: &[u8],
        headers: HeaderMap<HeaderValue>,
    ) -> Result<Response> {
        let method = method(url, name)?;
        self.client.send(url, &method, &headers, None).await
    }

    /// What is held by the one that makes directories on the server of `url`.
    fn making(&self, url: &StorageUrl) -> Result<Arc<Making>> {
        let origin = request_url(url)?.origin().ascii_serialization();
        let mut all = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, making| making.strong_count() > 0);
        let making = all.get(&origin).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(origin, Arc::downgrade(&making));
        Ok(making)
    }

    fn knows(&self, directory: &StorageUrl) -> bool {
        self.known().contains(&key(directory))
    }

    fn learn(&self, directory: &StorageUrl) {
        let mut known = self.known();
        if known.len() >= MANY_DIRECTORIES {
            known.clear();
        }
        known.insert(key(directory));
    }

    /// Something is not as it was.
    fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new name for a file that is not finished. Nextcloud and ownCloud keep names that end in
/// `.part` for themselves.
fn temp_name() -> String {
    rooted::temp_name().replace(".part", "")
}

/// Whether `name` is one of a file that is not finished, here or in a directory of this machine
/// that is served.
fn is_temp_name(name: &str) -> bool {
    rooted::is_temp_name(name.as_ref()) || rooted::is_temp_name(format!("{name}.part").as_ref())
}

fn key(directory: &StorageUrl) -> String {
    directory.without_trailing_slash().to_string()
}

fn method(url: &StorageUrl, name: &[u8]) -> Result<Method> {
    Method::from_bytes(name)
        .map_err(|e| Error::new(ErrorKind::Other, url, "no request can be made").with_source(e))
}

/// `url` without a slash at its end. One with `..` is refused: it would lead elsewhere after its
/// prefix was compared.
pub(super) fn plain(url: &StorageUrl) -> Result<StorageUrl> {
    let decoded = url.decoded_path();
    let mut names = decoded.split(|b| *b == b'/');
    if names.any(|name| matches!(name, b"." | b"..")) {
        let message = "its path must not have a `.` or `..` component";
        return Err(Error::new(ErrorKind::Invalid, url, message));
    }
    Ok(url.without_trailing_slash())
}

/// `url` as the address of a directory: some servers want the slash.
fn directory(url: &StorageUrl) -> StorageUrl {
    url.join("")
}

/// The directory that `url` is in; `None` for the root of a server.
fn parent(url: &StorageUrl) -> Option<StorageUrl> {
    let url = url.without_trailing_slash();
    (!url.path().is_empty()).then(|| url.sibling(""))
}

fn kind(resource: &Resource) -> Kind {
    if resource.collection {
        Kind::Directory
    } else {
        Kind::File
    }
}

fn is_gone(resource: &Resource) -> bool {
    matches!(resource.status, Some(404 | 410))
}

/// A resource of which the server says nothing but why.
fn refuse_status(url: &StorageUrl, resource: &Resource) -> Result<()> {
    let status = resource.status.map(StatusCode::from_u16);
    match status {
        Some(Ok(status)) if !status.is_success() => {
            let message = format!("the server says {status} of it");
            Err(Error::new(reply::kind(status), url, message))
        }
        _ => Ok(()),
    }
}

/// What a resource in a reply about `url` is.
fn named(url: &StorageUrl, reply: &Multistatus, resource: &Resource) -> Result<Named> {
    href::named(&reply.base, &resource.href).map_err(|why| {
        let shown: String = resource.href.chars().take(100).collect();
        let shown = shown.escape_debug();
        let message = format!("the server's answer is refused: `{shown}` {why}");
        Error::new(ErrorKind::Invalid, url, message)
    })
}

/// Whether a change was made, all of it.
async fn done(url: &StorageUrl, reply: Response) -> Result<()> {
    match reply.status() {
        // Something in it failed (RFC 4918, 9.6.1 and 9.9.4).
        StatusCode::MULTI_STATUS => {
            let mut reply = Multistatus::new(url, reply);
            while let Some(resource) = reply.next().await? {
                refuse_status(url, &resource)?;
            }
            let message = "the server has done it in part only";
            Err(Error::new(ErrorKind::Other, url, message))
        }
        status if status.is_success() => Ok(()),
        _ => Err(reply::refusal(url, &reply)),
    }
}

/// A header of WebDAV.
fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_is_not_finished_are_known_again() {
        let name = temp_name();
        assert!(is_temp_name(&name), "{name}");
        assert!(is_temp_name(&rooted::temp_name()));
        assert!(!name.contains(".part"), "{name}");
        assert!(!is_temp_name(".tesk-x"));
    }
}
