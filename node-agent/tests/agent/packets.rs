//! Whether packets pass, asked once or all the time.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::netns::interrupted::uninterrupted;
use crate::world::Pod;

const PORT: u16 = 7000;

/// How long an answer may take that comes. What is denied is not waited for any longer.
pub(crate) const ANSWER: Duration = Duration::from_millis(300);

/// A pod that answers every packet, until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
}

impl Server {
    pub(crate) fn start(pod: &Pod) -> Self {
        let address = SocketAddr::new(pod.address, PORT);
        let socket = pod.ns.run(move || UdpSocket::bind(address).unwrap());
        // Ends with the test's process; it holds the pod's namespace and nothing else.
        std::thread::spawn(move || {
            let mut packet = [0; 64];
            while let Ok((length, from)) = uninterrupted(|| socket.recv_from(&mut packet)) {
                let _ = socket.send_to(&packet[..length], from);
            }
        });
        Self { address }
    }

    /// Whether a new flow of this pod is answered.
    pub(crate) fn answers(&self, pod: &Pod) -> bool {
        let (from, to) = (SocketAddr::new(pod.address, 0), self.address);
        pod.ns.run(move || {
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(ANSWER)).unwrap();
            socket.send_to(b"hello", to).unwrap();
            uninterrupted(|| socket.recv(&mut [0; 64])).is_ok()
        })
    }
}
