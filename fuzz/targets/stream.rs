//! What comes by the stream between controller and agents, from either side, and the file in which an agent keeps it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_agent::fuzzing::told_file;
use moat_agent::source::Endpoint;
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Attachments, Change, Hello, Told, update};
use moat_fuzz::within_bounds;
use prost::Message as _;

/// What a message may take of memory, in bytes: names are longer in a map than in a message.
const MEMORY: usize = 16 << 20;

fuzz_target!(|input: &[u8]| {
    within_bounds(input, MEMORY, said_by_a_controller);
    within_bounds(input, MEMORY, said_by_an_agent);
    within_bounds(input, MEMORY, |bytes| {
        if let Some(written) = told_file(bytes) {
            assert_eq!(told_file(&written).as_ref(), Some(&written), "what was written anew says the same");
        }
    });
});

/// What was accepted means the same to whoever is told it again.
fn said_by_a_controller(bytes: &[u8]) {
    let Ok(message) = wire::FromController::decode(bytes) else { return };
    match message.what {
        Some(from_controller::What::Update(message)) => updates(message),
        Some(from_controller::What::Replicas(message)) => {
            for endpoint in message.endpoints.iter().filter_map(|text| text.parse::<Endpoint>().ok()) {
                assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        }
        _ => {}
    }
}

/// And it leads to a state that can be told.
fn updates(message: wire::Update) {
    let revision = message.revision;
    let Ok(change) = Change::try_from(message) else { return };
    let again = update(revision, &change).encode_to_vec();
    let again = wire::Update::decode(&*again).expect("what we wrote");
    assert_eq!(Change::try_from(again), Ok(change.clone()));
    let mut told = Told::default();
    told.take(change);
    let _ = told.dangling();
    let mut other = Told::default();
    other.take(told.whole());
    assert_eq!(other.held(), told.held());
}

fn said_by_an_agent(bytes: &[u8]) {
    let Ok(message) = wire::FromAgent::decode(bytes) else { return };
    match message.what {
        Some(from_agent::What::Hello(message)) => {
            if let Ok(hello) = Hello::try_from(message) {
                assert_eq!(Hello::try_from(wire::Hello::from(&hello)), Ok(hello));
            }
        }
        Some(from_agent::What::Attachments(message)) => {
            if let Ok(attachments) = Attachments::try_from(message) {
                assert_eq!(Attachments::try_from(wire::Attachments::from(&attachments)), Ok(attachments));
            }
        }
        _ => {}
    }
}
