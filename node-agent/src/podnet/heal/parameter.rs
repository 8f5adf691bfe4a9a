//! Hears when somebody writes to a kernel parameter of whose change rtnetlink tells nobody.
//!
//! A file below `/proc/sys` is watched as any other is, for as long as somebody has it open: that keeps the kernel from
//! making another inode for it. Who writes by another mount of `/proc` (in a container with processes of its own) is not heard;
//! so the parameters are read now and then as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::super::sysctl;

/// Parameters that are watched, by the link that they are of.
#[derive(Debug)]
pub(crate) struct Parameters {
    inotify: OwnedFd,
    links: BTreeMap<String, Vec<(i32, File)>>,
}

impl Parameters {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, links: BTreeMap::new() })
    }

    /// Watches those of a pod's link, which is in the namespace of the calling thread.
    pub(crate) fn watch(&mut self, link: &str) -> io::Result<()> {
        self.forget(link);
        let names = sysctl::without_events(link, true);
        let mut files = Vec::new();
        for file in sysctl::open_all(names.iter().map(|(name, _)| &name[..]))? {
            // By the file that is open, which the kernel does not have to find again.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            files.push((inotify::add_watch(&self.inotify, path, WatchFlags::MODIFY)?, file));
        }
        self.links.insert(link.to_owned(), files);
        Ok(())
    }

    /// A link is gone.
    pub(crate) fn forget(&mut self, link: &str) {
        for (watch, _) in self.links.remove(link).unwrap_or_default() {
            // The kernel may have been faster.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    /// The links that somebody has written to the parameters of.
    pub(crate) fn written(&self) -> io::Result<BTreeSet<String>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut links = BTreeSet::new();
        loop {
            let watch = match reader.next() {
                Ok(event) => event.wd(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(links),
                Err(error) => return Err(error.into()),
            };
            let of = |(_, files): &(&String, &Vec<(i32, File)>)| files.iter().any(|(held, _)| *held == watch);
            links.extend(self.links.iter().find(of).map(|(link, _)| link.clone()));
        }
    }
}

impl AsFd for Parameters {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
