//! The pod network of one node: addresses, veth pairs, routes.

mod attachment;

pub use attachment::{
    Attachment, AttachmentKey, GATEWAY_V4, GATEWAY_V6, IFNAME_PREFIX, format_mac, is_host_ifname,
};
