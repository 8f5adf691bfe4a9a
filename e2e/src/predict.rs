//! What the engine says about each cell.

use moat_policies::{Flow, Object, Objects, UnknownEndpoint};

use crate::cells::{Cell, Host};

/// One verdict a cell, in their order.
pub(crate) fn predict(
    objects: &Objects,
    hosts: &[Host],
    cells: &[Cell],
) -> Result<Vec<bool>, UnknownEndpoint> {
    cells
        .iter()
        .map(|cell| {
            let flow = Flow {
                source: hosts[cell.source].endpoint.clone(),
                destination: hosts[cell.destination].endpoint.clone(),
                traffic: cell.traffic,
                family: Some(cell.family),
            };
            objects.evaluate(&flow).map(|verdict| verdict.allowed)
        })
        .collect()
}

/// The objects with the pods as they are placed: on their nodes, with the addresses that they have.
pub(crate) fn with_places(
    objects: &[Object],
    placed: &[crate::topology::Placed],
    hosts: &[Host],
    without_policies: bool,
) -> Objects {
    let kept = objects.iter().filter(|o| match o {
        Object::Pod(_) => false,
        Object::Policy(_) => !without_policies,
        _ => true,
    });
    let mut all: Objects = kept.cloned().collect();
    // `hosts` starts with the placed pods, in their order.
    for (p, host) in placed.iter().zip(hosts) {
        let mut pod = p.pod.clone();
        pod.addresses.clone_from(&host.addresses);
        all.insert(Object::Pod(pod));
    }
    all
}
