//! Chains: base chains that a hook calls, and regular ones that rules jump to.

use std::sync::Arc;

use super::userdata::{COMMENT, UserData};
use super::{Family, IfName, TableId, encode_name};
use crate::EncodeError;
use crate::wire::Writer;

/// Where in the network stack a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
    /// Into a device, before everything else (netdev tables, and inet ones since Linux 5.10).
    Ingress(IfName),
    /// Out of a device, after everything else (netdev tables, Linux 5.16).
    Egress(IfName),
}

impl Hook {
    fn number(&self) -> u32 {
        match self {
            Hook::Prerouting | Hook::Ingress(_) => 0,
            Hook::Input | Hook::Egress(_) => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }

    fn device(&self) -> Option<&IfName> {
        match self {
            Hook::Ingress(device) | Hook::Egress(device) => Some(device),
            _ => None,
        }
    }
}

/// What a base chain's verdicts are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// To let pass or drop.
    Filter,
    /// To translate addresses: called for the first packet of a connection.
    Nat,
    /// To change where a packet of this machine goes.
    Route,
}

/// What becomes of a packet that falls off a base chain's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Policy {
    /// It is dropped.
    Drop = 0,
    /// It passes.
    Accept = 1,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Its type.
    pub kind: ChainType,
    /// Who calls it.
    pub hook: Hook,
    /// Its place among the chains of the hook: lower ones come first; filter chains stand at 0.
    pub priority: i32,
    /// For packets that fall off its end.
    pub policy: Policy,
}

/// A chain to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name in its table.
    pub name: Arc<str>,
    /// Where a hook calls it; `None`: only rules jump to it.
    pub base: Option<Base>,
    /// What is kept with it.
    pub userdata: UserData,
}

impl Chain {
    /// A regular chain.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Chain { name: name.into(), base: None, userdata: UserData::new() }
    }

    /// A base chain of type filter.
    pub fn filter(name: impl Into<Arc<str>>, hook: Hook, priority: i32, policy: Policy) -> Self {
        Chain {
            name: name.into(),
            base: Some(Base { kind: ChainType::Filter, hook, priority, policy }),
            userdata: UserData::new(),
        }
    }

    /// With this user data.
    pub fn userdata(mut self, userdata: UserData) -> Self {
        self.userdata = userdata;
        self
    }

    pub(crate) fn encode(&self, table: &TableId, writer: &mut Writer) {
        encode_name(writer, 1, &table.name);
        encode_name(writer, 3, &self.name);
        if let Some(base) = &self.base {
            let on_device = base.hook.device().is_some();
            let may = matches!(table.family, Family::Netdev | Family::Inet);
            if on_device != (table.family == Family::Netdev) && !(on_device && may) {
                writer.fault(EncodeError::Device { chain: self.name.clone() });
            }
            writer.nest(4, |w| {
                let number = match (table.family, base.hook) {
                    (Family::Inet, Hook::Ingress(_)) => 5, // NF_INET_INGRESS
                    (_, hook) => hook.number(),
                };
                w.be32(1, number);
                w.be32(2, base.priority as u32);
                if let Some(device) = base.hook.device() {
                    w.string(3, device.as_str());
                }
            });
            writer.be32(5, base.policy as u32);
            writer.string(
                7,
                match base.kind {
                    ChainType::Filter => "filter",
                    ChainType::Nat => "nat",
                    ChainType::Route => "route",
                },
            );
        }
        self.userdata.encode(writer, 12, COMMENT, &[]);
    }
}
