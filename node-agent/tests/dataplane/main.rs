//! The data plane in the real kernel: real tables, real veths, namespaces of their own, real packets.
//!
//! Needs root, or a kernel that lets everybody make user namespaces; and `ip`, `nft` and `unshare`.

mod check;
mod defect;
mod drops;
mod hardening;
mod interrupted;
mod live;
mod masquerade;
mod pod_to_node;
mod probe;
mod refused;
mod space;
mod tunnel;
mod upgrade;
mod verdicts;
mod world;
mod writer;
