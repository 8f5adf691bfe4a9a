//! Taking moat off a node: what is its own goes, all of it, and what is others' stays.

use std::fs;
use std::process::Output;

use crate::netns::in_world;
use crate::node::guards;
use crate::world::World;

/// Exit status, standard output, standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Everything in the kernel that moat could have made.
fn kernel(world: &World) -> String {
    world.node.sh("nft list tables; ip -o link | cut -d: -f2; ip route show table all proto 109
         ip -6 route show table all proto 109; ip rule; ip -6 rule; ip route show table 109 2>/dev/null || true")
}

#[test]
fn nothing_of_moat_is_left_and_what_is_others_stays() {
    in_world(|| {
        let mut world = World::new();
        world.flags = vec!["--mode", "vxlan"];
        world.node.sh("nft add table inet theirs; ip route add 198.51.100.0/24 via 192.0.2.2 proto 99");
        let before = kernel(&world);
        world.invites = true;
        for folder in [world.cni_conf(), world.cni_bin()] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("theirs"), "theirs").unwrap();
        }
        let config = world.cni_conf().join("05-moat.conflist");
        world.write("pod.yaml", &World::pod_text("a"));
        world.start_ready();
        world.until("its runtime may send pods", |_| config.exists());
        let pod = world.add("a");
        let with_moat = kernel(&world);
        for there in [
            "inet moat",
            "netdev moat",
            "inet moat-net",
            "vxlan-moat",
            "unreachable 10.1.0.0/24",
            "lookup 109",
        ] {
            assert!(with_moat.contains(there), "{there}: {with_moat}");
        }

        let (status, out, err) = said(&world.uninstall(&["--force"]));
        assert_eq!((status, &*out), (Some(1), ""), "{err}");
        assert!(err.contains("an agent runs here") && err.contains("kubectl delete"), "{err}");
        world.kill();
        assert_eq!(guards(&world.run_dir()).len(), 1, "its tables are guarded");
        let (status, out, err) = said(&world.uninstall(&[]));
        assert_eq!((status, &*out), (Some(1), ""), "{err}");
        assert!(err.contains("pods here have moat's network (1: default/a (moat"), "{err}");
        assert_eq!(kernel(&world), with_moat, "nothing has changed");
        assert!(config.exists());

        let (status, out, err) = said(&world.uninstall(&["--force"]));
        assert_eq!((status, &*err), (Some(0), ""), "{out}");
        for what in [
            "removed the link of the pod default/a (moat",
            "removed the route to 10.2.0.0/16 via ",
            "removed the route unreachable 10.1.0.0/24\n",
            "removed the rule for what is from 10.1.0.0/24\n",
            "removed the tunnel's device vxlan-moat\n",
            "removed the guard of the tables\n",
            "removed the table inet moat\n",
            "removed the table netdev moat\n",
            "removed the table inet moat-net\n",
            "05-moat.conflist\n",
            "moat-cni\n",
            "attachments.journal\n",
        ] {
            assert!(out.contains(what), "{what}: {out}");
        }
        assert_eq!(kernel(&world), before);
        assert!(guards(&world.run_dir()).is_empty());
        assert!(!world.run_dir().exists() && !world.state_dir().exists());
        for folder in [world.cni_conf(), world.cni_bin()] {
            let left: Vec<_> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["theirs"]);
        }
        drop(pod);

        let again = said(&world.uninstall(&[]));
        assert_eq!(again, (Some(0), "nothing of moat is here\n".to_owned(), String::new()));
    });
}

#[test]
fn what_is_not_moats_in_its_folders_stays_with_them() {
    in_world(|| {
        let mut world = World::new();
        world.start_ready();
        world.kill();
        fs::write(world.state_dir().join("notes.txt"), "mine").unwrap();
        let (status, out, err) = said(&world.uninstall(&[]));
        assert_eq!((status, &*err), (Some(0), ""), "{out}");
        let left: Vec<_> = fs::read_dir(world.state_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
    });
}
