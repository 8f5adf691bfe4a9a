//! Who says that he is somebody else.

use super::{Place, Table, Who};

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near};
    t.group("spoofed source");
    for victim in [Near, Far] {
        let name = format!("limited's address, to {}", victim.name());
        t.pod(Denied, name, |d| d.allowed(d.of(Limited), d.of(victim)), &[]);
    }
    t.pod(Denied, "the node's address, to near", |d| d.allowed(d.node(0), d.of(Near)), &[]);
    t.pod(Denied, "own address to itself", |d| d.allowed(d.own(), d.own()), &[Place::Pod(Denied)]);
    t.pod(Denied, "near's address to near", |d| d.allowed(d.of(Near), d.of(Near)), &[]);
    t.uplink("limited's address, to near", |d| d.allowed(d.of(Limited), d.of(Near)), &[]);
    t.uplink("near's address to near", |d| d.allowed(d.of(Near), d.of(Near)), &[]);
}
