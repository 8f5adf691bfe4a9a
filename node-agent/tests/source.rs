//! Folders that change under the watcher, as people and tools change them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use moat_agent::source::{Folders, Reading};
use moat_manifests::Errors;
use moat_policies::Object;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

struct Watched {
    _root: TempDir,
    folder: PathBuf,
    status: PathBuf,
    readings: Receiver<Result<Reading, Errors>>,
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
}

fn names(reading: &Reading) -> Vec<String> {
    reading.objects.iter().map(|o| o.key().to_string()).collect()
}

impl Watched {
    /// Watches `root/manifests`, made by `make`, and `root/status`.
    fn new(make: impl FnOnce(&Path)) -> Self {
        let root = TempDir::new().unwrap();
        let (folder, status) = (root.path().join("manifests"), root.path().join("status"));
        fs::create_dir(&status).unwrap();
        make(&folder);
        let folders = Folders { manifests: vec![folder.clone()], pod_status: vec![status.clone()] };
        let (sender, readings) = channel();
        std::thread::spawn(move || folders.watch(|reading| sender.send(reading).is_ok()));
        Self { _root: root, folder, status, readings }
    }

    /// A watched folder with one file, already read.
    fn with(file: &str, text: &str) -> Self {
        let watched = Self::new(|folder| {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        });
        watched.next().unwrap();
        watched
    }

    fn next(&self) -> Result<Reading, Errors> {
        self.readings.recv_timeout(SOON).expect("a change is told soon")
    }

    /// The objects of the next readings, until they are these.
    fn until(&self, wanted: &[&str]) {
        loop {
            if self.next().is_ok_and(|reading| names(&reading) == wanted) {
                return;
            }
        }
    }
}

#[test]
fn a_file_comes_and_goes() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    fs::write(watched.folder.join("b.yaml"), namespace("b")).unwrap();
    watched.until(&["Namespace a", "Namespace b"]);
    fs::remove_file(watched.folder.join("a.yaml")).unwrap();
    watched.until(&["Namespace b"]);
    fs::rename(watched.folder.join("b.yaml"), watched.folder.join("b.txt")).unwrap();
    watched.until(&[]);
}

#[test]
fn a_file_is_written_over_in_place_and_by_rename() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    fs::write(watched.folder.join("a.yaml"), namespace("b")).unwrap();
    watched.until(&["Namespace b"]);
    let new = watched.folder.join(".new");
    fs::write(&new, namespace("c")).unwrap();
    fs::rename(new, watched.folder.join("a.yaml")).unwrap();
    watched.until(&["Namespace c"]);
}

#[test]
fn a_folder_comes_in_the_folder_and_files_in_it() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    let inner = watched.folder.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("b.yaml"), namespace("b")).unwrap();
    watched.until(&["Namespace a", "Namespace b"]);
    fs::write(inner.join("c.json"), r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}"#)
        .unwrap();
    watched.until(&["Namespace a", "Namespace b", "Namespace c"]);
    fs::remove_dir_all(inner).unwrap();
    watched.until(&["Namespace a"]);
}

#[test]
fn a_link_is_switched_to_another_folder() {
    let other = TempDir::new().unwrap();
    let folder = |name: &str| {
        let path = other.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x.yaml"), namespace(name)).unwrap();
        path
    };
    let (one, two) = (folder("one"), folder("two"));
    let watched = Watched::new(|path| symlink(one, path).unwrap());
    watched.until(&["Namespace one"]);
    let new = watched.folder.with_extension("new");
    symlink(&two, &new).unwrap();
    fs::rename(new, &watched.folder).unwrap();
    watched.until(&["Namespace two"]);
    fs::write(two.join("x.yaml"), namespace("three")).unwrap();
    watched.until(&["Namespace three"]);
}

#[test]
fn a_bad_file_is_told_with_its_name_and_mended() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    fs::write(watched.folder.join("b.yaml"), "apiVersion: networking.k8s.io/v1\nkind: NetworkPolitsy\n")
        .unwrap();
    let errors = watched.next().unwrap_err().to_string();
    assert!(errors.contains("b.yaml"), "{errors}");
    fs::write(watched.folder.join("b.yaml"), namespace("b")).unwrap();
    watched.until(&["Namespace a", "Namespace b"]);
}

#[test]
fn a_folder_that_goes_is_an_error_and_is_found_again() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    let away = watched.folder.with_extension("away");
    fs::rename(&watched.folder, &away).unwrap();
    assert!(watched.next().unwrap_err().to_string().contains("manifests"));
    fs::rename(&away, &watched.folder).unwrap();
    watched.until(&["Namespace a"]);
}

#[test]
fn a_file_that_is_still_being_written_is_waited_for() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    // What the file holds before its writer closes it is no manifest.
    let mut file = fs::File::create(watched.folder.join("b.yaml")).unwrap();
    file.write_all(b"apiVersion: v1\nkind: Names").unwrap();
    file.write_all(b"pace\nmetadata: {name: b}\n").unwrap();
    drop(file);
    assert_eq!(names(&watched.next().unwrap()), ["Namespace a", "Namespace b"]);
}

#[test]
fn files_that_come_and_go_all_the_time_are_no_error() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    for n in 0..500 {
        let path = watched.folder.join(format!("passing-{n}.yaml"));
        fs::write(&path, namespace(&format!("passing-{n}"))).unwrap();
        fs::remove_file(path).unwrap();
    }
    fs::write(watched.folder.join("z.yaml"), namespace("z")).unwrap();
    loop {
        let reading = watched.next().unwrap_or_else(|e| panic!("{e}"));
        if names(&reading) == ["Namespace a", "Namespace z"] {
            return;
        }
    }
}

#[test]
fn a_pods_state_is_put_over_the_pod() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n";
    let watched = Watched::with("p.yaml", pod);
    let state = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n";
    fs::write(watched.status.join("p.yaml"), state).unwrap();
    let reading = watched.next().unwrap();
    let [Object::Pod(pod)] = &reading.objects[..] else { panic!("one pod: {:?}", reading.objects) };
    assert_eq!(pod.node.as_deref(), Some("node-1"));
    assert_eq!(pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
}
