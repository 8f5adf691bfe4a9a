//! What everybody may and may not do without any trick: what is not seen there must not be, and what is must arrive.

use super::{Place, Table, Who};
use crate::hostile::cast::DENIED;

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open, OpenFar};
    t.group("no trick");
    t.pod(Limited, "the allowed port of near", |d| d.allowed(d.own(), d.of(Near)), &[Place::Pod(Near)]);
    let across = [Place::Wire(0), Place::Pod(Far)];
    t.pod(Limited, "the allowed port of far", |d| d.allowed(d.own(), d.of(Far)), &across);
    t.pod(Limited, "another port of near", |d| d.udp(d.own(), d.of(Near), DENIED), &[]);
    t.pod(Limited, "another port of far", |d| d.udp(d.own(), d.of(Far), DENIED), &[]);
    t.pod(Limited, "a pod that takes anything", |d| d.allowed(d.own(), d.of(Open)), &[]);
    t.pod(Denied, "the allowed port of near", |d| d.allowed(d.own(), d.of(Near)), &[]);
    t.pod(Denied, "the allowed port of far", |d| d.allowed(d.own(), d.of(Far)), &[]);
    t.pod(Denied, "its own node", |d| d.allowed(d.own(), d.node(0)), &[Place::Node(0)]);
    t.pod(Denied, "another node", |d| d.allowed(d.own(), d.node(1)), &[]);
    t.pod(Denied, "the world", |d| d.allowed(d.own(), d.world()), &[]);
    let across = [Place::Wire(0), Place::Pod(OpenFar)];
    t.pod(Open, "a pod that takes anything", |d| d.allowed(d.own(), d.of(OpenFar)), &across);
    t.pod(Open, "the allowed port of near", |d| d.allowed(d.own(), d.of(Near)), &[]);
    t.pod(Open, "the world", |d| d.allowed(d.own(), d.world()), &[Place::Wire(0), Place::World]);
    t.uplink("a pod that takes anything", |d| d.allowed(d.own(), d.of(Open)), &[Place::Pod(Open)]);
    t.uplink("the allowed port of near", |d| d.allowed(d.own(), d.of(Near)), &[]);
}
