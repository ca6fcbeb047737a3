mod upload;
mod waiting;

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::*;
use crate::rooted::{RelPath, Root, Symlinks};
use crate::storage::{
    ByteRange, Capabilities, Checksum, Entry, EntryKind, EntryStream, ErrorKind, FileInfo, Opened,
    Source, Storage, Version, Written,
};

/// A storage of one file (or listing) whose reads go wrong as scripted.
#[derive(Debug, Default)]
struct Scripted {
    content: Mutex<Vec<u8>>,
    version: Mutex<Option<String>>,
    claims: Capabilities,
    checksum: Option<Checksum>,
    size_unknown: bool,
    /// For each read from the first on what happens; afterwards all goes well.
    faults: Mutex<VecDeque<Fault>>,
    /// Where each read began.
    reads: Mutex<Vec<u64>>,
    listing: Vec<Entry>,
    /// The names written, renamed and removed.
    log: Mutex<Vec<String>>,
    /// The modes of the local files that were written here.
    modes: Mutex<Vec<u32>>,
    /// What is told of every file.
    mode: Option<u32>,
    /// The checksum that comes with the bytes.
    told: Option<Checksum>,
}

#[derive(Debug)]
enum Fault {
    /// An error instead of a stream.
    Refuse(ErrorKind, &'static str),
    /// So many bytes, then an error.
    CutAfter(usize),
    /// So many bytes, then the end, as if all were well.
    EndAfter(usize),
    /// So many bytes, then silence.
    StallAfter(usize),
    /// So many bytes, then other content takes the file's place.
    ChangeAfter(usize, Vec<u8>),
}

#[async_trait]
impl Storage for Scripted {
    fn capabilities(&self) -> Capabilities {
        self.claims
    }

    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        let size = self.content.lock().unwrap().len() as u64;
        let info = FileInfo {
            size: (!self.size_unknown).then_some(size),
            version: self.version.lock().unwrap().clone().map(Version),
            checksum: self.checksum.clone(),
            mode: self.mode,
            modified: None,
        };
        let path = String::new();
        Ok(Some(Entry {
            path,
            kind: EntryKind::File(info),
        }))
    }

    async fn list(&self, _: &StorageUrl) -> Result<EntryStream> {
        let entries = self.listing.clone().into_iter().map(Ok);
        Ok(stream::iter(entries).boxed())
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        self.reads.lock().unwrap().push(range.start);
        let now = self.version.lock().unwrap().clone();
        if version.is_some_and(|v| Some(&v.0) != now.as_ref()) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                url,
                "another version is there",
            ));
        }
        let content = self.content.lock().unwrap().clone();
        let end = range.end.map_or(content.len(), |end| end as usize);
        let bytes = Bytes::from(content[range.start as usize..end].to_vec());
        let cut = Error::new(ErrorKind::Unavailable, url, "the connection was cut");
        let first = |n: usize| stream::iter([Ok(bytes.slice(..n))]);
        let bytes = match self.faults.lock().unwrap().pop_front() {
            None => stream::iter([Ok(bytes)]).boxed(),
            Some(Fault::Refuse(kind, message)) => return Err(Error::new(kind, url, message)),
            Some(Fault::CutAfter(n)) => first(n).chain(stream::iter([Err(cut)])).boxed(),
            Some(Fault::EndAfter(n)) => first(n).boxed(),
            Some(Fault::StallAfter(n)) => first(n).chain(stream::pending()).boxed(),
            Some(Fault::ChangeAfter(n, content)) => {
                *self.content.lock().unwrap() = content;
                *self.version.lock().unwrap() = Some("2".into());
                first(n).chain(stream::iter([Err(cut)])).boxed()
            }
        };
        let checksum = self.told.clone();
        Ok(Opened { bytes, checksum })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        self.log
            .lock()
            .unwrap()
            .push(format!("write {}", url.path()));
        if let Some(file) = source.local_file() {
            let mode = file.metadata().unwrap().permissions().mode();
            self.modes.lock().unwrap().push(mode & 0o7777);
        }
        let mut stream = source.read(ByteRange::FULL).await?;
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?);
        }
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            Some(Fault::EndAfter(n)) => all.truncate(n),
            Some(Fault::StallAfter(_)) => std::future::pending().await,
            _ => {}
        }
        let size = source.size();
        *self.content.lock().unwrap() = all;
        Ok(Written {
            size,
            checksum: self.checksum.clone(),
            version: None,
        })
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        let entry = format!("rename {} {}", from.path(), to.path());
        self.log.lock().unwrap().push(entry);
        Ok(())
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.log
            .lock()
            .unwrap()
            .push(format!("remove {}", url.path()));
        Ok(())
    }
}

const URL: &str = "ftp://me:s3cret@host/dir/file";
/// Of another storage.
const TO: &str = "ftp://to/";

fn url() -> StorageUrl {
    URL.parse().unwrap()
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 % 253) as u8).collect()
}

fn scripted(size: usize, faults: impl IntoIterator<Item = Fault>) -> Scripted {
    let mut claims = Capabilities::read_only();
    claims.ranges = true;
    Scripted {
        content: Mutex::new(content(size)),
        version: Mutex::new(Some("1".into())),
        claims,
        faults: Mutex::new(faults.into_iter().collect()),
        ..Scripted::default()
    }
}

fn quick() -> Settings {
    Settings {
        retry_base_ms: 1,
        retry_max_ms: 2,
        progress_timeout_secs: 1,
        commit_timeout_secs: 1,
        range_mib: 1,
        ..Settings::default()
    }
}

struct Setup {
    dir: tempfile::TempDir,
    storage: Arc<Scripted>,
    engine: Engine,
}

fn setup(storage: Scripted) -> Setup {
    setup_with(storage, &quick())
}

fn setup_with(storage: Scripted, settings: &Settings) -> Setup {
    let storage = Arc::new(storage);
    let dynamic: Arc<dyn Storage> = storage.clone();
    let registry = Registry::default().serving("ftp://", &dynamic).unwrap();
    Setup {
        dir: tempfile::tempdir().unwrap(),
        engine: Engine::new(Arc::new(registry), settings),
        storage,
    }
}

impl Setup {
    fn local(&self, name: &str) -> LocalPath {
        LocalPath {
            root: Arc::new(Root::open(self.dir.path(), Symlinks::InRoot).unwrap()),
            path: RelPath::new(name).unwrap(),
        }
    }

    async fn fetch(&self) -> Result<Vec<u8>> {
        let moved = self
            .engine
            .fetch_file(&url(), &self.local("a/b"), false)
            .await?;
        let bytes = std::fs::read(self.dir.path().join("a/b")).unwrap();
        assert_eq!(moved.size, bytes.len() as u64);
        assert_eq!(moved.url, "ftp://host/dir/file");
        let counters = self.engine.counters();
        assert_eq!(counters.bytes_done.load(Ordering::Relaxed), moved.size);
        assert_eq!(counters.bytes_total.load(Ordering::Relaxed), moved.size);
        Ok(bytes)
    }

    fn reads(&self) -> Vec<u64> {
        self.storage.reads.lock().unwrap().clone()
    }

    /// Every file below the directory.
    fn files(&self) -> Vec<String> {
        let found = self.local("").root.walk(&RelPath::default()).unwrap();
        let files = found.map(|f| f.unwrap()).filter(|f| !f.metadata.is_dir());
        files.map(|f| f.path.to_string()).collect()
    }
}

#[tokio::test]
async fn a_file_arrives_whole_whatever_its_size() {
    for size in [0, 1, 1 << 20, (3 << 20) + 1] {
        let setup = setup(scripted(size, []));
        assert!(setup.fetch().await.unwrap() == content(size), "{size}");
    }
}

#[tokio::test]
async fn a_cut_stream_is_resumed_at_the_byte_reached() {
    let setup = setup(scripted(1000, [Fault::CutAfter(400), Fault::EndAfter(100)]));
    assert_eq!(setup.fetch().await.unwrap(), content(1000));
    assert_eq!(setup.reads(), [0, 400, 500]);
}

#[tokio::test]
async fn a_stalled_stream_is_resumed() {
    let setup = setup(scripted(1000, [Fault::StallAfter(10)]));
    assert_eq!(setup.fetch().await.unwrap(), content(1000));
    assert_eq!(setup.reads(), [0, 10]);
}

#[tokio::test]
async fn without_ranges_or_a_version_a_cut_stream_begins_anew() {
    let mut storage = scripted(1000, [Fault::CutAfter(400)]);
    storage.claims.ranges = false;
    let setup_a = setup(storage);
    assert_eq!(setup_a.fetch().await.unwrap(), content(1000));
    assert_eq!(setup_a.reads(), [0, 0]);

    let storage = scripted(1000, [Fault::CutAfter(400)]);
    *storage.version.lock().unwrap() = None;
    let setup_b = setup(storage);
    assert_eq!(setup_b.fetch().await.unwrap(), content(1000));
    assert_eq!(setup_b.reads(), [0, 0]);
}

#[tokio::test]
async fn a_file_that_changes_midway_is_fetched_anew_and_never_mixed() {
    let new = vec![9; 700];
    let setup = setup(scripted(1000, [Fault::ChangeAfter(400, new.clone())]));
    assert_eq!(setup.fetch().await.unwrap(), new);
    assert_eq!(setup.reads(), [0, 400, 0]);
}

#[tokio::test]
async fn ranges_of_a_large_file_each_recover_by_themselves() {
    let size = (5 << 20) + 7;
    let faults = [
        Fault::CutAfter(10),
        Fault::CutAfter(20),
        Fault::StallAfter(30),
    ];
    let setup = setup(scripted(size, faults));
    assert!(setup.fetch().await.unwrap() == content(size));
    assert_eq!(setup.reads().len(), 6 + 3);
}

#[tokio::test]
async fn an_error_that_no_retry_cures_is_told_at_once_and_nothing_is_left() {
    let setup = setup(scripted(10, [Fault::Refuse(ErrorKind::Denied, "no")]));
    let error = setup.fetch().await.unwrap_err();
    assert_eq!(error.to_string(), "ftp://host/dir/file: no");
    assert_eq!(setup.reads().len(), 1);
    assert!(setup.files().is_empty());
}

#[tokio::test]
async fn retries_come_to_an_end_and_say_so() {
    let refusals = (0..50).map(|_| Fault::Refuse(ErrorKind::Unavailable, "busy"));
    let setup = setup(scripted(10, refusals));
    let error = setup.fetch().await.unwrap_err();
    assert!(
        error.to_string().contains("gave up after 6 attempts: busy"),
        "{error}"
    );
    assert!(
        error.is_retryable(),
        "another attempt at the task may have more luck"
    );
    assert_eq!(setup.reads().len(), 6);
}

#[tokio::test]
async fn secrets_that_a_plugin_tells_are_cut() {
    let text = "530 login me:s3cret failed for ftp://me:s3cret@host/";
    let setup = setup(scripted(
        10,
        [Fault::Refuse(ErrorKind::Unauthenticated, text)],
    ));
    let error = setup.fetch().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
}

fn sha256(bytes: &[u8]) -> Checksum {
    use sha2::Digest as _;
    Checksum::Sha256(sha2::Sha256::digest(bytes).into())
}

#[tokio::test]
async fn a_wrong_checksum_is_never_put_in_place() {
    for size in [1000, 3 << 20] {
        let mut storage = scripted(size, []);
        storage.checksum = Some(sha256(&content(size)));
        assert!(setup(storage).fetch().await.is_ok());
        let mut storage = scripted(size, []);
        storage.checksum = Some(sha256(b"other"));
        let setup = setup(storage);
        let error = setup.fetch().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(setup.files().is_empty());
    }
}

#[tokio::test]
async fn a_checksum_that_comes_with_the_bytes_is_compared() {
    for size in [10, 100_000] {
        for (of, verify, fine) in [
            (content(size), true, true),
            (content(size - 1), true, false),
            (content(size - 1), false, true),
        ] {
            // What came before the cut is not seen again.
            let mut storage = scripted(size, [Fault::CutAfter(size / 2)]);
            storage.told = Some(sha256(&of));
            storage.claims.list = true;
            storage.listing = vec![listed("f", Some(size as u64))];
            let EntryKind::File(info) = &mut storage.listing[0].kind else {
                panic!("it is a file");
            };
            info.version = Some(Version("1".into()));
            let setup = setup_with(storage, &Settings { verify, ..quick() });
            let to = setup.local("to");
            let fetched = setup.engine.fetch_directory(&url(), &to).await;
            assert_eq!(fetched.is_ok(), fine, "{size}: {fetched:?}");
            assert_eq!(setup.files().len(), usize::from(fine));
            let start = setup.reads()[..2].to_vec();
            assert_eq!(start, [0, size as u64 / 2], "{size}");
        }
    }
}

#[tokio::test]
async fn a_file_of_unknown_size_is_fetched_to_its_end() {
    let mut storage = scripted(1000, []);
    storage.size_unknown = true;
    assert_eq!(setup(storage).fetch().await.unwrap(), content(1000));
}

#[tokio::test]
async fn in_place_keeps_the_inode_and_leaves_no_old_bytes() {
    use std::os::unix::fs::MetadataExt as _;
    let setup = setup(scripted(10, [Fault::CutAfter(4)]));
    let path = setup.dir.path().join("mounted");
    std::fs::write(&path, "older and longer").unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let to = setup.local("mounted");
    setup.engine.fetch_file(&url(), &to, true).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(std::fs::read(&path).unwrap(), content(10));
}

#[tokio::test]
async fn a_file_that_is_written_in_place_is_read_in_one_stream() {
    let setup = setup(scripted(3 << 20, []));
    let to = setup.local("mounted");
    setup.engine.fetch_file(&url(), &to, true).await.unwrap();
    assert_eq!(setup.reads(), [0]);
}

#[tokio::test]
async fn a_dropped_fetch_leaves_nothing() {
    let setup = setup_with(scripted(10, [Fault::StallAfter(4)]), &Settings::default());
    let fetch = setup.fetch();
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(100), fetch)
            .await
            .is_err()
    );
    assert!(setup.files().is_empty());
    assert_eq!(
        setup.engine.counters().bytes_done.load(Ordering::Relaxed),
        0
    );
}

fn listed(path: &str, size: Option<u64>) -> Entry {
    let kind = match size {
        None => EntryKind::Directory,
        size => EntryKind::File(FileInfo {
            size,
            ..FileInfo::default()
        }),
    };
    let path = path.to_owned();
    Entry { path, kind }
}

#[tokio::test]
async fn a_directory_arrives_with_its_empty_directories() {
    let mut storage = scripted(3, []);
    storage.claims.list = true;
    storage.listing = (0..300)
        .map(|i| listed(&format!("d{}/f{i}", i % 7), Some(3)))
        .collect();
    storage.listing.push(listed("empty/deep", None));
    let setup = setup(storage);
    let to = setup.local("to");
    let moved = setup.engine.fetch_directory(&url(), &to).await.unwrap();
    assert_eq!(moved.files, 300);
    assert!(setup.dir.path().join("to/empty/deep").is_dir());
    assert_eq!(setup.files().len(), 300);
    assert_eq!(
        setup.engine.counters().files_done.load(Ordering::Relaxed),
        300
    );
}

#[tokio::test]
async fn a_hostile_listing_writes_nothing_outside() {
    for name in ["../evil", "/evil", "a/../../evil"] {
        let mut storage = scripted(3, []);
        storage.claims.list = true;
        storage.listing = vec![listed(name, Some(3))];
        let setup = setup(storage);
        let to = setup.local("to");
        let error = setup.engine.fetch_directory(&url(), &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(setup.files().is_empty());
    }
}

fn writable(faults: impl IntoIterator<Item = Fault>) -> Scripted {
    let mut storage = scripted(0, faults);
    storage.claims.write = true;
    storage.claims.rename = true;
    storage.claims.remove = true;
    storage
}

#[tokio::test]
async fn a_write_that_is_not_atomic_gets_its_name_when_it_is_whole() {
    let setup = setup(writable([Fault::EndAfter(5)]));
    std::fs::write(setup.dir.path().join("out"), content(1000)).unwrap();
    let moved = setup
        .engine
        .store_file(&setup.local("out"), &url())
        .await
        .unwrap();
    assert_eq!(
        (moved.size, moved.url.as_str()),
        (1000, "ftp://host/dir/file")
    );
    assert_eq!(*setup.storage.content.lock().unwrap(), content(1000));
    let log = setup.storage.log.lock().unwrap().clone();
    let verbs: Vec<_> = log
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(verbs, ["write", "remove", "write", "rename"], "{log:?}");
    assert!(log[0].starts_with("write /dir/.tesk-"), "{log:?}");
    assert!(log[3].ends_with(" /dir/file"), "{log:?}");
}

#[tokio::test]
async fn a_storage_that_does_not_write_is_not_asked_to() {
    let setup = setup(scripted(0, []));
    std::fs::write(setup.dir.path().join("out"), "x").unwrap();
    let error = setup
        .engine
        .store_file(&setup.local("out"), &url())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let missing = setup
        .engine
        .store_file(&setup.local("none"), &url())
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

/// A bench whose engine also serves another storage, at [`TO`], which keeps one file.
fn pair(from: Scripted) -> (Setup, Arc<Scripted>) {
    let mut setup = setup(from);
    let mut claims = Capabilities::read_only();
    claims.write = true;
    claims.atomic_write = true;
    let to = Arc::new(Scripted {
        claims,
        ..Scripted::default()
    });
    let dynamic: Arc<dyn Storage> = to.clone();
    let registry = setup.engine.registry().as_ref().clone();
    let registry = registry.serving(TO, &dynamic).unwrap();
    setup.engine = Engine::new(Arc::new(registry), &quick());
    (setup, to)
}

#[tokio::test]
async fn a_copy_between_storages_resumes_its_reading() {
    let faults = [Fault::CutAfter(1000), Fault::CutAfter(500)];
    let (setup, to) = pair(scripted(3000, faults));
    let target = TO.parse().unwrap();
    let moved = setup.engine.copy(&url(), &target).await.unwrap();
    assert_eq!(moved.size, 3000);
    assert_eq!(*to.content.lock().unwrap(), content(3000));
    assert_eq!(setup.reads(), [0, 1000, 1500]);
    assert_eq!(to.log.lock().unwrap().len(), 1, "written once");
}

#[tokio::test]
async fn a_copy_between_storages_is_compared_with_the_checksum_of_its_source() {
    for (size, of, fine) in [
        (0, content(0), true),
        (3000, content(3000), true),
        (3000, content(2999), false),
    ] {
        let mut from = scripted(size, [Fault::CutAfter(size / 2)]);
        from.checksum = Some(sha256(&of));
        let (setup, to) = pair(from);
        let copied = setup.engine.copy(&url(), &TO.parse().unwrap()).await;
        assert_eq!(copied.is_ok(), fine, "{copied:?}");
        assert_eq!(
            to.content.lock().unwrap().len(),
            if fine { size } else { 0 }
        );
        if let Err(error) = copied {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_listed_after_what_is_in_it_is_copied() {
    let mut from = scripted(3, []);
    from.claims.list = true;
    from.listing = vec![listed("a/b", Some(3)), listed("a", None)];
    let (setup, to) = pair(from);
    let target = End::Url(TO.parse().unwrap());
    let copied = setup.engine.copy_directory(&End::Url(url()), &target).await;
    assert_eq!(copied.unwrap().files, 1);
    assert_eq!(*to.log.lock().unwrap(), ["write /a/b"]);
}

/// What this process takes from the modes of new files.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    u32::from_str_radix(umask.unwrap().trim(), 8).unwrap()
}

#[tokio::test]
async fn a_copy_is_no_file_that_anybody_may_change_or_run() {
    for (size, told) in [(10, None), (10, Some(0o4640)), (100_000, None)] {
        let mut from = scripted(size, []);
        from.mode = told;
        from.claims.list = true;
        from.listing = vec![listed("d/f", Some(size as u64))];
        let setup = setup(from);
        let (file, tree) = (End::Local(setup.local("a/b")), End::Local(setup.local("t")));
        let from = End::Url(url());
        setup.engine.copy_file(&from, &file).await.unwrap();
        setup.engine.copy_directory(&from, &tree).await.unwrap();
        let mode = |path: &str| {
            let found = std::fs::metadata(setup.dir.path().join(path)).unwrap();
            found.permissions().mode() & 0o7777
        };
        let (file, directory) = (told.unwrap_or(0o666) & 0o777 & !umask(), 0o777 & !umask());
        assert_eq!((mode("a/b"), mode("a")), (file, directory));
        assert_eq!((mode("t"), mode("t/d")), (directory, directory));
        assert_eq!(mode("t/d/f"), 0o666 & !umask(), "a listing tells no mode");
        setup
            .engine
            .fetch_file(&url(), &setup.local("i/f"), false)
            .await
            .unwrap();
        assert_eq!((mode("i"), mode("i/f")), (FETCHED_MODE, FETCHED_MODE));
    }
}

#[tokio::test]
async fn what_is_kept_for_a_copy_of_unknown_size_is_nobody_elses() {
    let mut from = scripted(100_000, []);
    from.size_unknown = true;
    let (setup, to) = pair(from);
    let copied = setup.engine.copy(&url(), &TO.parse().unwrap()).await;
    assert_eq!(copied.unwrap().size, 100_000);
    assert_eq!(*to.modes.lock().unwrap(), [0o600]);
}

#[tokio::test]
async fn a_dropped_write_under_another_name_is_removed() {
    let setup = setup(writable([Fault::StallAfter(0)]));
    std::fs::write(setup.dir.path().join("out"), "x").unwrap();
    let (file, to) = (setup.local("out"), url());
    let logged = async |lines: usize| {
        while setup.storage.log.lock().unwrap().len() < lines {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        stored = setup.engine.store_file(&file, &to) => panic!("{stored:?}"),
        () = logged(1) => {}
    }
    let written = setup.storage.log.lock().unwrap()[0].clone();
    let removed = written.replace("write", "remove");
    let limit = std::time::Duration::from_secs(10);
    let _ = tokio::time::timeout(limit, logged(2)).await;
    assert_eq!(*setup.storage.log.lock().unwrap(), [written, removed]);
}
