//! What the fuzz targets call beside the public decoders: all of them over one datagram, and the way back from what
//! they read to bytes. Not for use in programs.

use crate::conntrack::Entry;
use crate::nflog::Packets;
use crate::nft::{Assembler, Element, ElementView, Set, SetInfo, userdata};
use crate::wire::Messages;

/// Runs every decoder over a datagram, whatever its messages say they are.
pub fn every_decoder(datagram: &[u8]) {
    Assembler::default().feed(datagram, drop);
    Entry::read(datagram).for_each(drop);
    Packets::new(datagram).for_each(drop);
    for message in Messages::new(datagram) {
        assert!(message.body.len() + crate::wire::HEADER <= datagram.len());
        let _ = message.reply();
        crate::nft::decode_any(&message);
    }
    let _ = (userdata::comment(datagram), userdata::set_comment(datagram));
}

/// The sets in a datagram that [`Batch`](crate::nft::Batch) can declare.
pub fn sets(datagram: &[u8]) -> Vec<Set> {
    Messages::new(datagram).filter_map(|message| SetInfo::decode(&message)?.declaration()).collect()
}

/// The elements in a datagram that fit a set.
pub fn elements(datagram: &[u8], set: &Set) -> Vec<Element> {
    let lists = Messages::new(datagram).flat_map(|message| message.attrs().filter(|attr| attr.kind == 3));
    lists
        .flat_map(|list| list.nested())
        .filter_map(|element| ElementView::decode(element.nested())?.element(set))
        .collect()
}

/// An entry as the kernel writes it in a dump.
pub fn entry(entry: &Entry) -> Vec<u8> {
    entry.encode()
}
