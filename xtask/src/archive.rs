//! Container images written by hand: an OCI archive of one layer, without Docker and without a registry.
//!
//! ```text
//!   NAME.tar
//!   ├─ oci-layout                what kind of archive this is
//!   ├─ index.json                the image's name ──▶ manifest
//!   └─ blobs/sha256/…            manifest ──▶ config (what is run), layer (a tar of the files)
//! ```
//!
//! `ctr images import`, `podman load` and `kind load image-archive` take it. The same files give the same archive, to the byte: no times, no
//! user names, no order of a folder's entries.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// One thing in an image.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A program from this machine, executable by all.
    Program(PathBuf),
    /// A small file.
    Text(&'static str),
    /// An empty folder.
    Folder,
    /// A folder that anybody may write to, as /tmp.
    Scratch,
    /// A link to another path in the image.
    Link(&'static str),
}

/// What an image holds and runs.
#[derive(Debug)]
pub(crate) struct Image {
    /// With registry and tag, as pods name it.
    pub(crate) name: String,
    /// Paths without the leading slash; parents are made.
    pub(crate) files: Vec<(&'static str, Entry)>,
    pub(crate) entrypoint: Vec<&'static str>,
    pub(crate) command: Vec<&'static str>,
}

/// The users that programs look for.
pub(crate) const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";

impl Image {
    /// Writes the archive, whole or not at all.
    pub(crate) fn write(&self, to: &Path) -> io::Result<()> {
        let new = to.with_extension("new");
        self.write_to(BufWriter::new(File::create(&new)?))?;
        std::fs::rename(new, to)
    }

    fn write_to(&self, out: impl Write) -> io::Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/"],
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        // containerd reads the first name, podman and others the second.
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let mut tar = tar::Builder::new(out);
        put(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
        for blob in [&manifest, &config, &layer] {
            let name = digest(blob).replacen(':', "/", 1);
            put(&mut tar, &format!("blobs/{name}"), 0o644, blob)?;
        }
        tar.into_inner()?.flush()
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made: Vec<PathBuf> = Vec::new();
        for (path, entry) in &self.files {
            let mut parents: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
            parents.pop();
            for parent in parents.into_iter().rev() {
                if !made.iter().any(|m| m == parent) {
                    folder(&mut tar, parent, 0o755)?;
                    made.push(parent.to_owned());
                }
            }
            match entry {
                Entry::Program(file) => put(&mut tar, path, 0o755, &std::fs::read(file)?)?,
                Entry::Text(text) => put(&mut tar, path, 0o644, text.as_bytes())?,
                Entry::Folder | Entry::Scratch => {
                    let mode = if matches!(entry, Entry::Scratch) { 0o1777 } else { 0o755 };
                    folder(&mut tar, Path::new(path), mode)?;
                    made.push(path.into());
                }
                Entry::Link(target) => {
                    let mut header = plain(EntryType::Symlink, 0o777);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()
    }
}

fn put<W: Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = plain(EntryType::Regular, mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn folder<W: Write>(tar: &mut tar::Builder<W>, path: &Path, mode: u32) -> io::Result<()> {
    tar.append_data(&mut plain(EntryType::Directory, mode), path, io::empty())
}

fn plain(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine's, in Go's words, which are the image format's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    fn image() -> Image {
        Image {
            name: "example.org/some/thing:1".into(),
            files: vec![
                ("usr/bin/thing", Entry::Program("/proc/self/exe".into())),
                ("usr/bin/other", Entry::Link("thing")),
                ("etc/passwd", Entry::Text(PASSWD)),
                ("tmp", Entry::Scratch),
            ],
            entrypoint: vec!["/usr/bin/thing"],
            command: vec!["run"],
        }
    }

    fn written(image: &Image) -> Vec<u8> {
        let mut out = Vec::new();
        image.write_to(&mut out).unwrap();
        out
    }

    #[test]
    fn every_digest_is_that_of_the_blob_with_its_name() {
        let files = files(&written(&image()));
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let blob = &files[&format!("blobs/{}", digest.replacen(':', "/", 1))];
            assert_eq!(super::digest(blob), digest);
            assert_eq!(descriptor["size"], blob.len());
            blob
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "example.org/some/thing:1");
        let manifest: Value = serde_json::from_slice(blob(entry)).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/thing"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(layer));
        let names: Vec<String> = self::files(layer).into_keys().collect();
        let expected = ["etc", "etc/passwd", "tmp", "usr", "usr/bin", "usr/bin/other", "usr/bin/thing"];
        assert_eq!(names, expected);
    }

    #[test]
    fn parents_come_before_their_files() {
        let layer = image().layer().unwrap();
        let mut archive = tar::Archive::new(&layer[..]);
        let order: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(order[..3], ["usr", "usr/bin", "usr/bin/thing"]);
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        assert_eq!(digest(&written(&image())), digest(&written(&image())));
    }
}
