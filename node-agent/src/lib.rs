//! node-agent

pub mod podnet;
