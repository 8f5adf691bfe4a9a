//! Process and thread numbers of the lab's own process namespace, as the caller's namespace has them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::info::Info;

/// The lab's information with the caller's numbers. What cannot be translated is 0: nobody's number.
pub(crate) fn info(mut info: Info, keeper: i32) -> Info {
    let outer = numbers(keeper);
    let translate = |number: &mut i32| *number = outer.get(number).copied().unwrap_or_default();
    for node in &mut info.nodes {
        translate(&mut node.target);
        translate(&mut node.agent);
    }
    info.pods.iter_mut().for_each(|pod| translate(&mut pod.target));
    info
}

/// The numbers of the keeper's threads, and of all processes of its process namespace: inner to outer.
fn numbers(keeper: i32) -> HashMap<i32, i32> {
    let namespace = |pid: &Path| fs::read_link(pid.join("ns/pid")).ok();
    let own = Path::new("/proc").join(keeper.to_string());
    let wanted = namespace(&own);
    let threads = entries(&own.join("task"));
    let processes = entries(Path::new("/proc")).filter(|p| wanted.is_some() && namespace(p) == wanted);
    threads.chain(processes).filter_map(|path| pair(&path)).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path())
}

/// `NSpid:` has the number in each namespace, the reader's first, its own last.
fn pair(process: &Path) -> Option<(i32, i32)> {
    let outer = process.file_name()?.to_str()?.parse().ok()?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    Some((numbers.split_whitespace().last()?.parse().ok()?, outer))
}
