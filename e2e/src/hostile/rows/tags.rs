//! VLAN tags: nothing that a frame wears may hide what it carries.

use super::{Place, Table, Who};
use crate::hostile::cast::DENIED;
use crate::hostile::frame::{Ends, UDP};

const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Limited, Near};
    t.group("VLAN tags");
    let kinds: [(&str, &[(u16, u16)]); 6] = [
        ("802.1Q, priority only", &[(Q, 0)]),
        ("802.1Q", &[(Q, 5)]),
        ("802.1ad", &[(AD, 5)]),
        ("802.1Q in 802.1ad", &[(AD, 5), (Q, 6)]),
        ("802.1Q in 802.1Q", &[(Q, 5), (Q, 6)]),
        ("two tags of priority only", &[(AD, 0), (Q, 0)]),
    ];
    for (kind, tags) in kinds {
        let write = |d: &super::Draft<'_>, from, to, port| {
            let ends = Ends::new(from, to);
            let packet = d.ip(from, to).packet(UDP, &ends.udp((super::FROM, port), &d.payload()));
            d.eth().tags(tags).ip(&packet)
        };
        let allowed = super::ALLOWED;
        t.pod(Denied, format!("{kind}, to near"), |d| write(d, d.own(), d.of(Near), allowed), &[]);
        let spoofed = format!("{kind}, limited's address");
        t.pod(Denied, spoofed, |d| write(d, d.of(Limited), d.of(Near), allowed), &[]);
        let denied = format!("{kind}, another port");
        t.pod(Limited, denied, |d| write(d, d.own(), d.of(Near), DENIED), &[]);
        // A tag that says nothing but a priority is as none (IEEE 802.1Q); others are for links that nobody made.
        let arrives: &[Place] = if tags == [(Q, 0)] { &[Place::Pod(Near)] } else { &[] };
        let open = format!("{kind}, the allowed port");
        t.pod(Limited, open, |d| write(d, d.own(), d.of(Near), allowed), arrives);
    }
}
