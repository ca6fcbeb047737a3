//! The same storage with one defect each, of the kinds that real plugins have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tesk_core::rooted::{RelPath, Root, Symlinks};
use tesk_core::storage::{
    ByteRange, Capabilities, Checksum, Entry, EntryKind, EntryStream, Error, ErrorKind, FileInfo,
    LocalPath, Opened, Result, Source, Storage, StorageUrl, Upload, Version, Written,
};

use super::memory::{Memory, Node, PART, PASSWORD, path};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    // Claims
    ClaimIsLost,
    UnclaimedWorks,
    UnclaimedIsCalledOther,
    UnclaimedRangeIsIgnored,
    // Looking
    MissingIsAnError,
    RefusalIsNothing,
    GoneIsNothing,
    DirectoriesAreNotSeen,
    VersionsStay,
    // Reading
    ShortReadIsWhole,
    RangeIsClipped,
    RangeBeginsOneLate,
    RangeIsIgnored,
    ChecksumIsOfTheRange,
    EmptyRangeIsAnError,
    DirectoryReadsAsNothing,
    MissingIsRetryable,
    VersionIsIgnored,
    VersionNeverFits,
    SecretInAnError,
    ConfiguredSecretInAnError,
    NewlinesAreTranslated,
    OneReadingAtATime,
    DroppingSpoilsAll,
    NetworkErrorsAreFinal,
    WholeReadHasATimeLimit,
    // Names
    NamesAreDecodedTwice,
    NamesEndAtQuestionMarks,
    CaseIsFolded,
    // Listing
    ListingIsCutAt1000,
    ListingHasOneLevel,
    ListingTakesNamePrefixes,
    ListingOfNothingIsEmpty,
    ListingOfAFileIsEmpty,
    ListedSizesAreWrong,
    ListedNamesAreEscaped,
    EmptyDirectoriesAreLost,
    // Writing
    EmptyFileIsLost,
    FinishIsNotChecked,
    FailedSourceIsDelivered,
    SourceErrorIsFinal,
    TailOfTheLongerStays,
    HalfIsSeenAfterFailure,
    HalfIsSeenMeanwhile,
    ParentsAreNotMade,
    ModesAreLost,
    DirectoryIsOverwritten,
    FilesHaveFilesBelow,
    CountIsWrong,
    OnlyOneChunkIsWritten,
    WritersShareATemporaryName,
    WritersOfOneNameMix,
    TemporaryIsLeft,
    // Renaming, removing, making
    RenameLeavesTheSource,
    RenameDoesNotReplace,
    RenameOfNothingIsFine,
    RemoveTakesAllBelow,
    RemoveOfNothingIsAnError,
    RemoveDoesNothing,
    MakingTwiceIsAnError,
    LocalPathIsAnother,
    // Uploads in parts
    PartsAreInOrderOfArrival,
    PartSentAgainIsAdded,
    UploadIsSeenBeforeItsEnd,
    AbortedUploadStays,
    EmptyUploadIsLost,
    UploadIsLeft,
}

use Defect as D;

/// How names begin that listings hide.
const TEMPORARY: &str = ".temporary";

/// [`Memory`], but for one defect.
#[derive(Debug)]
pub(super) struct Defective {
    pub(super) good: Memory,
    pub(super) defect: Defect,
    readings: Arc<AtomicU64>,
    spoilt: Arc<AtomicBool>,
    temporary: Mutex<Bytes>,
}

impl Defective {
    pub(super) fn new(good: Memory, defect: Defect) -> Self {
        Self {
            good,
            defect,
            readings: Arc::default(),
            spoilt: Arc::default(),
            temporary: Mutex::default(),
        }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    /// The address that it takes this one for.
    fn taken_for(&self, url: &StorageUrl) -> StorageUrl {
        let name = path(url);
        let name = match self.defect {
            D::NamesAreDecodedTwice => {
                let again = format!("memory://m/{}", name.replace(['?', '#'], "_"));
                path(&again.parse().unwrap())
            }
            D::NamesEndAtQuestionMarks => name.split('?').next().unwrap().to_owned(),
            D::CaseIsFolded => name.to_lowercase(),
            _ => return url.clone(),
        };
        let root: StorageUrl = "memory://m".parse().unwrap();
        root.join(&name)
    }

    fn unclaimed<T>(&self, url: &StorageUrl) -> Result<Option<T>> {
        match self.defect {
            D::UnclaimedIsCalledOther => Err(Error::new(ErrorKind::Other, url, "is not done")),
            _ => Ok(None),
        }
    }

    fn judged(&self, error: Error) -> Error {
        let retryable = match (self.defect, error.kind()) {
            (D::NetworkErrorsAreFinal, ErrorKind::Unavailable) => false,
            (D::MissingIsRetryable, ErrorKind::NotFound) => true,
            _ => return error,
        };
        error.with_retryable(retryable)
    }

    /// How a defective write takes what a source gives before it fails.
    async fn half(&self, url: &StorageUrl, source: &Source) -> Bytes {
        let half = (0..source.size() / 3).into();
        let half = self.good.receive(url, source, half).await;
        half.unwrap_or_default()
    }
}

/// Tells when a reading is over, and how.
struct Ending {
    whole: bool,
    readings: Arc<AtomicU64>,
    spoilt: Arc<AtomicBool>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.readings.fetch_sub(1, Ordering::Relaxed);
        if !self.whole {
            self.spoilt.store(true, Ordering::Relaxed);
        }
    }
}

/// The same items, and the word how the stream ended.
fn watched<T: Send + 'static>(
    items: stream::BoxStream<'static, T>,
    mut ending: Ending,
) -> stream::BoxStream<'static, T> {
    ending.whole = false;
    stream::unfold((items, ending), |(mut items, mut ending)| async move {
        let item = items.next().await;
        ending.whole = item.is_none();
        item.map(|item| (item, (items, ending)))
    })
    .boxed()
}

impl Defective {
    /// Counts a reading or listing from now on.
    fn ending(&self, url: &StorageUrl) -> Result<Ending> {
        let others = self.readings.fetch_add(1, Ordering::Relaxed);
        let ending = Ending {
            whole: true,
            readings: self.readings.clone(),
            spoilt: self.spoilt.clone(),
        };
        if others > 0 && self.has(D::OneReadingAtATime)
            || self.has(D::DroppingSpoilsAll) && self.spoilt.load(Ordering::Relaxed)
        {
            return Err(Error::new(
                ErrorKind::Unavailable,
                url,
                "another reply is due",
            ));
        }
        Ok(ending)
    }
}

#[async_trait::async_trait]
impl Storage for Defective {
    fn capabilities(&self) -> Capabilities {
        let mut claims = self.good.capabilities();
        match self.defect {
            D::ClaimIsLost => claims.rename = false,
            D::UnclaimedRangeIsIgnored => claims.ranges = false,
            D::UnclaimedWorks | D::UnclaimedIsCalledOther => claims = Capabilities::read_only(),
            // A plugin without parts writes whole files, and one whose files are not seen by
            // others before they are whole needs no renaming by core.
            D::FinishIsNotChecked | D::OnlyOneChunkIsWritten => claims.parts = false,
            _ => {}
        }
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let found = self.good.stat(&self.taken_for(url)).await;
        let mut found = match found {
            Err(error) => match (self.defect, error.kind()) {
                (D::RefusalIsNothing, ErrorKind::Unauthenticated)
                | (D::GoneIsNothing, ErrorKind::Unavailable) => None,
                _ => return Err(self.judged(error)),
            },
            Ok(found) => found,
        };
        match (self.defect, found.as_mut().map(|entry| &mut entry.kind)) {
            (D::MissingIsAnError, None) => {
                return Err(Error::new(ErrorKind::NotFound, url, "is not there"));
            }
            (D::DirectoriesAreNotSeen, Some(EntryKind::Directory)) => return Ok(None),
            (D::VersionsStay, Some(EntryKind::File(info))) => {
                info.version = Some(Version("1".into()));
            }
            _ => {}
        }
        Ok(found)
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        if let Some(refused) = self.unclaimed(url)? {
            return Ok(refused);
        }
        let ending = self.ending(url)?;
        let directory = path(&self.taken_for(url));
        let entries = match self.good.list(&self.taken_for(url)).await {
            Err(error) => match (self.defect, error.kind()) {
                (D::ListingOfNothingIsEmpty, ErrorKind::NotFound)
                | (D::ListingOfAFileIsEmpty, ErrorKind::Invalid) => stream::empty().boxed(),
                (D::ConfiguredSecretInAnError, kind) => {
                    let message = format!("the password `{PASSWORD}` finds nothing");
                    return Err(Error::new(kind, url, message));
                }
                _ => return Err(error),
            },
            Ok(entries) => entries,
        };
        let mut entries: Vec<Entry> = entries.try_collect().await?;
        match self.defect {
            D::TemporaryIsLeft => entries.retain(|entry| !entry.path.contains(TEMPORARY)),
            D::ListingIsCutAt1000 => entries.truncate(1000),
            D::ListingHasOneLevel => entries.retain(|entry| !entry.path.contains('/')),
            D::ListingTakesNamePrefixes => {
                for path in self.good.nodes().keys() {
                    if let Some(rest) = path.strip_prefix(&directory)
                        && !rest.is_empty()
                        && !rest.starts_with('/')
                    {
                        let path = rest.to_owned();
                        let kind = EntryKind::File(FileInfo::default());
                        entries.push(Entry { path, kind });
                    }
                }
            }
            D::ListedSizesAreWrong => {
                for entry in &mut entries {
                    if let EntryKind::File(info) = &mut entry.kind {
                        info.size = info.size.map(|size| size + 1);
                    }
                }
            }
            D::ListedNamesAreEscaped => {
                for entry in &mut entries {
                    entry.path = entry.path.replace(' ', "%20");
                }
            }
            D::EmptyDirectoriesAreLost => {
                entries.retain(|entry| entry.kind != EntryKind::Directory);
            }
            _ => {}
        }
        Ok(watched(
            stream::iter(entries.into_iter().map(Ok)).boxed(),
            ending,
        ))
    }

    async fn read(
        &self,
        url: &StorageUrl,
        mut range: ByteRange,
        mut version: Option<&Version>,
    ) -> Result<Opened> {
        let (secret, url) = (url.to_secret_string(), &self.taken_for(url));
        let begun = Instant::now();
        let ending = self.ending(url)?;
        let size = self.good.content(url).map_or(0, |file| file.len() as u64);
        match self.defect {
            D::OneReadingAtATime => tokio::time::sleep(Duration::from_millis(1)).await,
            D::RangeIsClipped => {
                range.start = range.start.min(size);
                range.end = range.end.map(|end| end.min(size));
            }
            D::RangeBeginsOneLate if range.start > 0 => range.start += 1,
            D::RangeIsIgnored | D::UnclaimedRangeIsIgnored => range = ByteRange::FULL,
            D::EmptyRangeIsAnError if range.start == size => {
                return Err(Error::new(ErrorKind::Corrupt, url, "cannot begin there"));
            }
            D::VersionIsIgnored | D::VersionsStay => version = None,
            D::VersionNeverFits if version.is_some() => {
                return Err(Error::new(ErrorKind::Corrupt, url, "is another version"));
            }
            D::SecretInAnError => {
                let message = format!("cannot read {secret}");
                let read = self.good.read(url, range, version).await;
                return read.map_err(|error| Error::new(error.kind(), url, message));
            }
            D::DirectoryReadsAsNothing => {
                if let Some(Node::Directory) = self.good.nodes().get(&path(url)) {
                    return Ok(stream::empty().boxed().into());
                }
            }
            _ => {}
        }
        let read = self.good.read(url, range, version).await;
        let Opened {
            bytes,
            mut checksum,
        } = read.map_err(|error| self.judged(error))?;
        if self.has(D::ChecksumIsOfTheRange) && !range.is_full() {
            checksum = Some(Checksum::Md5([0; 16]));
        }
        let (defect, url) = (self.defect, url.clone());
        let read = bytes.map(move |chunk| match (defect, chunk) {
            (D::NewlinesAreTranslated, Ok(chunk)) => {
                let bytes = chunk.iter().copied().filter(|byte| *byte != b'\r');
                Ok(bytes.collect())
            }
            (D::NetworkErrorsAreFinal, Err(error)) => Err(error.with_retryable(false)),
            (D::WholeReadHasATimeLimit, _) if begun.elapsed() > Duration::from_millis(100) => {
                Err(Error::new(ErrorKind::Unavailable, &url, "took too long"))
            }
            (_, chunk) => chunk,
        });
        let read = match self.defect {
            D::ShortReadIsWhole => read
                .take_while(|chunk| std::future::ready(chunk.is_ok()))
                .boxed(),
            _ => read.boxed(),
        };
        let bytes = watched(read, ending);
        Ok(Opened { bytes, checksum })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        if let Some(refused) = self.unclaimed(url)? {
            return Ok(refused);
        }
        let url = &self.taken_for(url);
        let written = Written {
            size: source.size(),
            ..Written::default()
        };
        let before = self.good.content(url);
        let name = path(url);
        let temporary = url.sibling(&format!("{TEMPORARY}-{:08x}", rand::random::<u32>()));
        let missing = Error::new(ErrorKind::NotFound, url, "has no parent directory");
        match self.defect {
            D::EmptyFileIsLost if source.size() == 0 => return Ok(written),
            D::TemporaryIsLeft => self.good.put(&temporary, Bytes::new(), None),
            D::HalfIsSeenMeanwhile => self.good.put(url, Bytes::from_static(b"half"), None),
            D::ParentsAreNotMade if name.matches('/').count() > 2 => return Err(missing),
            D::DirectoryIsOverwritten if before.is_none() => {
                self.good.nodes().remove(&name);
            }
            D::FilesHaveFilesBelow => {
                let content = self.good.receive(url, source, ByteRange::FULL).await?;
                self.good.put(url, content, source.mode());
                return Ok(written);
            }
            D::OnlyOneChunkIsWritten => {
                let content = (0..source.size().min(1 << 20)).into();
                let content = self.good.receive(url, source, content).await?;
                self.good.write(url, &Source::bytes(content)).await?;
                return Ok(written);
            }
            D::WritersShareATemporaryName => {
                let content = self.good.receive(url, source, ByteRange::FULL).await?;
                *self.temporary.lock().unwrap() = content;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let content = self.temporary.lock().unwrap().clone();
                return self.good.write(url, &Source::bytes(content)).await;
            }
            D::WritersOfOneNameMix => {
                let content = self.good.receive(url, source, ByteRange::FULL).await?;
                let (half, mut others) = (content.len() / 2, content.clone());
                std::mem::swap(&mut *self.temporary.lock().unwrap(), &mut others);
                tokio::time::sleep(Duration::from_millis(5)).await;
                let content = match others.get(half..) {
                    Some(tail) if others.len() > half => [&content[..half], tail].concat().into(),
                    _ => content,
                };
                self.good.put(url, content, None);
                return Ok(written);
            }
            _ => {}
        }
        let done = match self.defect {
            D::ModesAreLost => {
                let source = source.clone().with_mode(None);
                self.good.write(url, &source).await
            }
            _ => self.good.write(url, source).await,
        };
        if done.is_err() {
            match self.defect {
                D::FinishIsNotChecked => return Ok(written),
                D::FailedSourceIsDelivered => {
                    let half = self.half(url, source).await;
                    self.good.put(url, half, None);
                    return Ok(written);
                }
                D::HalfIsSeenAfterFailure => {
                    let half = self.half(url, source).await;
                    self.good.put(url, half, None);
                }
                D::SourceErrorIsFinal => return done.map_err(|error| error.with_retryable(false)),
                D::NetworkErrorsAreFinal => return done.map_err(|error| self.judged(error)),
                _ => {}
            }
        }
        let mut done = done?;
        match (self.defect, before) {
            (D::TailOfTheLongerStays, Some(before)) => {
                let mut content = self.good.content(url).unwrap_or_default().to_vec();
                content.extend(before.iter().skip(content.len()));
                self.good.put(url, content.into(), None);
            }
            (D::CountIsWrong, _) => done.size += 1,
            (D::TemporaryIsLeft, _) => {
                self.good.nodes().remove(&path(&temporary));
            }
            _ => {}
        }
        Ok(done)
    }

    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        if let Some(refused) = self.unclaimed(url)? {
            return Ok(refused);
        }
        Ok(Box::new(DefectiveUpload {
            good: self.good.begin_upload(url, size).await?,
            memory: self.good.clone(),
            url: url.clone(),
            defect: self.defect,
            arrived: Mutex::default(),
        }))
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        if let Some(refused) = self.unclaimed(url)? {
            return Ok(refused);
        }
        if self.has(D::MakingTwiceIsAnError) && self.good.nodes().contains_key(&path(url)) {
            return Err(Error::new(ErrorKind::Other, url, "is there already"));
        }
        self.good.make_directory(&self.taken_for(url)).await
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        if let Some(refused) = self.unclaimed(from)? {
            return Ok(refused);
        }
        let (old, there) = (self.good.content(from), self.good.content(to).is_some());
        match self.defect {
            // What is not there to be renamed may well be refused by a defective plugin too.
            D::UnclaimedWorks | D::RenameOfNothingIsFine if old.is_none() => return Ok(()),
            D::RenameDoesNotReplace if there => {
                return Err(Error::new(ErrorKind::Invalid, to, "is there already"));
            }
            _ => {}
        }
        self.good.rename(from, to).await?;
        if let Some(old) = old.filter(|_| self.has(D::RenameLeavesTheSource)) {
            self.good.put(from, old, None);
        }
        Ok(())
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        if let Some(refused) = self.unclaimed(url)? {
            return Ok(refused);
        }
        let there = self.good.nodes().contains_key(&path(url));
        match self.defect {
            D::RemoveTakesAllBelow => {
                let below = format!("{}/", path(url));
                self.good
                    .nodes()
                    .retain(|path, _| !path.starts_with(&below));
            }
            D::RemoveOfNothingIsAnError if !there => {
                return Err(Error::new(ErrorKind::NotFound, url, "is not there"));
            }
            D::RemoveDoesNothing => return Ok(()),
            _ => {}
        }
        self.good.remove(url).await
    }

    fn local_path(&self, _: &StorageUrl) -> Option<LocalPath> {
        self.has(D::LocalPathIsAnother).then(|| LocalPath {
            root: Arc::new(Root::open("/dev", Symlinks::Beneath).unwrap()),
            path: RelPath::new("null").unwrap(),
        })
    }
}

#[derive(Debug)]
struct DefectiveUpload {
    good: Box<dyn Upload>,
    memory: Memory,
    url: StorageUrl,
    defect: Defect,
    /// Where parts are lined up as they come.
    arrived: Mutex<Vec<u8>>,
}

#[async_trait::async_trait]
impl Upload for DefectiveUpload {
    fn part_size(&self) -> u64 {
        PART
    }

    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let range = index * PART..source.size().min((index + 1) * PART);
        let part = self.memory.receive(&self.url, source, range.into()).await?;
        self.arrived.lock().unwrap().extend_from_slice(&part);
        // One part alone may be kept until the end.
        if self.defect == D::UploadIsSeenBeforeItsEnd && index > 0 {
            self.memory.put(&self.url, part, None);
        }
        self.good.part(index, source).await
    }

    async fn complete(&self) -> Result<Written> {
        let arrived = Bytes::from(self.arrived.lock().unwrap().clone());
        let written = Written {
            size: arrived.len() as u64,
            ..Written::default()
        };
        match self.defect {
            D::PartsAreInOrderOfArrival | D::PartSentAgainIsAdded => {
                self.memory.put(&self.url, arrived, None);
                Ok(written)
            }
            D::EmptyUploadIsLost if arrived.is_empty() => Ok(written),
            _ => self.good.complete().await,
        }
    }

    async fn abort(&self) -> Result<()> {
        if self.defect == D::AbortedUploadStays {
            let arrived = self.arrived.lock().unwrap().clone();
            if arrived.len() as u64 > PART {
                self.memory.put(&self.url, arrived.into(), None);
            }
        }
        if self.defect == D::UploadIsLeft {
            self.memory.uploads().insert(self.url.to_string());
        }
        self.good.abort().await
    }
}
