//! Ports of the node that lead to pods: whatever changes, and whatever is adopted, the maps lead where they should.

use moat_cni::port::{HostPort, Transport};

use super::super::layout::HostPorts;
use super::*;

fn ports() -> impl Strategy<Value = HostPorts> {
    let port = (0..3_u8, 1..4_u16, 0..4_u8, 1..3_u16, 0..3_u8);
    proptest::collection::vec(port, 0..6).prop_map(|all| {
        let all: Vec<(HostPort, u8)> = all
            .into_iter()
            .map(|(protocol, host_port, host_ip, port, pod)| {
                let host_ip =
                    [None, Some("0.0.0.0"), Some("192.0.2.1"), Some("2001:db8::1")][usize::from(host_ip)];
                let protocol = Transport::ALL[usize::from(protocol)];
                (HostPort { protocol, host_port, host_ip: host_ip.and_then(|ip| ip.parse().ok()), port }, pod)
            })
            .collect();
        let addresses = |pod: u8| {
            [
                IpAddr::V4(Ipv4Addr::new(10, 1, 0, pod)),
                IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, pod.into())),
            ]
        };
        HostPorts::of(all.iter().flat_map(|(port, pod)| addresses(*pod).map(|address| (port, address))))
    })
}

fn state_of(ports: HostPorts) -> State {
    let layout = LayoutConfig { host_ports: true, ..LayoutConfig::default() };
    let mut state = State::new(layout, Limits::default(), false);
    state.advance(&Update { host_ports: Some(ports), ..Update::default() });
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_maps_lead_where_they_should(all in proptest::collection::vec(ports(), 1..5)) {
        let mut state = state_of(HostPorts::default());
        let mut model = whole(&state);
        for ports in all {
            let update = Update { host_ports: Some(ports.clone()), ..Update::default() };
            carried_out(&mut model, state.advance(&update));
            prop_assert!(state.advance(&update).is_empty(), "once more changes nothing");
            prop_assert_eq!(&model, &whole(&state_of(ports)));
        }
    }

    #[test]
    fn maps_that_are_there_are_adopted(there in ports(), wanted in ports()) {
        let mut model = whole(&state_of(there));
        let state = state_of(wanted);
        let plan = adopt(found(&model), state.content()).unwrap();
        carried_out(&mut model, plan);
        prop_assert_eq!(&model, &whole(&state));
        let plan = adopt(found(&model), state.content()).unwrap();
        let rules_only = plan.commit.iter().all(|op| matches!(op, Op::FlushTable(_) | Op::AddRules(..)));
        prop_assert!(rules_only && plan.stage.is_empty());
    }
}

/// A node without host ports does not pay for them.
#[test]
fn chains_are_there_while_a_port_leads_somewhere() {
    let port = HostPort { protocol: Transport::Tcp, host_port: 8080, host_ip: None, port: 80 };
    let some = HostPorts::of([(&port, IpAddr::from([10, 1, 0, 5]))]);
    let chains = |ports: &HostPorts| whole(&state_of(ports.clone())).chains.len();
    assert_eq!(chains(&some) - chains(&HostPorts::default()), 4);
    // What packets come to by itself is made when what it leads to is whole.
    let mut state = state_of(HostPorts::default());
    let transactions = state.advance(&Update { host_ports: Some(some), ..Update::default() }).transactions();
    let hooks = |ops: &[Op]| {
        ops.iter().filter(|op| matches!(op, Op::AddChain(_, chain) if chain.base.is_some())).count()
    };
    assert_eq!(transactions.iter().map(|ops| hooks(ops)).collect::<Vec<_>>(), [0, 3]);
}
