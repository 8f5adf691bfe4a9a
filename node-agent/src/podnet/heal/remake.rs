//! A pod's link that somebody deleted is made again, where its pod still lives.
//!
//! Its two ends go together, and the pod's is in the pod's namespace: that one is found by the path that the runtime gave at
//! ADD. What a link of the same name and addresses may send is asked for anew before it comes up, since some kernels take
//! a link's own chain away together with the link.

use std::sync::Arc;

use super::super::attachment::Attachment;
use super::super::netns::{Netns, NetnsError, NetnsId};
use super::super::node::NodeNetwork;
use super::super::{PodNetError, wire};

/// Puts a pod's policy in force for a link that is made anew and still down; false where that failed.
#[derive(Clone)]
pub(crate) struct Policy(pub(crate) Arc<dyn Fn(&Attachment) -> bool + Send + Sync>);

/// Makes a link again that is not there; false where there is no pod to make it for. `known` is the namespace that the pod
/// has had: by now another may be at its path.
pub(super) fn remake(
    node: &NodeNetwork,
    attachment: &Attachment,
    known: NetnsId,
    policy: &Policy,
) -> Result<bool, PodNetError> {
    if node.is_noted(&attachment.host_ifname) {
        return Ok(false);
    }
    match Netns::open(&attachment.netns) {
        Ok(pod) if pod.id() == Some(known) => {}
        Ok(_) | Err(NetnsError::Missing(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let made = node.build(attachment).and_then(|ends| {
        if !(policy.0)(attachment) {
            return Err(PodNetError::NoPolicy(attachment.key()));
        }
        node.connect(attachment, &ends)
    });
    match made {
        Ok(()) => Ok(true),
        // The pod's end is there, and only the node's has another name or place: taking it down is not ours.
        Err(error @ PodNetError::InterfaceExists(_)) => Err(error),
        Err(error) => {
            // What was begun must not come up by itself.
            node.netlink(|netlink| Ok(wire::remove(netlink, &attachment.host_ifname)?))?;
            Err(error)
        }
    }
}
