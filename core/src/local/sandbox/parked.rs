//! A directory that this process has, and yet does not have open.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A descriptor on its way through a socket. While a command is started, no descriptor of a
/// directory outside its root may be open: `/proc/self/fd` of the process that starts it is
/// where a name of the task could lead out.
#[derive(Debug)]
pub(super) struct Parked {
    from: OwnedFd,
    /// Else what is on its way is lost.
    _to: OwnedFd,
}

impl Parked {
    pub(super) fn new(descriptor: impl AsFd) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (from, to) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&to, &[IoSlice::new(b".")], &mut control, SendFlags::empty())?;
        Ok(Self { from, _to: to })
    }

    /// The same directory, open again.
    pub(super) fn take(self) -> io::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        recvmsg(
            &self.from,
            &mut bytes,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut messages = control.drain();
        let descriptor = messages.find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        descriptor.ok_or_else(|| io::Error::other("the directory did not come back"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_parked_directory_is_not_open_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        let links_to_it = || {
            let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
            let links = links.filter(|l| fs::read_link(l.path()).is_ok_and(|to| to == real));
            links.count()
        };
        let file = File::open(directory.path()).unwrap();
        assert_eq!(links_to_it(), 1);
        let parked = Parked::new(&file).unwrap();
        drop(file);
        assert_eq!(links_to_it(), 0);
        let back = parked.take().unwrap();
        let link = format!("/proc/self/fd/{}", back.as_raw_fd());
        assert_eq!(fs::read_link(link).unwrap(), real);
    }
}
