//! Every recipe as a lab: packets, engine and what a person wrote are the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use moat_lab::Observed;

#[test]
fn packets_do_what_the_engine_and_a_person_say() {
    let mut folders: Vec<PathBuf> = fs::read_dir(common::examples_dir())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 10);
    let wrong = Mutex::new(Vec::new());
    let left = Mutex::new(folders);
    // A lab mostly waits for packets that do not come.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().pop();
                    let Some(folder) = next else { return };
                    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
                    let told = one(&folder).map_err(|e| format!("{name}: {e}"));
                    wrong.lock().unwrap().extend(told.err());
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn one(folder: &std::path::Path) -> Result<(), String> {
    let (status, report) = common::run(folder, &[]);
    let report = report?;
    let differences = common::differences(&report);
    if status != 0 || !differences.is_empty() {
        return Err(format!("exit status {status}\n  {}", differences.join("\n  ")));
    }
    let complete = report.cells.iter().all(|c| c.expected.is_some() && c.observed.is_some());
    let seen = |observed: &Observed| report.cells.iter().any(|c| c.observed.as_ref() == Some(observed));
    match complete && seen(&Observed::Allowed) && seen(&Observed::Denied) {
        true => Ok(()),
        false => Err("some cell was not probed, or nothing passed, or nothing was dropped".into()),
    }
}
