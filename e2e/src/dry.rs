//! The matrix without packets: what the engine says of a folder, beside its `expected.txt`.

use std::collections::BTreeMap;
use std::path::Path;

use moat_policies::Object;

use crate::cells::cells;
use crate::error::LabError;
use crate::folder;
use crate::predict;
use crate::report::Report;
use crate::topology::{self, Families};

/// The cells that the lab would probe, with the engine's verdicts and what `expected.txt` says. Pods have addresses such as the
/// lab would give them; Node objects, where there are none, are the lab's.
pub fn dry_run(folder: &Path, nodes: usize, families: Families) -> Result<Report, LabError> {
    let mut objects = folder::load(&[folder.to_owned()])?.objects;
    let world = folder::load_world(folder)?;
    let (nodes, origin) = topology::nodes(&objects, nodes, families)?;
    if origin == topology::Origin::Lab {
        objects.extend(nodes.iter().cloned().map(Object::Node));
    }
    let placed = topology::place(&objects, &nodes, &BTreeMap::new())?;
    let addresses = topology::made_up_addresses(&placed, &nodes);
    let hosts = topology::hosts(&placed, &nodes, &world, &addresses);
    let cells = cells(&hosts);
    let objects = predict::with_places(&objects, &placed, &hosts, false);
    let predicted = predict::predict(&objects, &hosts, &cells)?;
    let (expected, odd) = folder::load_expected(folder, &cells, &hosts)?;
    let mut report = Report::new(&hosts, &cells, &predicted, Vec::new(), &expected);
    report.notes.extend(odd);
    Ok(report)
}
