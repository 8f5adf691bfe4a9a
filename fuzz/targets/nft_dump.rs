//! What the kernel says of nf_tables: listings, commits, errors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_fuzz::within_bounds;
use moat_nfnetlink::fuzzing::{elements, every_decoder, sets};
use moat_nfnetlink::nft::{Batch, Family, TableId};

fuzz_target!(|input: &[u8]| within_bounds(input, 4 << 20, |datagram| {
    every_decoder(datagram);
    let table = TableId::new(Family::Inet, "moat");
    for set in sets(datagram) {
        // What can be written again is read again as it was.
        let mut batch = Batch::new();
        if batch.add_set(&table, &set).is_ok() {
            assert_eq!(sets(batch.as_bytes()), [set.clone()]);
        }
        for element in elements(datagram, &set) {
            let mut batch = Batch::new();
            if batch.add_elements(&table, &set, [element.clone()]).is_ok() {
                assert_eq!(elements(batch.as_bytes(), &set), [element]);
            }
        }
    }
}));
