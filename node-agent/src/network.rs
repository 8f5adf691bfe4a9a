//! How the network is to be: what the flags say, and what a NetworkConfig says over them. Pure.

use ipnet::IpNet;
use moat_policies::{DenyAction, LogLimit, NetworkConfig, RouteMode};

use crate::dataplane::Live;
use crate::podnet::Mode;

/// How the network of this node is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// How packets get to the pods of other nodes.
    pub mode: Mode,
    /// The MTU of the pods' links, where it is not to follow from the node's.
    pub mtu: Option<u32>,
    /// Whether what leaves the cluster leaves in the node's name.
    pub masquerade: bool,
    /// What is not masqueraded besides what nodes say that they are and have.
    pub inside: Vec<IpNet>,
    /// What becomes of a packet that no policy allows.
    pub deny: DenyAction,
    /// How many dropped packets are logged.
    pub drop_log: LogLimit,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            mtu: None,
            masquerade: true,
            inside: Vec::new(),
            deny: DenyAction::default(),
            drop_log: LogLimit::default(),
        }
    }
}

impl Network {
    /// As this NetworkConfig says, and as it is here where that says nothing.
    pub fn under(&self, config: Option<&NetworkConfig>) -> Self {
        let Some(config) = config else { return self.clone() };
        let except =
            if config.masquerade_except.is_empty() { &self.inside } else { &config.masquerade_except };
        Self {
            mode: config.route_mode.map_or(self.mode, |mode| match mode {
                RouteMode::Auto => Mode::Auto,
                RouteMode::Routed => Mode::Routed,
                RouteMode::Vxlan => Mode::Vxlan,
            }),
            mtu: config.mtu.or(self.mtu),
            masquerade: config.masquerade.unwrap_or(self.masquerade),
            inside: config.cluster_cidrs.iter().chain(except).copied().collect(),
            deny: config.deny.unwrap_or(self.deny),
            drop_log: config.drop_log.unwrap_or(self.drop_log),
        }
    }

    /// Whether there may be a tunnel to other nodes.
    pub fn tunnel(&self) -> bool {
        self.mode != Mode::Routed
    }

    /// What of it the tables' layout depends on.
    pub fn live(&self) -> Live {
        Live { tunnel: self.tunnel(), masquerade: self.masquerade, deny: self.deny, drop_log: self.drop_log }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_config_does_not_say_is_as_the_flags_say() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let flags = Network { mtu: Some(1400), inside: vec![net("192.0.2.0/24")], ..Network::default() };
        assert_eq!(flags.under(None), flags);
        assert_eq!(flags.under(Some(&NetworkConfig::default())), flags);
        let config = NetworkConfig {
            cluster_cidrs: vec![net("10.0.0.0/8")],
            route_mode: Some(RouteMode::Routed),
            masquerade: Some(false),
            masquerade_except: vec![net("198.51.100.0/24")],
            deny: Some(DenyAction::Reject),
            ..NetworkConfig::default()
        };
        let network = flags.under(Some(&config));
        assert_eq!((network.mode, network.mtu), (Mode::Routed, Some(1400)));
        assert_eq!(network.inside, [net("10.0.0.0/8"), net("198.51.100.0/24")]);
        let live = Live { tunnel: false, masquerade: false, deny: DenyAction::Reject, ..flags.live() };
        assert_eq!(network.live(), live);
    }
}
