//! Logged packets, end to end.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use moat_nfnetlink::nflog::{Group, Options, Received};
use moat_nfnetlink::nft::{
    Batch, Chain, Family, Hook, Log, Policy, Rule, Socket, Source, Table, TableId, Value, Verdict,
};

use crate::support::{in_namespace, run};

#[test]
fn a_dropped_packet_is_heard_of() {
    in_namespace(|| {
        let options = Options { snaplen: 40, ..Options::default() };
        let mut group = Group::bind(77, &options).unwrap();
        assert_eq!(group.receive(false, |_| {}).unwrap(), Received::Nothing);

        let table = TableId::new(Family::Inet, "log");
        let log = Log { group: 77, prefix: "policy: web".into(), snaplen: None, threshold: None };
        let rule = Rule::new()
            .eq(Source::L4PROTO, 17)
            .eq(Source::TH_DPORT, Value::Port(4242))
            .log(log)
            .verdict(Verdict::Drop);
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table.clone())).unwrap();
        batch.add_chain(&table, &Chain::filter("in", Hook::Input, 0, Policy::Accept)).unwrap();
        batch.add_rule(&table, "in", &rule).unwrap();
        Socket::open().unwrap().send(&batch, None).unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0xab; 100], "127.0.0.2:4242").unwrap();
        socket.send_to(&[0xab; 100], "127.0.0.2:4242").unwrap();
        let loopback = run("ip", &["-o", "link", "show", "lo"]);
        let index: u32 = loopback.split(':').next().unwrap().parse().unwrap();

        let mut seqs = Vec::new();
        while seqs.len() < 2 {
            group
                .receive(true, |packet| {
                    assert_eq!((packet.group, packet.prefix), (77, "policy: web"));
                    assert_eq!((packet.protocol, packet.family), (0x0800, 2));
                    assert_eq!((packet.hook, packet.mark), (1, 0));
                    assert_eq!((packet.indev, packet.outdev), (Some(index), None));
                    assert_eq!(packet.payload.len(), 40);
                    assert_eq!(packet.payload[12..20], [127, 0, 0, 1, 127, 0, 0, 2]);
                    assert_eq!(packet.payload[22..24], 4242u16.to_be_bytes());
                    if let Some(time) = packet.timestamp {
                        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + time);
                        assert!(age.unwrap() < Duration::from_secs(60));
                    }
                    seqs.push(packet.seq.unwrap());
                })
                .unwrap();
        }
        assert_eq!(seqs, [0, 1]);

        let taken = Group::bind(77, &options).unwrap_err();
        assert_eq!(taken.errno(), Some(libc::EPERM), "{taken}");
    });
}
