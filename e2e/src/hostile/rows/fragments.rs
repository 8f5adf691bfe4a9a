//! Packets in pieces.

use std::net::IpAddr;

use moat_policies::Family;

use super::{ALLOWED, Draft, Place, Sender, Table, Who};
use crate::hostile::cast::DENIED;
use crate::hostile::frame::{Ends, UDP};

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Limited, Near};
    let limited = Sender::Pod(Limited);
    let near = |d: &Draft<'_>| d.of(Near);
    t.group("fragments");
    let arrives = [Place::Pod(Near)];
    t.row(limited, "tiny, the allowed port", |d| pieces(d, near(d), ALLOWED, 8), &arrives);
    t.row(limited, "tiny, another port", |d| pieces(d, near(d), DENIED, 8), &[]);
    t.row(limited, "two halves, the allowed port", |d| pieces(d, near(d), ALLOWED, 600), &arrives);
    t.row(limited, "two halves, another port", |d| pieces(d, near(d), DENIED, 600), &[]);
    t.row(limited, "last one first, another port", |d| backwards(pieces(d, near(d), DENIED, 600)), &[]);
    t.row(limited, "later ones alone", |d| pieces(d, near(d), ALLOWED, 600).split_off(1), &[]);
    t.row(limited, "the first one alone", |d| pieces(d, near(d), ALLOWED, 600)[..1].to_vec(), &[]);
    t.row(limited, "the port changed by an overlapping one", |d| overlapping(d, near(d)), &[]);
    t.row(Sender::Pod(Denied), "tiny", |d| pieces(d, near(d), ALLOWED, 8), &[]);
    t.row(Sender::Pod(Denied), "later ones alone", |d| pieces(d, near(d), ALLOWED, 600).split_off(1), &[]);
    t.row(Sender::Uplink, "tiny", |d| pieces(d, near(d), ALLOWED, 8), &[]);
    t.row(Sender::Uplink, "later ones alone", |d| pieces(d, near(d), ALLOWED, 600).split_off(1), &[]);
    t.row(
        Sender::Uplink,
        "tiny, to open",
        |d| pieces(d, d.of(Who::Open), ALLOWED, 8),
        &[Place::Pod(Who::Open)],
    );
    if t.family == Family::V6 {
        let whole = |d: &Draft<'_>, port| pieces(d, near(d), port, usize::MAX);
        t.row(limited, "atomic (one that is all), the allowed port", |d| whole(d, ALLOWED), &arrives);
        t.row(limited, "atomic (one that is all), another port", |d| whole(d, DENIED), &[]);
        t.row(Sender::Pod(Denied), "atomic (one that is all)", |d| whole(d, ALLOWED), &[]);
    }
}

/// A datagram of some thousand octets, cut every so often.
fn pieces(d: &Draft<'_>, to: IpAddr, port: u16, size: usize) -> Vec<Vec<u8>> {
    let from = d.own();
    // Tiny ones are of a small datagram: the kernel keeps only so many pieces.
    let mut payload = d.payload().to_vec();
    payload.resize(if size < 100 { 40 } else { 1000 }, 0);
    let datagram = Ends::new(from, to).udp((super::FROM, port), &payload);
    let size = size.min(datagram.len());
    let count = datagram.len().div_ceil(size);
    let piece = |(at, part): (usize, &[u8])| {
        let offset = (at * size / 8) as u16;
        d.eth().ip(&d.ip(from, to).fragment(offset, at + 1 < count).packet(UDP, part))
    };
    datagram.chunks(size).enumerate().map(piece).collect()
}

fn backwards(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.reverse();
    frames
}

/// The first piece says the allowed port; one that comes later says another in the same place.
fn overlapping(d: &Draft<'_>, to: IpAddr) -> Vec<Vec<u8>> {
    let from = d.own();
    let ends = Ends::new(from, to);
    let (good, bad) = ([ALLOWED, DENIED]).map(|port| ends.udp((super::FROM, port), &[0; 40])).into();
    let piece =
        |offset, more, part: &[u8]| d.eth().ip(&d.ip(from, to).fragment(offset, more).packet(UDP, part));
    vec![piece(0, true, &good[..24]), piece(0, true, &bad[..16]), piece(2, false, &bad[16..])]
}
