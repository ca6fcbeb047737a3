//! Looking at what is on a server.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use tesk_core::storage::FileInfo;
use tokio::io::AsyncReadExt as _;

use super::connection::{Connection, in_time_io};
use super::listing::{self, Found, Kind, Line};
use super::reply::{Failure, Reply};

/// The most that one directory's listing may take.
const LONGEST_LISTING: usize = 256 << 20;
/// The longest line of a listing.
const LONGEST_LINE: usize = 64 << 10;
/// The most that one directory holds.
const MOST_ENTRIES: usize = 1_000_000;

impl Connection {
    /// What is in the directory `path`. Not a directory is a [`Failure::Reply`].
    pub(super) async fn list(&mut self, path: &str) -> Result<Listing, Failure> {
        // Listing without a path has two reasons: a server may take one for options or a
        // pattern, and may show a missing directory as an empty one.
        self.must(format!("CWD {path}")).await?;
        if self.is_machine_readable() {
            match self.lines("MLSD", listing::machine_readable).await {
                Err(Failure::Reply(reply)) if reply.is_unknown_command() => {
                    self.dialect
                        .no_machine_readable
                        .store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        // Without the option some leave out names with a dot at the start.
        if !self.dialect.no_list_options.load(Ordering::Relaxed) {
            match self.lines("LIST -a", listing::human_readable).await {
                Ok(listing) if listing.lines > 0 => return Ok(listing),
                // Taken for the name of a file.
                Ok(_) => {}
                Err(Failure::Reply(reply)) if reply.code >= 450 => {}
                Err(failure) => return Err(failure),
            }
        }
        let listing = self.lines("LIST", listing::human_readable).await?;
        if listing.lines > 0 {
            self.dialect.no_list_options.store(true, Ordering::Relaxed);
        }
        Ok(listing)
    }

    fn is_machine_readable(&self) -> bool {
        let features = self.dialect.features.get().copied().unwrap_or_default();
        features.machine_readable && !self.dialect.no_machine_readable.load(Ordering::Relaxed)
    }

    async fn lines(&mut self, command: &str, read: fn(&str) -> Line) -> Result<Listing, Failure> {
        let mut data = match self.open_data(command, 0).await {
            Ok(data) => data,
            // The directory is there: `CWD` found it.
            Err(Failure::Reply(reply)) if matches!(reply.code, 450 | 550) && reply.says_empty() => {
                return Ok(Listing::default());
            }
            Err(failure) => return Err(failure),
        };
        let mut listing = Listing::default();
        let mut pending = Vec::new();
        let mut all = 0;
        let limit = self.settings.command_timeout;
        loop {
            let searched = pending.len();
            let count = in_time_io(limit, data.read_buf(&mut pending)).await?;
            all += count;
            let mut start = 0;
            while let Some(end) = pending[start.max(searched)..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let end = start.max(searched) + end;
                listing.add(&pending[start..end], read)?;
                start = end + 1;
            }
            pending.drain(..start);
            if count == 0 {
                break;
            }
            if pending.len() > LONGEST_LINE || all > LONGEST_LISTING {
                return Err(Failure::Endless("the listing is too long".into()));
            }
        }
        listing.add(&pending, read)?;
        self.finish(data, Some(limit)).await?;
        match listing.garbage.take() {
            Some(line) if listing.found.is_empty() => Err(Failure::Listing(line)),
            _ => Ok(listing),
        }
    }

    /// What is at `path`.
    pub(super) async fn stat(&mut self, path: &str) -> Result<Option<Kind>, Failure> {
        if path == "/" {
            self.must("CWD /".into()).await?;
            return Ok(Some(Kind::Directory));
        }
        if self.is_machine_readable() {
            let reply = self.command(format!("MLST {path}")).await?;
            if reply.is_done() {
                match reply
                    .text
                    .lines()
                    .nth(1)
                    .map(str::trim_start)
                    .map(listing::machine_readable)
                {
                    Some(Line::Itself(_)) => return Ok(Some(Kind::Directory)),
                    Some(Line::Found(found)) if !matches!(found.kind, Kind::Link(_)) => {
                        return Ok(Some(found.kind));
                    }
                    // What a link leads to is asked below.
                    _ => {}
                }
            } else if !reply.is_unknown_command() {
                return nothing_or(reply);
            }
        }
        self.stat_target(path).await
    }

    /// The same where `path` may be a link: what it leads to.
    pub(super) async fn stat_target(&mut self, path: &str) -> Result<Option<Kind>, Failure> {
        if self.dialect.no_size.load(Ordering::Relaxed) {
            return self.stat_by_listing(path).await;
        }
        let reply = self.command(format!("SIZE {path}")).await?;
        if reply.is_done() {
            let size = reply.text.trim().parse().ok();
            let reply = self.command(format!("MDTM {path}")).await?;
            let time = (reply.code == 213).then(|| reply.text.trim());
            return Ok(Some(Kind::File(FileInfo {
                size,
                version: listing::version(time, size),
                modified: listing::modified(time),
                ..Default::default()
            })));
        }
        if reply.is_unknown_command() && reply.code != 501 {
            self.dialect.no_size.store(true, Ordering::Relaxed);
            return self.stat_by_listing(path).await;
        }
        if self.is_directory(path).await? {
            return Ok(Some(Kind::Directory));
        }
        nothing_or(reply)
    }

    /// The size of the file `path`, where the server tells.
    pub(super) async fn size(&mut self, path: &str) -> Result<Option<u64>, Failure> {
        if !self.dialect.no_size.load(Ordering::Relaxed) {
            let reply = self.command(format!("SIZE {path}")).await?;
            if reply.is_done() {
                return Ok(reply.text.trim().parse().ok());
            }
        }
        Ok(match self.stat_target(path).await? {
            Some(Kind::File(info)) => info.size,
            _ => None,
        })
    }

    /// For servers that know neither `MLST` nor `SIZE`.
    async fn stat_by_listing(&mut self, path: &str) -> Result<Option<Kind>, Failure> {
        if self.is_directory(path).await? {
            return Ok(Some(Kind::Directory));
        }
        let Some((parent, name)) = path.rsplit_once('/') else {
            return Ok(None);
        };
        let parent = if parent.is_empty() { "/" } else { parent };
        let listed = match self.list(parent).await {
            Ok(listed) => listed,
            Err(Failure::Reply(reply)) if reply.code >= 450 => return nothing_or(reply),
            Err(failure) => return Err(failure),
        };
        let found = listed.found.into_iter().find(|found| found.name == name);
        Ok(found.map(|found| match found.kind {
            Kind::Link(_) => Kind::File(FileInfo::default()),
            kind => kind,
        }))
    }
}

/// What an answer to a question about a path means: nothing is there, or no answer.
fn nothing_or(reply: Reply) -> Result<Option<Kind>, Failure> {
    let nothing = match reply.code {
        550 | 553 => !reply.says_denied(),
        450 => reply.says_missing(),
        _ => false,
    };
    if nothing {
        Ok(None)
    } else {
        Err(Failure::Reply(reply))
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) found: Vec<Found>,
    /// The server's mark of the directory.
    pub(super) unique: Option<String>,
    /// Lines in all.
    lines: usize,
    garbage: Option<String>,
}

impl Listing {
    fn add(&mut self, line: &[u8], read: fn(&str) -> Line) -> Result<(), Failure> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Ok(());
        }
        self.lines += 1;
        let text = String::from_utf8_lossy(line);
        match read(&text) {
            Line::Found(found) if matches!(text, Cow::Owned(_)) => {
                // It could not be asked for: the bytes of its name are lost.
                return Err(Failure::Name(found.name.escape_debug().to_string()));
            }
            Line::Found(_) if self.found.len() >= MOST_ENTRIES => {
                let message = format!("more than {MOST_ENTRIES} entries are in one directory");
                return Err(Failure::Endless(message));
            }
            Line::Found(found) => self.found.push(found),
            Line::Itself(unique) => self.unique = unique,
            Line::Nothing => {}
            // Of many, one is told.
            Line::Garbage if self.garbage.is_some() => {}
            Line::Garbage => {
                let line: String = text
                    .chars()
                    .take(100)
                    .flat_map(char::escape_debug)
                    .collect();
                tracing::warn!(line, "a line of a listing is not understood");
                self.garbage = Some(line);
            }
        }
        Ok(())
    }
}
