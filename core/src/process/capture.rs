//! Drains one stream of a command.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::{ECHO_SIZE, Echo, Unwritten, show};

const BUFFER: usize = 64 * 1024;
/// The most that is still read when nobody waits for an end any more: what the largest pipe
/// can hold.
const LAST_READ: usize = 1024 * 1024;

/// A stream and where its bytes go.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pipe: pipe::Receiver,
    pub(super) file: Option<(PathBuf, File)>,
    pub(super) echo: Option<Echoed>,
    /// Bytes kept of its end.
    pub(super) keep: usize,
}

/// Where a stream is passed on to.
#[derive(Debug)]
pub(super) struct Echoed {
    file: tokio::fs::File,
    bounded: bool,
}

impl Echoed {
    /// `own` is our own stream of this kind.
    pub(super) fn open(echo: &Echo, own: BorrowedFd<'_>) -> Option<Self> {
        let (file, bounded) = match echo {
            Echo::Off => return None,
            Echo::Own => (own.try_clone_to_owned().map(File::from), false),
            Echo::File(file) => (file.try_clone(), true),
        };
        let file = tokio::fs::File::from_std(file.ok()?);
        Some(Self { file, bounded })
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes).await?;
        if self.bounded {
            self.file.flush().await?;
            // The other stream writes into it too.
            if self.file.metadata().await?.len() >= ECHO_SIZE {
                self.file.set_len(0).await?;
            }
        }
        Ok(())
    }
}

/// What was captured.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) tail: String,
    /// How many bytes there were, if the tail does not have them all and nor has a file.
    pub(super) cut: Option<u64>,
    /// Why its file is not whole.
    pub(super) problem: Option<Unwritten>,
}

impl Stream {
    /// Reads to the end of the stream; after `drain` only what lies ready. Whatever happens to
    /// the file or to our own stream, the command never waits for a reader.
    pub(super) async fn capture(mut self, drain: CancellationToken) -> Captured {
        let mut tail = Tail::new(self.keep);
        let mut problem = None;
        let (mut printed, has_file) = (0, self.file.is_some());
        let mut file = self
            .file
            .take()
            .map(|(path, file)| (path, tokio::fs::File::from_std(file)));
        let mut buffer = vec![0; BUFFER];
        let mut last_read = LAST_READ;
        loop {
            let read = tokio::select! {
                biased;
                () = drain.cancelled() => rustix::io::read(&self.pipe, &mut *buffer).unwrap_or(0),
                read = self.pipe.read(&mut buffer) => read.unwrap_or(0),
            };
            if drain.is_cancelled() {
                last_read = last_read.saturating_sub(read);
            }
            if read == 0 || last_read == 0 {
                break;
            }
            let bytes = &buffer[..read];
            tail.push(bytes);
            printed += read as u64;
            if let Some((path, writer)) = &mut file
                && let Err(error) = writer.write_all(bytes).await
            {
                problem = Some(cannot_write(path, &error));
                file = None;
            }
            if let Some(echo) = &mut self.echo
                && echo.write(bytes).await.is_err()
            {
                self.echo = None;
            }
        }
        if let Some((path, mut writer)) = file
            && let Err(error) = writer.flush().await
        {
            problem = Some(cannot_write(&path, &error));
        }
        if let Some(mut echo) = self.echo {
            let _ = echo.file.flush().await;
        }
        Captured {
            tail: tail.into_text(),
            cut: (printed > self.keep as u64 && !has_file).then_some(printed),
            problem,
        }
    }
}

fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> Unwritten {
    Unwritten {
        what: format!("cannot write the command's output to {}", show(path)),
        kind: error.kind(),
    }
}

/// The end of a stream of bytes.
#[derive(Debug)]
pub(super) struct Tail {
    keep: usize,
    pub(super) bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep,
            bytes: Vec::new(),
            cut: false,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Not at each push: moving the rest to the front costs.
        if self.bytes.len() > self.keep + 4 * BUFFER {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if let Some(surplus) = self.bytes.len().checked_sub(self.keep).filter(|n| *n > 0) {
            self.bytes.drain(..surplus);
            self.cut = true;
        }
    }

    /// As text of at most `keep` bytes that begins with a whole character.
    pub(super) fn into_text(mut self) -> String {
        self.cut();
        let mut bytes = &self.bytes[..];
        if self.cut {
            let partial = bytes
                .iter()
                .take(3)
                .take_while(|b| **b & 0xC0 == 0x80)
                .count();
            bytes = &bytes[partial..];
        }
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        // Replacements are longer than what they replace.
        let mut start = text.len().saturating_sub(self.keep);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text.drain(..start);
        text
    }
}
