//! The pod network of one node: addresses, veth pairs, routes.
//!
//! ```text
//!            pod's namespace                        node's namespace
//!   eth0  10.1.0.5/32, fd00:1::5/128  ◀─ veth ─▶  moat1a2b3c4d5e6   no address
//!   default via 169.254.1.1, fe80::1                10.1.0.5, fd00:1::5 dev moat1a2b3c4d5e6
//!   neighbours 169.254.1.1, fe80::1 (permanent)     neighbours 10.1.0.5, fd00:1::5 (permanent)
//!                                                   unreachable 10.1.0.0/24      the node's own podCIDR
//!                                                   10.2.0.0/24 via 192.0.2.2    another node's
//! ```
//!
//! An *attachment* is one interface of one pod. Its life: [`PodNet::reserve`] gives it addresses, [`PodNet::build`] makes the
//! pair, with the node's end down; somebody else puts the pod's policy into the kernel; [`PodNet::activate`]
//! sets the node's end up. [`PodNet::remove`] takes all of it away. So no packet passes before policy is in force.
//!
//! What exists is written down before it is made and forgotten after it is gone; and each link says in its alias
//! whose it is. What a crash leaves between two steps, or a lost state folder leaves of the records, is found at the next
//! [`PodNet::open`], by the next ADD of the same attachment, or by GC.

mod answers;
mod attachment;
mod check;
mod clock;
mod disk;
mod error;
mod heal;
pub(crate) mod identity;
mod ipam;
pub(crate) mod journal;
pub(crate) mod leave;
mod links;
mod messages;
mod netlink;
mod netns;
mod network;
mod node;
mod ports;
mod route;
mod settle;
pub(crate) mod sysctl;
mod takeover;
mod uplink;
mod wire;

pub use answers::Answers;
pub use attachment::{
    Attachment, AttachmentKey, GATEWAY_V4, GATEWAY_V6, IFNAME_PREFIX, format_mac, is_host_ifname,
};
pub use error::PodNetError;
pub use ipam::{Full, IpamError};
pub use journal::JournalError;
pub(crate) use links::Link;
pub use netlink::NetlinkError;
pub(crate) use netlink::{Existing, Netlink, Request};
pub use netns::NetnsError;
pub use network::{Gc, PodNet, PodNetConfig, Prepare, read_attachments};
pub use node::Ends;
pub(crate) use ports::wanted as host_ports;
pub use route::ROUTE_PROTOCOL;
pub use sysctl::SysctlError;
pub use uplink::{Mode, TUNNEL, TUNNEL_ID};
