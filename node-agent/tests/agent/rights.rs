//! The agent works with the capabilities that its DaemonSet gives it, and needs each of them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::netns::in_world;
use crate::world::World;

/// What the DaemonSet says: `add: [NET_ADMIN, …]` of the only container that has any.
fn of_the_daemon_set() -> Vec<String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base/agent.yaml");
    let text = std::fs::read_to_string(manifest).unwrap();
    let mut lists = text.lines().filter_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'));
    let list = lists.next().unwrap();
    assert_eq!(lists.next(), None, "one container alone has capabilities");
    list.split(", ").map(str::to_owned).collect()
}

/// A network namespace that is held by a process without any capability: whoever has few may look at it.
struct Held(Child);

impl Held {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", "sh", "-c"]);
        // Its end of the pipe closes with this.
        command.args(["echo there; read _"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(child)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Whether an agent with these capabilities becomes ready and makes a pod's network. What it said, if not.
fn works_with(capabilities: &[String]) -> Result<(), String> {
    let mut world = World::new();
    world.capabilities = Some(capabilities.to_vec());
    world.write("pod.yaml", &World::pod_text("pod"));
    world.start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.readyz().is_none_or(|ready| ready.status != 200) {
        if world.ended().is_some() || Instant::now() > deadline {
            return Err(world.log());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let netns = Held::new();
    let answer = world.plugin().run("ADD", "pod", &netns.path());
    if answer.success { Ok(()) } else { Err(answer.stdout) }
}

#[test]
fn the_daemon_sets_capabilities_are_enough_and_none_too_many() {
    in_world(|| {
        let all = of_the_daemon_set();
        if let Err(why) = works_with(&all) {
            panic!("{all:?} are too few: {why}");
        }
        for left_out in &all {
            let fewer: Vec<String> = all.iter().filter(|name| *name != left_out).cloned().collect();
            let why = works_with(&fewer).expect_err(left_out);
            assert!(why.contains("permitted"), "without {left_out}: {why}");
        }
    });
}
