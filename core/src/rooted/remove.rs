//! Emptying a directory, however deep a hostile program has nested it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Opens a directory (given with `O_PATH`) to remove what is in it.
pub(super) fn open(directory: &OwnedFd) -> io::Result<OwnedFd> {
    // Best effort: of another owner's directory the next call tells what is wrong.
    let _ = super::chmod_fd(directory, 0o700);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, ".", flags, Mode::empty())?)
}

/// Removes everything in `directory`. A nested directory that is not empty is first moved up
/// into `directory` itself, so that neither the length of a path, nor the stack, nor the number
/// of open files limits the depth.
pub(super) fn empty(directory: &OwnedFd) -> io::Result<()> {
    let mut names = super::names_in(reopen(directory)?)?.collect::<io::Result<Vec<OsString>>>()?;
    while let Some(name) = names.pop() {
        if unlink(directory, &name)? {
            continue;
        }
        let child = open_child(directory, &name)?;
        for nested in super::names_in(reopen(&child)?)? {
            let nested = nested?;
            if unlink(&child, &nested)? {
                continue;
            }
            open_child(&child, &nested)?;
            let moved = OsString::from(super::temp_name());
            rustix::fs::renameat(&child, &nested, directory, &moved)?;
            names.push(moved);
        }
        // Not empty only if something was added meanwhile: the next round sees it.
        if !unlink(directory, &name)? {
            names.push(name);
        }
    }
    Ok(())
}

/// `false`: it is a directory that is not empty.
fn unlink(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let done = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
        done => done,
    };
    match done {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn open_child(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(&rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// A description of its own, with its own position.
fn reopen(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, ".", flags, Mode::empty())?)
}
