//! The engine against what a person wrote, for every recipe, without packets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use moat_lab::{EXPECTED_FILE, Families, ReportCell, dry_run};

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn the_engine_says_what_a_person_wrote() {
    let examples = examples();
    assert!(examples.len() >= 10, "{} recipes", examples.len());
    let mut wrong = Vec::new();
    for folder in examples {
        assert!(folder.join(EXPECTED_FILE).exists(), "{} has no {EXPECTED_FILE}", folder.display());
        // As `moat lab run` does without flags; where a recipe has Node objects, they say what there is.
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let report = dry_run(&folder, 2, Families::V4).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report.cells.iter().all(|c| c.expected.is_some()), "{name}");
        assert!(report.notes.is_empty(), "{name}: {:?}", report.notes);
        let both = [true, false].map(|v| report.cells.iter().any(|c| c.predicted == v));
        assert_eq!(both, [true, true], "{name} has allowed and denied cells");
        wrong.extend(report.differences().map(|cell: &ReportCell| format!("{name}: {cell}")));
    }
    assert!(wrong.is_empty(), "{} cells differ:\n{}", wrong.len(), wrong.join("\n"));
}
