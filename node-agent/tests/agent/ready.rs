//! Whoever is told that the agent is ready may send pods at once.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use serde_json::Value;

use crate::netns::{Namespace, Plugin, binary, in_world};
use crate::world::World;

const TRY_AGAIN: u32 = 11;

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

/// A runtime that finds a configuration sends pods. It finds one when they can come, and goes on finding it: while no agent runs,
/// pods wait, and nobody takes another network for them that lies beside it.
#[test]
fn a_runtime_finds_the_plugin_when_pods_can_come() {
    in_world(|| {
        let built = binary("moat-cni");
        let mut world = World::new();
        world.invites = true;
        world.write("pods.yaml", &World::pod_text("web"));
        let node = fs::read_to_string(world.manifests().join("node-here.yaml")).unwrap();
        world.remove("node-here.yaml");
        world.start_ready();
        assert!(!world.cni_conf().exists() && !world.cni_bin().exists(), "no address could be given yet");

        world.write("node-here.yaml", &node);
        let config = world.cni_conf().join("05-moat.conflist");
        world.until("the configuration is there", |_| config.exists());
        assert_eq!(fs::read(world.cni_bin().join("moat-cni")).unwrap(), fs::read(built).unwrap());
        let list: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        let mut plugin = list["plugins"][0].clone();
        for field in ["cniVersion", "name"] {
            plugin[field] = list[field].clone();
        }
        // As a runtime hands a plugin of a list its part of it.
        plugin.as_object_mut().unwrap().remove("capabilities");
        let plugin = Plugin { config: plugin, ..world.plugin() };
        let (web, again) = (Namespace::new(), Namespace::new());
        plugin.run("ADD", "web", &web.path).ok();

        let before = fs::metadata(&config).unwrap().ino();
        world.kill();
        assert!(config.exists(), "no other network is taken meanwhile");
        plugin.run("ADD", "again", &again.path).fails_with(TRY_AGAIN);
        world.start_ready();
        assert_eq!(fs::metadata(&config).unwrap().ino(), before, "what is as it ought to be is left alone");
    });
}

/// Whether a thread of the process waits for its turn in a listener's queue.
fn waits_for_a_listener(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let waiting = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("wchan"));
    threads.flatten().filter_map(|thread| waiting(thread).ok()).any(|place| place == "unix_wait_for_peer")
}
