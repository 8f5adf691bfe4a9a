//! node-agent

pub mod cni_server;
pub mod podnet;
