//! Drains one stream of a command.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::show;

const BUFFER: usize = 64 * 1024;
/// The most that is still read when nobody waits for an end any more: what the largest pipe
/// can hold.
const LAST_READ: usize = 1024 * 1024;

/// A stream and where its bytes go.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pipe: pipe::Receiver,
    pub(super) file: Option<(PathBuf, File)>,
    pub(super) echo: Option<Echo>,
    /// Bytes kept of its end.
    pub(super) keep: usize,
}

/// One of our own streams.
#[derive(Clone, Copy, Debug)]
pub(super) enum Echo {
    Stdout,
    Stderr,
}

impl Echo {
    fn open(self) -> Option<tokio::fs::File> {
        let fd = match self {
            Self::Stdout => std::io::stdout().as_fd().try_clone_to_owned(),
            Self::Stderr => std::io::stderr().as_fd().try_clone_to_owned(),
        };
        Some(tokio::fs::File::from_std(fd.ok()?.into()))
    }
}

/// What was captured.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) tail: String,
    /// Why its file is not whole.
    pub(super) problem: Option<String>,
}

impl Stream {
    /// Reads to the end of the stream; after `drain` only what lies ready. Whatever happens to
    /// the file or to our own stream, the command never waits for a reader.
    pub(super) async fn capture(mut self, drain: CancellationToken) -> Captured {
        let mut tail = Tail::new(self.keep);
        let mut problem = None;
        let mut file = self
            .file
            .take()
            .map(|(path, file)| (path, tokio::fs::File::from_std(file)));
        let mut echo = self.echo.and_then(Echo::open);
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
            if let Some((path, writer)) = &mut file
                && let Err(error) = writer.write_all(bytes).await
            {
                problem = Some(cannot_write(path, &error));
                file = None;
            }
            if let Some(writer) = &mut echo
                && writer.write_all(bytes).await.is_err()
            {
                echo = None;
            }
        }
        if let Some((path, mut writer)) = file
            && let Err(error) = writer.flush().await
        {
            problem = Some(cannot_write(&path, &error));
        }
        if let Some(mut writer) = echo {
            let _ = writer.flush().await;
        }
        Captured {
            tail: tail.into_text(),
            problem,
        }
    }
}

fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> String {
    format!(
        "cannot write the command's output to {}: {error}",
        show(path)
    )
}

/// The end of a stream of bytes.
#[derive(Debug)]
pub(super) struct Tail {
    keep: usize,
    bytes: Vec<u8>,
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
