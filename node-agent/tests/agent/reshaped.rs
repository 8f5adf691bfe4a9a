//! A NetworkConfig changes how packets get from node to node, and their size, while pods run and talk.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use moat_agent::podnet::TUNNEL;

use crate::cluster::{Cluster, only};
use crate::netns::interrupted::uninterrupted;
use crate::netns::{Namespace, in_world};
use crate::packets::Server;
use crate::world::Pod;

const PORT: u16 = 7001;

fn config(spec: &str) -> String {
    format!(
        "{{apiVersion: moat.dev/v1alpha1, kind: NetworkConfig, metadata: {{name: default}}, spec: {{{spec}}}}}\n"
    )
}

/// A connection between two pods, whose other end says what it is told.
struct Talk(TcpStream);

impl Talk {
    fn begin(from: &Pod, to: &Pod) -> Self {
        let at = SocketAddr::new(to.address, PORT);
        let listener = to.ns.run(move || TcpListener::bind(at).unwrap());
        let stream = from.ns.run(move || TcpStream::connect(at).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (mut answering, _) = listener.accept().unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = uninterrupted(|| answering.read(&mut bytes)) {
                if length == 0 || answering.write_all(&bytes[..length]).is_err() {
                    return;
                }
            }
        });
        let mut talk = Self(stream);
        talk.goes_on();
        talk
    }

    /// More than fits into one packet, both ways.
    fn goes_on(&mut self) {
        let mut answer = [0; 16 << 10];
        for _ in 0..4 {
            self.0.write_all(&[7; 16 << 10]).unwrap();
            let mut there = 0;
            while there < answer.len() {
                let more = uninterrupted(|| self.0.read(&mut answer[there..])).unwrap();
                assert!(more > 0, "the connection ended");
                there += more;
            }
        }
    }
}

/// Somebody who may not reach another pod and tries all the time.
struct Intruder {
    stop: Arc<AtomicBool>,
    tries: JoinHandle<(usize, usize)>,
}

impl Intruder {
    fn start(from: &Pod, to: &Pod) -> Self {
        let (own, to) = (SocketAddr::new(from.address, 0), SocketAddr::new(to.address, 7000));
        let socket = from.ns.run(move || UdpSocket::bind(own).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let tries = thread::spawn(move || {
            let (mut sent, mut answered) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                sent += usize::from(socket.send_to(b"let me in", to).is_ok());
                answered += usize::from(socket.recv(&mut [0; 64]).is_ok());
            }
            (sent, answered)
        });
        Self { stop, tries }
    }

    fn got_nowhere(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, answered) = self.tries.join().unwrap();
        assert!(sent > 0 && answered == 0, "{answered} of {sent} packets that are denied were answered");
    }
}

/// The MTU of each link whose name begins so.
fn mtus(space: &Namespace, name: &str) -> Vec<u32> {
    let links = space.sh("ip -o link show type veth");
    let ours = links.lines().filter(|line| line.split(' ').nth(1).is_some_and(|link| link.starts_with(name)));
    ours.map(|line| {
        let mtu = line.split_once(" mtu ").and_then(|(_, rest)| rest.split(' ').next());
        mtu.unwrap().parse().unwrap()
    })
    .collect()
}

fn has_tunnel(node: &Namespace) -> bool {
    node.sh("ip -o link show type vxlan").contains(TUNNEL)
}

#[test]
fn packets_take_another_way_while_nodes_run_and_none_is_misjudged() {
    in_world(|| {
        let cluster = Cluster::started(&[("web", "here"), ("other", "here"), ("api", "there")]);
        cluster.write("policy.yaml", &only("web"));
        let (web, other, api) =
            (cluster.here.add("web"), cluster.here.add("other"), cluster.there.add("api"));
        let server = Server::start(&api);
        cluster.until("others are denied", || !server.answers(&other));
        let mut talk = {
            // What a policy of one port would leave: the connection is of a peer that may use all of them.
            assert!(server.answers(&web));
            Talk::begin(&web, &api)
        };
        let intruder = Intruder::start(&other, &api);
        for (mode, tunnel, size) in
            [("VXLAN", true, 1450), ("Routed", false, 1500), ("VXLAN", true, 1450), ("Auto", false, 1500)]
        {
            cluster.write("network.yaml", &config(&format!("routeMode: {mode}")));
            for (node, pod) in [(&cluster.here, &web), (&cluster.there, &api)] {
                cluster.until(mode, || has_tunnel(&node.ns) == tunnel && mtus(&pod.ns, "eth0") == [size]);
            }
            talk.goes_on();
            assert!(server.answers(&web) && !server.answers(&other), "{mode}");
        }
        intruder.got_nowhere();
    });
}

#[test]
fn pods_that_run_get_the_mtu_that_new_ones_get() {
    in_world(|| {
        let mut cluster = Cluster::started(&[("web", "here"), ("late", "here"), ("api", "there")]);
        let (web, api) = (cluster.here.add("web"), cluster.there.add("api"));
        let mut talk = Talk::begin(&web, &api);
        let all = |cluster: &Cluster, size: u32| {
            let ends = [&cluster.here.ns, &cluster.there.ns].map(|node| mtus(node, "moat"));
            let all = [ends.concat(), mtus(&web.ns, "eth0"), mtus(&api.ns, "eth0")].concat();
            all.len() >= 4 && all.iter().all(|mtu| *mtu == size)
        };
        assert!(all(&cluster, 1500));
        cluster.write("network.yaml", &config("mtu: 1400"));
        cluster.until("all links follow", || all(&cluster, 1400));
        talk.goes_on();
        let late = cluster.here.add("late");
        assert_eq!(mtus(&late.ns, "eth0"), [1400]);
        // It is no drift to be mended by the next agent.
        cluster.here.kill();
        cluster.here.start();
        cluster.here.until_ready();
        assert!(all(&cluster, 1400));
        cluster.write("network.yaml", &config(""));
        cluster.until("it follows from the nodes' links again", || {
            all(&cluster, 1500) && mtus(&late.ns, "eth0") == [1500]
        });
        talk.goes_on();
    });
}
