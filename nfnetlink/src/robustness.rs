//! Decoders meet any bytes: nothing panics, whatever they make of it.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::conntrack::Entry;
use crate::fuzzing::every_decoder;
use crate::nft::{Field, Key, KeyType, userdata};
use crate::wire::{align, message_type, subsystem};

/// Attributes nested to some depth, with lengths that are mostly right.
fn attributes() -> impl Strategy<Value = Vec<u8>> {
    let leaf = vec(any::<u8>(), 0..24);
    let attribute = leaf.prop_recursive(4, 48, 6, |inner| {
        vec((0u16..30, any::<bool>(), inner, prop::option::weighted(0.1, any::<u16>())), 0..6).prop_map(
            |attributes| {
                let mut bytes = Vec::new();
                for (kind, nested, payload, length) in attributes {
                    let length = length.unwrap_or(payload.len() as u16 + 4);
                    bytes.extend_from_slice(&length.to_ne_bytes());
                    bytes.extend_from_slice(&(kind | u16::from(nested) << 15).to_ne_bytes());
                    bytes.extend_from_slice(&payload);
                    bytes.resize(align(bytes.len()), 0);
                }
                bytes
            },
        )
    });
    attribute.boxed()
}

/// A message of one of our subsystems, with attributes that may mean anything.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        (0u8..32).prop_map(|number| message_type(subsystem::NFTABLES, number)),
        (0u8..4).prop_map(|number| message_type(subsystem::CONNTRACK, number)),
        (0u8..2).prop_map(|number| message_type(subsystem::LOG, number)),
        0u16..20,
    ];
    let family = prop_oneof![Just(1u8), Just(2), Just(5), Just(10), any::<u8>()];
    let numbers = (any::<u16>(), 0u32..4, prop::option::weighted(0.1, any::<u32>()));
    (kind, family, numbers, attributes(), vec(any::<u8>(), 0..8)).prop_map(
        |(kind, family, (flags, seq, length), attributes, tail)| {
            let mut bytes = Vec::new();
            let length = length.unwrap_or(20 + attributes.len() as u32);
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&seq.to_ne_bytes());
            bytes.extend_from_slice(&[1, 0, 0, 0, family, 0, 0, 7]);
            bytes.extend_from_slice(&attributes);
            bytes.extend_from_slice(&tail);
            bytes
        },
    )
}

fn datagram() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), vec(message(), 1..4).prop_map(|messages| messages.concat()),]
}

proptest! {
    #[test]
    fn any_datagram(bytes in datagram()) {
        every_decoder(&bytes);
    }

    /// What was read of an entry is what is read of it again.
    #[test]
    fn any_entry(bytes in datagram()) {
        for entry in Entry::read(&bytes) {
            prop_assert_eq!(Entry::read(&entry.encode()).collect::<Vec<_>>(), [entry]);
        }
    }

    #[test]
    fn any_user_data(bytes in vec(any::<u8>(), 0..64), kind: u8) {
        let _ = userdata::find(&bytes, kind);
        let _ = userdata::comment(&bytes);
        let _ = userdata::set_comment(&bytes);
    }

    #[test]
    fn any_key(number: u32, bytes in vec(any::<u8>(), 0..80)) {
        let kinds = KeyType::from_number(number).into_iter().chain([KeyType::from(Field::IfName)]);
        for kind in kinds {
            if let Some(key) = Key::read(&kind, &bytes) {
                prop_assert!(key.is_of(&kind));
            }
        }
    }
}
