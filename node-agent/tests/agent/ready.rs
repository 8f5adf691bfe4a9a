//! Whoever is told that the agent is ready may send pods at once.

use std::fs;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::netns::in_world;
use crate::world::World;

/// The agent looks whether somebody listens on its socket before it takes that over. Here somebody does who has more callers
/// waiting than he lets wait: so it waits, with everything else done, and its socket not there.
#[test]
fn it_is_not_ready_before_its_socket_is_there() {
    in_world(|| {
        let mut world = World::new();
        let socket_path = world.socket();
        fs::create_dir_all(socket_path.parent().unwrap()).unwrap();
        // Not for the agent to inherit: then it would be there as long as that.
        let other = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&other, &SocketAddrUnix::new(&socket_path).unwrap()).unwrap();
        listen(&other, 0).unwrap();
        let waits = UnixStream::connect(&socket_path).unwrap();
        world.start();
        world.until("the agent asks who is there", |world| waits_for_a_listener(world.pid()));
        let ready = world.readyz().unwrap();
        assert_eq!(ready.status, 503, "{ready:?}");
        drop((other, waits));
        world.until("the agent is ready", |world| world.readyz().is_some_and(|ready| ready.status == 200));
        UnixStream::connect(&socket_path).unwrap();
    });
}

/// Whether a thread of the process waits for its turn in a listener's queue.
fn waits_for_a_listener(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let waiting = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("wchan"));
    threads.flatten().filter_map(|thread| waiting(thread).ok()).any(|place| place == "unix_wait_for_peer")
}
