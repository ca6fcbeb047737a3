//! Copies between open files of this machine.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

/// What one step of a copy moves at most, in bytes: how soon it can be stopped.
const STEP: usize = 8 << 20;
/// The buffer where the kernel cannot copy by itself, in bytes.
const BUFFER: usize = 1 << 20;

/// Copies the first `size` bytes of `from` to the start of `to`, inside the kernel where it can
/// (`copy_file_range(2)`: on some file systems without moving a byte). Blocks.
///
/// `progress` hears of the bytes of every step (8 MiB at most) and may end the copy, which is
/// then [`io::ErrorKind::Interrupted`]. A source that is shorter is
/// [`io::ErrorKind::UnexpectedEof`].
pub fn copy_contents(
    from: &File,
    to: &File,
    size: u64,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut done = 0_u64;
    let mut buffer = Vec::new();
    while done < size {
        let step = usize::try_from(size - done).map_or(STEP, |left| left.min(STEP));
        let moved = if buffer.is_empty() {
            let (mut read_at, mut write_at) = (done, done);
            match rustix::fs::copy_file_range(
                from,
                Some(&mut read_at),
                to,
                Some(&mut write_at),
                step,
            ) {
                // Other file systems, or ones that cannot. Some report an early end instead.
                Err(
                    Errno::XDEV
                    | Errno::INVAL
                    | Errno::NOSYS
                    | Errno::OPNOTSUPP
                    | Errno::PERM
                    | Errno::BADF,
                )
                | Ok(0) => {
                    buffer = vec![0; BUFFER];
                    continue;
                }
                Err(Errno::INTR | Errno::AGAIN) => continue,
                done => done?,
            }
        } else {
            let step = step.min(buffer.len());
            let read = from.read_at(&mut buffer[..step], done)?;
            to.write_all_at(&buffer[..read], done)?;
            read
        };
        if moved == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "became shorter while it was read",
            ));
        }
        done += moved as u64;
        if progress(moved as u64).is_break() {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(())
}
