//! The journal on a real folder.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use super::format::HEADER_1;
use super::*;

pub(super) fn attachment(container: &str, address: &str) -> Attachment {
    let key = AttachmentKey::new(container, "eth0");
    Attachment {
        container_id: container.into(),
        ifname: "eth0".into(),
        network: "moat".into(),
        pod_namespace: "default".into(),
        pod_name: "web".into(),
        pod_uid: None,
        netns: "/run/netns/x".into(),
        host_ifname: key.host_ifname(),
        host_mac: [6; 6],
        pod_mac: [2; 6],
        v4: Some(address.parse().unwrap()),
        v6: None,
        mtu: 1500,
        host_ports: Vec::new(),
    }
}

pub(super) fn key(container: &str) -> AttachmentKey {
    AttachmentKey::new(container, "eth0")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Opened in the boot `boot`, and ready to be written.
fn open_in(folder: &Path, boot: &str) -> (Journal, Found) {
    let (mut journal, found) = Journal::open(folder, Clock::of_boot(boot)).unwrap();
    journal.renew().unwrap();
    (journal, found)
}

fn open(folder: &Path) -> Journal {
    open_in(folder, "one").0
}

fn written() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, found) = open_in(folder.path(), "one");
    assert_eq!((journal.contents(), found), (&Contents::default(), Found::Nothing));
    journal.attach(attachment("b", "10.1.0.1")).unwrap();
    journal.attach(attachment("a", "10.1.0.2")).unwrap();
    journal.release(&key("b"), 7);
    journal.attach(attachment("c", "10.1.0.3")).unwrap();
    let path = folder.path().join(FILE);
    (folder, path)
}

fn names(contents: &Contents) -> Vec<&str> {
    contents.attachments().iter().map(|a| a.container_id.as_str()).collect()
}

#[test]
fn what_was_written_is_read_again_and_again() {
    let (folder, _) = written();
    for _ in 0..3 {
        let (journal, found) = open_in(folder.path(), "one");
        assert_eq!(found, Found::Whole);
        assert_eq!(names(journal.contents()), ["a", "c"], "the oldest first");
        assert_eq!(journal.contents().resting, BTreeMap::from([(ip("10.1.0.1"), 7)]));
        let read = read_attachments(folder.path()).unwrap();
        assert_eq!(read, journal.contents().attachments());
    }
}

#[test]
fn in_another_boot_the_rest_begins_anew() {
    let (folder, _) = written();
    let (journal, _) = open_in(folder.path(), "two");
    assert!(journal.contents().resting[&ip("10.1.0.1")] > 7);
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let second = Journal::open(folder.path(), Clock::of_boot("one"));
    assert!(matches!(second, Err(JournalError::InUse(_))));
    drop(first);
    open(folder.path());
}

/// A kill can stop the writing at any byte. Whatever it cuts off, every record before it counts, and the next is taken.
#[test]
fn cut_off_at_any_byte() {
    let (folder, path) = written();
    let whole = fs::read(&path).unwrap();
    let header = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for length in header..=whole.len() {
        let complete = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
        let expected: &[&str] = match complete - 1 {
            0 => &[],
            1 => &["b"],
            2 => &["b", "a"],
            3 => &["a"],
            _ => &["a", "c"],
        };
        let decoded = decode(&whole[..length]).unwrap();
        assert_eq!(names(&decoded.contents), expected, "cut at {length}");
        assert_eq!(decoded.damaged, None, "cut at {length}");
    }
    for lost in [1, 2, 100] {
        fs::write(&path, &whole[..whole.len() - lost]).unwrap();
        let mut journal = open(folder.path());
        journal.attach(attachment("d", "10.1.0.9")).unwrap();
        drop(journal);
        assert_eq!(names(open(folder.path()).contents()), ["a", "d"], "{lost} bytes lost");
    }
}

#[test]
fn damage_in_the_midst_takes_no_more_than_its_line() {
    let (folder, path) = written();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("10.1.0.2", "10.1.0.7", 1)).unwrap();
    let (journal, found) = open_in(folder.path(), "one");
    assert_eq!((names(journal.contents()), found), (vec!["c"], Found::Damaged));
    drop(journal);
    assert!(folder.path().join(DAMAGED).exists(), "kept for whoever wants to look");
    assert_eq!(open_in(folder.path(), "one").1, Found::Whole, "written anew");
    for nonsense in ["", "hello\n", "{}\n", "[1]\n"] {
        fs::write(&path, nonsense).unwrap();
        let (journal, found) = open_in(folder.path(), "one");
        assert_eq!((names(journal.contents()).len(), found), (0, Found::Damaged), "{nonsense:?}");
    }
}

/// Word for word what the release before wrote.
#[test]
fn version_1_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let a = serde_json::to_string(&attachment("a", "10.1.0.2")).unwrap();
    let c = serde_json::to_string(&attachment("c", "10.1.0.3")).unwrap();
    let text = format!(
        "{HEADER_1}\n\
         {{\"resting\":{{\"address\":\"10.1.0.9\",\"at\":1700000000000000}}}}\n\
         {{\"resting\":{{\"address\":\"10.1.0.8\",\"at\":1600000000000000}}}}\n\
         {{\"attached\":{a}}}\n\
         {{\"attached\":{c}}}\n\
         {{\"released\":{{\"key\":{{\"container_id\":\"c\",\"ifname\":\"eth0\"}},\"at\":1800000000000000}}}}\n\
         {{\"attached\":{{\"container_id\":\"d\""
    );
    fs::write(&path, text).unwrap();
    let (journal, found) = open_in(folder.path(), "one");
    assert_eq!((names(journal.contents()), found), (vec!["a"], Found::Whole));
    let mut by_age: Vec<(u64, IpAddr)> =
        journal.contents().resting.iter().map(|(address, at)| (*at, *address)).collect();
    by_age.sort_unstable();
    let order: Vec<String> = by_age.iter().map(|(_, address)| address.to_string()).collect();
    assert_eq!(order, ["10.1.0.8", "10.1.0.9", "10.1.0.3"], "the longest released first");
    assert!(by_age[0].0 >= 1_000_000 && by_age[2].0 < 1_600_000_000_000_000, "moments of this boot");
    assert!(fs::read_to_string(&path).unwrap().starts_with(r#"{"moat":"attachments","version":2,"#));
}

#[test]
fn a_later_release_is_not_taken_for_damage() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), "{\"moat\":\"attachments\",\"version\":3,\"new\":1}\n...\n").unwrap();
    let error = Journal::open(folder.path(), Clock::of_boot("one")).unwrap_err();
    assert!(matches!(error, JournalError::Newer { version: 3, .. }), "{error}");
}

#[test]
fn a_release_that_did_not_fit_goes_before_the_next_record() {
    let (folder, path) = written();
    let mut journal = open(folder.path());
    let full = journal.durable.file().unwrap().read_only(&path);
    let good = journal.durable.file.lock().unwrap().replace(Arc::new(full));
    journal.release(&key("a"), 9);
    assert!(journal.is_behind());
    let before = journal.contents().clone();
    assert!(journal.attach(attachment("d", "10.1.0.2")).is_err());
    assert_eq!(journal.contents(), &before, "as if nothing had been asked");
    *journal.durable.file.lock().unwrap() = good;
    journal.attach(attachment("e", "10.1.0.2")).unwrap();
    assert!(!journal.is_behind());
    let told = journal.contents().clone();
    drop(journal);
    assert_eq!(open(folder.path()).contents(), &told);
    assert_eq!(names(&told), ["c", "e"]);
    assert!(!told.resting.contains_key(&ip("10.1.0.2")));
}

#[test]
fn a_long_life_makes_no_long_file() {
    let (folder, path) = written();
    let mut journal = open(folder.path());
    // As if it had grown: the next record makes it be written anew.
    journal.limit = journal.length;
    journal.attach(attachment("d", "10.1.0.4")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), journal.length);
    let lines = fs::read_to_string(&path).unwrap().lines().count();
    assert_eq!(lines, 1 + 1 + 3, "the header, one resting address, three attachments");
    journal.attach(attachment("e", "10.1.0.5")).unwrap();
    let told = journal.contents().clone();
    drop(journal);
    assert_eq!(open(folder.path()).contents(), &told);
}

#[test]
fn a_folder_that_is_removed_under_way_is_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("var/lib/moat");
    let mut journal = open(&folder);
    journal.attach(attachment("a", "10.1.0.1")).unwrap();
    fs::remove_dir_all(root.path().join("var")).unwrap();
    journal.attach(attachment("b", "10.1.0.2")).unwrap();
    let second = Journal::open(&folder, Clock::of_boot("one"));
    assert!(matches!(second, Err(JournalError::InUse(_))), "and locked");
    drop(journal);
    assert_eq!(names(open(&folder).contents()), ["a", "b"]);
}

#[test]
fn what_the_disk_lost_is_written_anew() {
    let (folder, _) = written();
    let mut journal = open(folder.path());
    let durable = journal.durable();
    journal.attach(attachment("d", "10.1.0.4")).unwrap();
    durable.lost.store(true, Ordering::SeqCst);
    assert!(durable.sync(&journal.path()).is_err(), "a second try would mean nothing");
    journal.attach(attachment("e", "10.1.0.5")).unwrap();
    durable.sync(&journal.path()).unwrap();
    drop(journal);
    assert_eq!(names(open(folder.path()).contents()), ["a", "c", "d", "e"]);
}

#[test]
fn one_sync_serves_all_that_wait() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    for n in 0..20 {
        journal.attach(attachment(&format!("c{n}"), &format!("10.1.0.{n}"))).unwrap();
    }
    let syncs = |journal: &Journal| {
        let ops = journal.disk.recorder.ops();
        ops.iter().filter(|op| matches!(op, super::super::disk::Op::SyncFile(_))).count()
    };
    let before = syncs(&journal);
    let (durable, path) = (journal.durable(), journal.path());
    std::thread::scope(|scope| {
        (0..20).for_each(|_| drop(scope.spawn(|| durable.sync(&path).unwrap())));
    });
    assert_eq!(syncs(&journal), before + 1);
}
