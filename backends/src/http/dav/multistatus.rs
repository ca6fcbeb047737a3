//! Multistatus replies (RFC 4918, 13), read as they arrive. What they say is a stranger's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::{Buf as _, Bytes};
use futures_util::stream::{BoxStream, StreamExt as _};
use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};
use reqwest::{Response, Url};
use tesk_core::storage::{Error, ErrorKind, FileInfo, Result, StorageUrl, Version};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::super::{client, reply};

/// The most that is said of one resource, in bytes; also of what is between two of them.
const LONGEST_RESPONSE: usize = 128 << 10;
/// The most that one reply may take, in bytes.
const LONGEST_REPLY: u64 = 256 << 20;
/// Deeper than any element that means something.
const DEEPEST: usize = 32;

/// What a server says of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resource {
    /// As it was sent, without white space around it.
    pub(super) href: String,
    /// Of the resource as a whole, where the server says it.
    pub(super) status: Option<u16>,
    pub(super) collection: bool,
    length: Option<u64>,
    tag: Option<String>,
    modified: Option<String>,
}

impl Resource {
    /// What is known of a file. A version is told when it is sure to change with the content, and
    /// only the times of `now` are compared with.
    pub(super) fn file_info(&self, now: Option<SystemTime>) -> FileInfo {
        let (tag, modified) = (self.tag.as_deref(), self.modified.as_deref());
        let settled = reply::settles_in(tag, modified, now).is_none();
        FileInfo {
            size: self.length,
            version: reply::version_of(tag, modified)
                .filter(|_| settled)
                .map(|version| Version(version.to_owned())),
            modified: modified.and_then(reply::timestamp),
            ..FileInfo::default()
        }
    }

    fn set(&mut self, place: Place, text: String) {
        match place {
            Place::Href if self.href.is_empty() => self.href = text,
            Place::Length => self.length = text.parse().ok(),
            // Some servers forget the quotes here.
            Place::Tag if !text.is_empty() && !text.contains('"') => {
                self.tag = Some(format!("\"{text}\""));
            }
            Place::Tag => self.tag = Some(text),
            Place::Modified => self.modified = Some(text),
            _ => {}
        }
    }
}

/// The reply to a `PROPFIND`.
pub(super) struct Multistatus {
    url: StorageUrl,
    /// What was asked for in the end: what names are relative to.
    pub(super) base: Url,
    /// The server's clock.
    pub(super) now: Option<SystemTime>,
    reader: NsReader<Body>,
    within: Vec<Place>,
    ended: bool,
}

/// Where in the document we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Multistatus,
    Response,
    Href,
    Status,
    Propstat,
    Prop,
    ResourceType,
    Collection,
    Length,
    Tag,
    Modified,
    Other,
}

impl Place {
    /// The element `name` of the namespace `DAV:` in another.
    fn inside(outer: Option<Self>, name: &str) -> Self {
        match (outer, name) {
            (None, "multistatus") => Self::Multistatus,
            (Some(Self::Multistatus), "response") => Self::Response,
            (Some(Self::Response), "href") => Self::Href,
            (Some(Self::Response | Self::Propstat), "status") => Self::Status,
            (Some(Self::Response), "propstat") => Self::Propstat,
            (Some(Self::Propstat), "prop") => Self::Prop,
            (Some(Self::Prop), "resourcetype") => Self::ResourceType,
            (Some(Self::Prop), "getcontentlength") => Self::Length,
            (Some(Self::Prop), "getetag") => Self::Tag,
            (Some(Self::Prop), "getlastmodified") => Self::Modified,
            (Some(Self::ResourceType), "collection") => Self::Collection,
            _ => Self::Other,
        }
    }

    fn has_text(self) -> bool {
        matches!(
            self,
            Self::Href | Self::Status | Self::Length | Self::Tag | Self::Modified
        )
    }
}

/// One step in the document.
enum Step {
    Into(Place),
    OutOf,
    /// Into an element that has nothing in it, and out again.
    Through(Place),
    Text(String),
    End,
    Nothing,
}

impl Multistatus {
    pub(super) fn new(url: &StorageUrl, reply: Response) -> Self {
        let (base, now) = (reply.url().clone(), reply::date(reply.headers()));
        let stream = reply.bytes_stream().boxed();
        Self::of(url, base, now, stream)
    }

    fn of(
        url: &StorageUrl,
        base: Url,
        now: Option<SystemTime>,
        stream: BoxStream<'static, reqwest::Result<Bytes>>,
    ) -> Self {
        let mut reader = NsReader::from_reader(Body {
            url: url.clone(),
            stream,
            chunk: Bytes::new(),
            left: LONGEST_RESPONSE,
            failed: None,
        });
        reader.config_mut().check_end_names = true;
        Self {
            url: url.clone(),
            base,
            now,
            reader,
            within: Vec::new(),
            ended: false,
        }
    }

    /// What is said of the next resource; `None` at the end of the document.
    pub(super) async fn next(&mut self) -> Result<Option<Resource>> {
        let mut resource = Resource::default();
        // What a `propstat` says counts if its status, which comes last, is a success.
        let mut found = Resource::default();
        let mut fine = true;
        let mut text = String::new();
        loop {
            let step = match self.step().await? {
                Step::Through(place) => {
                    self.enter(place)?;
                    Step::OutOf
                }
                step => step,
            };
            match step {
                Step::Into(place) => {
                    self.enter(place)?;
                    text.clear();
                    if place == Place::Propstat {
                        found = Resource::default();
                        fine = true;
                    }
                }
                Step::Text(more) => {
                    if self.within.last().is_some_and(|place| place.has_text()) {
                        text.push_str(&more);
                    }
                }
                Step::OutOf => {
                    let Some(place) = self.within.pop() else {
                        return Err(self.nonsense("an element ends that did not begin"));
                    };
                    let text = std::mem::take(&mut text).trim_ascii().to_owned();
                    match place {
                        Place::Response => {
                            self.reader.get_mut().left = LONGEST_RESPONSE;
                            return Ok(Some(resource));
                        }
                        Place::Multistatus => self.ended = true,
                        Place::Collection => found.collection = true,
                        Place::Status if self.within.last() == Some(&Place::Response) => {
                            resource.status = status(&text);
                        }
                        Place::Status => {
                            fine = status(&text).is_none_or(|status| (200..300).contains(&status));
                        }
                        Place::Href => resource.set(place, text),
                        Place::Propstat if fine => {
                            resource.collection |= found.collection;
                            resource.length = resource.length.or(found.length);
                            resource.tag = resource.tag.or(found.tag.take());
                            resource.modified = resource.modified.or(found.modified.take());
                        }
                        place => found.set(place, text),
                    }
                }
                Step::End if self.ended => return Ok(None),
                Step::End => {
                    let message = "the server's answer ended too early";
                    return Err(Error::new(ErrorKind::Corrupt, &self.url, message));
                }
                Step::Through(_) | Step::Nothing => {}
            }
        }
    }

    fn enter(&mut self, place: Place) -> Result<()> {
        if self.within.is_empty() && (place != Place::Multistatus || self.ended) {
            return Err(self.nonsense("it is no multistatus document"));
        }
        if self.within.len() >= DEEPEST {
            return Err(self.nonsense("it is nested too deeply"));
        }
        self.within.push(place);
        Ok(())
    }

    async fn step(&mut self) -> Result<Step> {
        let mut buffer = Vec::new();
        let outer = self.within.last().copied();
        let event = self
            .reader
            .read_resolved_event_into_async(&mut buffer)
            .await;
        let place = |namespace: &ResolveResult<'_>, name: &str| match namespace {
            ResolveResult::Bound(Namespace("DAV:")) => Place::inside(outer, name),
            _ => Place::Other,
        };
        let step = match event {
            Ok((namespace, Event::Start(element))) => {
                let name = element.local_name();
                Ok(Step::Into(place(&namespace, name.as_ref())))
            }
            Ok((namespace, Event::Empty(element))) => {
                let name = element.local_name();
                Ok(Step::Through(place(&namespace, name.as_ref())))
            }
            Ok((_, Event::End(_))) => Ok(Step::OutOf),
            Ok((_, Event::Text(text))) => Ok(Step::Text(text.to_string())),
            Ok((_, Event::CData(text))) => Ok(Step::Text(text.to_string())),
            Ok((_, Event::GeneralRef(reference))) => match reference.resolve_char_ref() {
                Ok(Some(character)) => Ok(Step::Text(character.into())),
                // Five are known without a document type, which is refused.
                _ => match quick_xml::escape::resolve_predefined_entity(&reference) {
                    Some(text) => Ok(Step::Text(text.to_owned())),
                    None => Err("it has an entity of its own".to_owned()),
                },
            },
            Ok((_, Event::DocType(_))) => Err("it has a document type".to_owned()),
            Ok((_, Event::Eof)) => Ok(Step::End),
            Ok(_) => Ok(Step::Nothing),
            Err(error) => Err(error.to_string()),
        };
        if let Some(error) = self.reader.get_mut().failed.take() {
            return Err(error);
        }
        if self.reader.buffer_position() > LONGEST_REPLY {
            return Err(self.nonsense("it is too long"));
        }
        step.map_err(|why| self.nonsense(&why))
    }

    fn nonsense(&self, why: &str) -> Error {
        let why: String = why.chars().take(200).flat_map(char::escape_debug).collect();
        let message = format!("the server's answer makes no sense: {why}");
        Error::new(ErrorKind::Corrupt, &self.url, message).with_retryable(false)
    }
}

/// The code in a line such as `HTTP/1.1 404 Not Found`.
fn status(line: &str) -> Option<u16> {
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The body of a reply, so much of it at a time.
struct Body {
    url: StorageUrl,
    stream: BoxStream<'static, reqwest::Result<Bytes>>,
    chunk: Bytes,
    left: usize,
    failed: Option<Error>,
}

impl AsyncBufRead for Body {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match std::task::ready!(this.stream.poll_next_unpin(context)) {
                None => return Poll::Ready(Ok(&[])),
                Some(Ok(chunk)) => this.chunk = chunk,
                Some(Err(error)) => {
                    this.failed = Some(client::failure(&this.url, error));
                    return Poll::Ready(Err(io::ErrorKind::Other.into()));
                }
            }
        }
        if this.left == 0 {
            let message = "more is said of one resource than can be true";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        let end = this.chunk.len().min(this.left);
        Poll::Ready(Ok(&this.chunk[..end]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.chunk.advance(amount);
        this.left = this.left.saturating_sub(amount);
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = std::task::ready!(self.as_mut().poll_fill_buf(context))?;
        let amount = bytes.len().min(buffer.remaining());
        buffer.put_slice(&bytes[..amount]);
        self.consume(amount);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod fuzz {
    use futures_util::{FutureExt as _, stream};
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::super::href::{Named, named};
    use super::*;

    /// Pieces of which replies are made, and what has led parsers astray.
    const PIECES: [&str; 32] = [
        "<D:multistatus xmlns:D=\"DAV:\">",
        "</D:multistatus>",
        "<D:response>",
        "</D:response>",
        "<D:href>",
        "</D:href>",
        "/d/",
        "/d/x",
        "http://h/d/",
        "http://h@evil/d/x",
        "//evil",
        "../",
        "%2e%2e%2f",
        "%00",
        "%ff",
        "\\",
        "é",
        "\u{0}",
        "<D:propstat>",
        "</D:propstat>",
        "<D:prop>",
        "</D:prop>",
        "<D:resourcetype><D:collection/></D:resourcetype>",
        "<D:getcontentlength>-1</D:getcontentlength>",
        "<D:status>HTTP/1.1 200 OK</D:status>",
        "<![CDATA[",
        "]]>",
        "&amp;",
        "&#x2f;",
        "&#0;",
        "<!DOCTYPE a [<!ENTITY x \"&x;\">]>",
        "<!--",
    ];
    const VALID: &str = "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">\
        <D:response><D:href>/d/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/>\
        </D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>\
        <D:response><D:href>/d/a%20b</D:href><D:propstat><D:prop><D:getetag>\"t\"</D:getetag>\
        <D:getcontentlength>5</D:getcontentlength></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
        </D:propstat></D:response></D:multistatus>";

    /// How many names are read of a document that arrives in pieces: none that is not one of
    /// something directly in the directory.
    fn read(document: &[u8], piece: usize) -> Result<usize, TestCaseError> {
        let pieces: Vec<_> = document
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let url = "http://h/d/".parse().unwrap();
        let base = Url::parse("http://h/d/").unwrap();
        let mut reply = Multistatus::of(&url, base.clone(), None, stream::iter(pieces).boxed());
        let mut names = 0;
        // Everything is there, so nothing waits.
        while let Ok(Some(resource)) = reply.next().now_or_never().unwrap() {
            let _ = resource.file_info(None);
            let Ok(Named::Child(name)) = named(&base, &resource.href) else {
                continue;
            };
            names += 1;
            prop_assert!(!matches!(name.as_str(), "" | "." | ".."), "{name}");
            prop_assert!(!name.contains(['/', '\0']), "{name}");
            let address = url.join(&name).decoded_path();
            prop_assert_eq!(address, format!("/d/{name}").into_bytes());
        }
        Ok(names)
    }

    #[test]
    fn a_valid_document_has_a_name() {
        assert_eq!(read(VALID.as_bytes(), 7).unwrap(), 1);
    }

    proptest! {
        #[test]
        fn no_document_makes_the_reader_panic_or_names_what_is_elsewhere(
            pieces in proptest::collection::vec(select(&PIECES[..]), 0..24),
            inner in proptest::collection::vec(select(&PIECES[..]), 0..6),
            any in any::<Vec<u8>>(),
            piece in 1_usize..64,
        ) {
            read(pieces.concat().as_bytes(), piece)?;
            read(&any, piece)?;
            let (before, after) = VALID.split_once("/d/a%20b").unwrap();
            let inner = inner.concat();
            read([before, &inner, after].concat().as_bytes(), piece)?;
        }

        #[test]
        fn a_document_that_was_spoilt_makes_no_reader_panic(
            spoilt in proptest::collection::vec((any::<Index>(), any::<Option<u8>>()), 1..6),
            end in any::<Index>(),
            piece in 1_usize..64,
        ) {
            let mut document = VALID.as_bytes().to_vec();
            for (at, byte) in spoilt {
                let at = at.index(document.len());
                match byte {
                    Some(byte) => document[at] = byte,
                    None => drop(document.remove(at)),
                }
            }
            read(&document, piece)?;
            read(&document[..end.index(document.len())], piece)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// Reads a document that arrives in pieces.
    async fn read(document: &str, piece: usize) -> Result<Vec<Resource>> {
        let pieces: Vec<_> = document
            .as_bytes()
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let url = "http://h/d/".parse().unwrap();
        let base = Url::parse("http://h/d/").unwrap();
        let mut reply = Multistatus::of(&url, base, None, stream::iter(pieces).boxed());
        let mut all = Vec::new();
        while let Some(resource) = reply.next().await? {
            all.push(resource);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_is_said_is_read_in_any_spelling() {
        let document = r#"<?xml version="1.0"?>
            <!-- a comment --><D:multistatus xmlns:D="DAV:" xmlns:x="urn:x">
              <D:response>
                <D:href> /d/ </D:href>
                <D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop>
                  <D:status>HTTP/1.1 200 OK</D:status></D:propstat>
              </D:response>
              <response xmlns="DAV:">
                <href>/d/a&amp;b&#x25;<![CDATA[<]]></href>
                <propstat><prop><getetag>"t"</getetag><x:getcontentlength>9</x:getcontentlength>
                  <resourcetype/><getcontentlength>5</getcontentlength></prop>
                  <status>HTTP/1.1 200 OK</status></propstat>
                <propstat><prop><getcontentlength>7</getcontentlength>
                  <resourcetype><collection/></resourcetype></prop>
                  <status>HTTP/1.1 404 Not Found</status></propstat>
              </response>
              <D:response><D:href>/d/gone</D:href><D:status>HTTP/1.1 404 no</D:status></D:response>
            </D:multistatus>
            "#;
        for piece in [1, 7, 10_000] {
            let all = read(document, piece).await.unwrap();
            assert_eq!(all.len(), 3, "{all:?}");
            assert!(all[0].collection && all[0].href == "/d/", "{:?}", all[0]);
            assert_eq!(all[1].href, "/d/a&b%<");
            assert!(!all[1].collection);
            let info = all[1].file_info(None);
            assert_eq!(info.size, Some(5));
            assert_eq!(info.version, Some(Version("\"t\"".into())));
            assert_eq!(all[2].status, Some(404));
            assert_eq!(all[2].file_info(None), FileInfo::default());
        }
    }

    #[tokio::test]
    async fn documents_that_are_none_are_errors() {
        let long = "x".repeat(LONGEST_RESPONSE + 1);
        let deep = "<a>".repeat(100_000);
        let head = "<multistatus xmlns='DAV:'>";
        for document in [
            String::new(),
            "<html><body>Index of /</body></html>".into(),
            format!("{head}<response><href>/d/</href></response>"),
            format!("{head}<response></multistatus>"),
            format!("{head}</multistatus>{head}</multistatus>"),
            "<multistatus xmlns='DAV'></multistatus>".into(),
            format!("<!DOCTYPE x [<!ENTITY e 'eeee'>]>{head}<response><href>&e;</href>"),
            format!("{head}<response><href>&e;</href></response></multistatus>"),
            format!("{head}<response><href>/d/{long}</href></response></multistatus>"),
            format!("{head}<response {long}='x'></response></multistatus>"),
            format!("{head}<!--{long}--></multistatus>"),
            format!("{head}{deep}"),
            format!("{head}<response><href>\u{fffe}&#0;</href></response></multistatus>"),
        ] {
            let shown: String = document.chars().take(90).collect();
            let error = read(&document, 4096).await.expect_err(&shown);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{shown}: {error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }
}
