//! Folders that change under the watcher, as people and tools change them.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use moat_manifests::{Errors, Folders, Reading};
use moat_policies::{Key, NamespacedName, Object};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

struct Watched {
    _root: TempDir,
    folder: PathBuf,
    status: PathBuf,
    readings: Receiver<Result<Reading, Errors>>,
    /// What the readings so far led to.
    objects: RefCell<BTreeMap<Key, Object>>,
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
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
        Self { _root: root, folder, status, readings, objects: RefCell::default() }
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
        let reading = self.readings.recv_timeout(SOON).expect("a change is told soon")?;
        let mut objects = self.objects.borrow_mut();
        for key in &reading.changes.delete {
            assert!(objects.remove(key).is_some(), "{key} was there");
        }
        objects.extend(reading.changes.apply.iter().map(|object| (object.key(), object.clone())));
        Ok(reading)
    }

    fn names(&self) -> Vec<String> {
        self.objects.borrow().keys().map(Key::to_string).collect()
    }

    /// Takes readings, until they lead to these objects.
    fn until(&self, wanted: &[&str]) {
        while self.names() != wanted {
            let _ = self.next();
        }
    }

    /// Nothing is told for a while in which something would have been.
    fn silence(&self) {
        let told = self.readings.recv_timeout(Duration::from_millis(100));
        assert!(told.is_err(), "{told:?}");
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
    watched.next().unwrap();
    assert_eq!(watched.names(), ["Namespace a", "Namespace b"]);
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
    while watched.names() != ["Namespace a", "Namespace z"] {
        watched.next().unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn a_pods_state_is_put_over_the_pod() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n";
    let watched = Watched::with("p.yaml", pod);
    let state = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n";
    fs::write(watched.status.join("p.yaml"), state).unwrap();
    let reading = watched.next().unwrap();
    let pod = NamespacedName::new("default", "p");
    let state = reading.changes.states[&pod].clone().unwrap();
    assert_eq!(state.node.as_deref(), Some("node-1"));
    assert_eq!(state.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    fs::remove_file(watched.status.join("p.yaml")).unwrap();
    assert_eq!(watched.next().unwrap().changes.states[&pod], None);
}

#[test]
fn only_the_file_that_changed_is_told_of() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    fs::write(watched.folder.join("b.yaml"), namespace("b")).unwrap();
    let reading = watched.next().unwrap();
    assert_eq!(reading.changes.apply.len(), 1);
    // The same bytes once more, and files that are none of ours.
    fs::write(watched.folder.join("b.yaml"), namespace("b")).unwrap();
    fs::write(watched.folder.join("notes.txt"), "not ours").unwrap();
    fs::write(watched.folder.join(".hidden.yaml"), "not ours").unwrap();
    watched.silence();
}

#[test]
fn a_file_that_is_written_over_counts_as_it_was_until_it_is_closed() {
    let watched = Watched::with("a.yaml", &(namespace("a") + &namespace("b")));
    // The first half is a manifest by itself.
    let mut file = fs::File::create(watched.folder.join("a.yaml")).unwrap();
    file.write_all(namespace("a").as_bytes()).unwrap();
    file.sync_all().unwrap();
    // Another file's change is no reason to read this one; nor is one that everything is read for.
    fs::write(watched.folder.join("c.yaml"), namespace("c")).unwrap();
    watched.until(&["Namespace a", "Namespace b", "Namespace c"]);
    fs::create_dir(watched.folder.join("inner")).unwrap();
    fs::write(watched.folder.join("inner/d.yaml"), namespace("d")).unwrap();
    watched.until(&["Namespace a", "Namespace b", "Namespace c", "Namespace d"]);
    file.write_all(namespace("e").as_bytes()).unwrap();
    drop(file);
    watched.until(&["Namespace a", "Namespace c", "Namespace d", "Namespace e"]);
}

#[test]
fn a_file_that_nobody_closes_is_read_in_the_end() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    let mut file = fs::File::create(watched.folder.join("b.yaml")).unwrap();
    file.write_all(namespace("b").as_bytes()).unwrap();
    watched.until(&["Namespace a", "Namespace b"]);
    drop(file);
    fs::hard_link(watched.folder.join("b.yaml"), watched.folder.join("c.yaml")).unwrap();
    let errors = watched.next().unwrap_err().to_string();
    assert!(errors.contains("c.yaml") && errors.contains("b.yaml"), "{errors}");
}

/// As a volume from a ConfigMap is: each file is a link through a folder that is a link itself.
#[test]
fn links_within_the_folder_are_followed_when_what_they_lead_to_is_switched() {
    let watched = Watched::new(|folder| {
        for (version, name) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir_all(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("x.yaml"), namespace(name)).unwrap();
        }
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/x.yaml", folder.join("x.yaml")).unwrap();
    });
    watched.until(&["Namespace one"]);
    symlink("..2", watched.folder.join("..new")).unwrap();
    fs::rename(watched.folder.join("..new"), watched.folder.join("..data")).unwrap();
    watched.until(&["Namespace two"]);
    fs::write(watched.folder.join("..2/x.yaml"), namespace("three")).unwrap();
    watched.until(&["Namespace three"]);
    fs::remove_file(watched.folder.join("..2/x.yaml")).unwrap();
    assert!(watched.next().unwrap_err().to_string().contains("x.yaml"), "a link that leads nowhere");
    fs::remove_file(watched.folder.join("x.yaml")).unwrap();
    watched.until(&[]);
}

#[test]
fn a_pipe_in_the_folder_is_an_error_and_holds_nothing_up() {
    let watched = Watched::with("a.yaml", &namespace("a"));
    let pipe = watched.folder.join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(watched.next().unwrap_err().to_string().contains("no regular file"));
    fs::remove_file(pipe).unwrap();
    fs::write(watched.folder.join("b.yaml"), namespace("b")).unwrap();
    watched.until(&["Namespace a", "Namespace b"]);
}

/// More events than the kernel keeps: some are lost, and what they were about is found all the same.
#[test]
fn a_burst_that_the_kernel_cannot_keep_leads_where_it_must() {
    let queue: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let watched = Watched::with("a.yaml", &namespace("a"));
    let path = |n: usize| watched.folder.join(format!("{n}.yaml"));
    fs::write(path(0), namespace("passing")).unwrap();
    for n in 0..queue {
        fs::rename(path(n), path(n + 1)).unwrap();
    }
    fs::write(path(queue), namespace("last")).unwrap();
    watched.until(&["Namespace a", "Namespace last"]);
}
