//! A network namespace with a thread that lives in it.
//!
//! The thread runs a small async runtime; whatever is spawned onto it is born in the namespace: sockets, links,
//! processes. The namespace goes when its thread does and nobody else holds it.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, mpsc};

use nix::sched::{CloneFlags, unshare};
use tokio::runtime;
use tokio::sync::oneshot;

/// A network namespace, and the way to run something in it.
#[derive(Debug)]
pub(crate) struct Space {
    name: String,
    thread_id: i32,
    netns: Arc<OwnedFd>,
    handle: runtime::Handle,
    // Dropped: the thread ends.
    _stop: oneshot::Sender<()>,
}

struct Born {
    thread_id: i32,
    netns: OwnedFd,
    handle: runtime::Handle,
}

impl Space {
    /// A new namespace with nothing but its loopback, which is down.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, born) = mpsc::sync_channel(1);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || match enter_new() {
            Ok((runtime, born)) => {
                let _ = report.send(Ok(born));
                // Ends when the sender is dropped; what still runs in the namespace is dropped with the runtime.
                let _ = runtime.block_on(stopped);
            }
            Err(error) => drop(report.send(Err(error))),
        })?;
        let born = born.recv().map_err(io::Error::other)??;
        Ok(Self {
            name: name.to_owned(),
            thread_id: born.thread_id,
            netns: Arc::new(born.netns),
            handle: born.handle,
            _stop: stop,
        })
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The thread that lives in it, by its number as the caller's process knows it; `nsenter --target` takes it.
    pub(crate) fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs something in the namespace.
    pub(crate) async fn run<F>(&self, future: F) -> io::Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future).await.map_err(io::Error::other)
    }

    /// Starts something in the namespace and does not wait for it.
    pub(crate) fn start<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Gives the namespace a path by which other processes of this mount namespace find it.
    pub(crate) fn bind_to(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, "")?;
        let own = format!("/proc/self/fd/{}", self.netns.as_raw_fd());
        rustix::mount::mount_bind(own, path).map_err(io::Error::from)
    }

    /// The namespace's descriptor, for netlink messages.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.netns.as_raw_fd()
    }
}

impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

fn enter_new() -> io::Result<(runtime::Runtime, Born)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let netns = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net")?);
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread_id = rustix::thread::gettid().as_raw_nonzero().get();
    Ok((runtime, Born { thread_id, netns, handle }))
}

/// Sets a sysctl of the namespace that the calling thread is in.
pub(crate) fn sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("cannot set {path}: {e}")))
}
