//! Kubernetes itself, for the local cluster: built from its public Go modules, once, since there may be no registry to pull it from.
//!
//! ```text
//!   e2e/cluster/kubernetes/{go.mod, go.sum, …} ──hash──▶ CACHE/kubernetes/HASH/
//!                                                         ├─ kube-apiserver, kubelet, …, netpol.test
//!                                                         └─ images/{pause, agnhost}.tar
//!   e2e/cluster/coredns/{go.mod, go.sum, main.go} ──hash──▶ CACHE/coredns/HASH/{coredns, images/coredns.tar}
//!   Debian's etcd, containerd, runc ──unpacked, not installed──▶ CACHE/debian/
//! ```
//!
//! What is there is not built again; an interrupted build goes on where it was.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::archive::{Entry, Image, PASSWD, hex};
use crate::process::{cache, check, find, root};
use crate::setup::{self, Need};

/// As in go.mod.
const VERSION: &str = "v1.36.2";
/// A Go module of ours whose programs are other people's.
struct Module {
    /// For people, and the name of its folder in the cache.
    name: &'static str,
    /// What the first build takes.
    cost: &'static str,
    /// Its folder below `e2e/cluster`, and what in there decides what is built.
    source: &'static str,
    files: &'static [&'static str],
    /// File name, and the package that it is built from.
    programs: &'static [(&'static str, &'static str)],
}

/// Those programs first that others wait for.
const KUBERNETES: Module = Module {
    name: "kubernetes",
    cost: "10 to 20 minutes on two cores, 4 GB of Go's caches",
    source: "e2e/cluster/kubernetes",
    files: &["go.mod", "go.sum", "netpol/netpol_test.go", "pause/main.go"],
    programs: PROGRAMS,
};
const COREDNS: Module = Module {
    name: "coredns",
    cost: "2 to 4 minutes on two cores",
    source: "e2e/cluster/coredns",
    files: &["go.mod", "go.sum", "main.go"],
    programs: &[("coredns", ".")],
};
const PROGRAMS: &[(&str, &str)] = &[
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    ("pause", "./pause"),
    (SUITE, "./netpol"),
];
/// The upstream NetworkPolicy suite, which is a test binary.
const SUITE: &str = "netpol.test";
/// As these versions of the kubelet and of the suite name them.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// As the cluster's manifest names it.
const COREDNS_IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.15.0";

/// Programs that only have to be somewhere: they are unpacked from Debian's packages where they are not installed, so that no
/// service is ever started.
const UNPACKED: &[(&str, &str)] = &[("etcd", "etcd-server"), ("containerd", "containerd"), ("runc", "runc")];
/// What a node uses of the system's.
const NEEDS: &[Need] = &[
    Need { program: "go", package: "golang-go", why: "builds Kubernetes" },
    Need { program: "ip", package: "iproute2", why: "lays the cables between the nodes" },
    Need { program: "nft", package: "nftables", why: "is how kube-proxy writes its rules" },
    Need {
        program: "conntrack",
        package: "conntrack",
        why: "is how kube-proxy forgets what went to Services",
    },
    Need {
        program: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        why: "is a pod network to compare with",
    },
];

/// Where everything is.
pub(crate) struct Kubernetes {
    /// The folder of the programs.
    pub(crate) programs: PathBuf,
    /// Archives of the images that pods are made of.
    pub(crate) images: Vec<PathBuf>,
    /// Folders of etcd, containerd and runc, for the path.
    pub(crate) unpacked: Vec<PathBuf>,
}

/// `cargo xtask setup --kubernetes`.
pub(crate) fn run() -> Result<ExitCode> {
    let kubernetes = ensure()?;
    for (program, _) in PROGRAMS {
        println!("{}", kubernetes.programs.join(program).display());
    }
    for (program, _) in UNPACKED {
        let unpacked = kubernetes.unpacked.iter().map(|bin| bin.join(program)).find(|file| file.is_file());
        println!("{}", unpacked.or_else(|| find(program)).unwrap_or_default().display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds and unpacks what is missing.
pub(crate) fn ensure() -> Result<Kubernetes> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| find(need.program).is_none()).collect();
    if !missing.is_empty() {
        setup::install(&missing)?;
    }
    let unpacked = unpack()?;
    let programs = KUBERNETES.built()?;
    let coredns = COREDNS.built()?;
    let images = images(&programs, &coredns)?;
    Ok(Kubernetes { programs, images, unpacked })
}

impl Module {
    /// The folder of its programs; builds what is missing there.
    fn built(&self) -> Result<PathBuf> {
        let programs = cache()?.join(self.name).join(self.key()?);
        fs::create_dir_all(programs.join("images"))
            .with_context(|| format!("cannot make {}", programs.display()))?;
        self.build(&programs)?;
        Ok(programs)
    }

    /// Names what is built: the same sources with the same flags are the same programs.
    fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for file in self.files {
            let file = root().join(self.source).join(file);
            hash.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        hash.update(flags().join(" "));
        Ok(hex(&hash.finalize())[..16].to_owned())
    }

    fn build(&self, programs: &Path) -> Result<()> {
        let missing: Vec<_> =
            self.programs.iter().filter(|(name, _)| !programs.join(name).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let go = find("go").context("go is not where its package puts it")?;
        eprintln!("building {} into {}", self.name, programs.display());
        eprintln!("  once: {}; what is built stays when you interrupt it", self.cost);
        for (number, (name, package)) in missing.iter().enumerate() {
            eprintln!("  {}/{}: {name}", number + 1, missing.len());
            let started = Instant::now();
            let new = programs.join(format!(".{name}.new"));
            let mut command = Command::new("nice");
            command.args(["-n", "19"]).arg(&go);
            // Vetting a test means vetting all that it imports, which is not ours.
            command.args(if *name == SUITE { &["test", "-c", "-vet=off"][..] } else { &["build"] });
            command.args(flags()).arg("-o").arg(&new).arg(package);
            command.current_dir(root().join(self.source)).env("CGO_ENABLED", "0").env_remove("GOFLAGS");
            check(&mut command)?;
            fs::rename(&new, programs.join(name))?;
            let took = started.elapsed().as_secs_f64();
            eprintln!("  {}/{}: {name}: done in {took:.0} s", number + 1, missing.len());
        }
        Ok(())
    }
}

fn flags() -> [String; 4] {
    let version = format!("-s -w -X k8s.io/component-base/version.gitVersion={VERSION}");
    ["-trimpath".into(), "-buildvcs=false".into(), "-ldflags".into(), version]
}

/// Writes the archives that are missing.
fn images(programs: &Path, coredns: &Path) -> Result<Vec<PathBuf>> {
    let user = || ("etc/passwd", Entry::Text(PASSWD));
    let image = |name: &str, files, entrypoint: &'static str, command: &[&'static str]| Image {
        name: name.into(),
        files,
        entrypoint: vec![entrypoint],
        command: command.to_vec(),
    };
    let pause = vec![("pause", Entry::Program(programs.join("pause")))];
    let agnhost = vec![
        ("agnhost", Entry::Program(programs.join("agnhost"))),
        ("agnhost-2", Entry::Link("agnhost")),
        user(),
        ("tmp", Entry::Scratch),
        ("uploads", Entry::Scratch),
    ];
    let dns = vec![("coredns", Entry::Program(coredns.join("coredns"))), user(), ("tmp", Entry::Scratch)];
    let all = [
        (programs.join("images/pause.tar"), image(PAUSE_IMAGE, pause, "/pause", &[])),
        (programs.join("images/agnhost.tar"), image(AGNHOST_IMAGE, agnhost, "/agnhost", &["pause"])),
        (coredns.join("images/coredns.tar"), image(COREDNS_IMAGE, dns, "/coredns", &[])),
    ];
    for (file, image) in &all {
        if !file.is_file() {
            image.write(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(all.into_iter().map(|(file, _)| file).collect())
}

/// The folders of programs that come from packages; empty where all of them are installed.
fn unpack() -> Result<Vec<PathBuf>> {
    let missing: Vec<_> = UNPACKED.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let folder = cache()?.join("debian");
    let folders = ["usr/bin", "usr/sbin"].map(|bin| folder.join(bin));
    let there = |program: &str| folders.iter().any(|bin| bin.join(program).is_file());
    if missing.iter().all(|(program, _)| there(program)) {
        return Ok(folders.into());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if find("apt-get").is_none() || find("dpkg-deb").is_none() {
        bail!("these packages are missing, and this is no Debian to take them from: {}", packages.join(", "));
    }
    eprintln!(
        "unpacking {} into {}: nothing is installed, no service is started",
        packages.join(", "),
        folder.display()
    );
    let downloads = folder.join("packages");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    let download =
        || check(Command::new("apt-get").args(["-q", "download"]).args(&packages).current_dir(&downloads));
    // A fresh image has no package lists at all.
    let update = || check(Command::new("apt-get").args(["-q", "update"]));
    download()
        .or_else(|_| update().and_then(|()| download()))
        .with_context(|| format!("try it by hand: {by_hand}"))?;
    for entry in fs::read_dir(&downloads)? {
        check(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&folder))?;
    }
    fs::remove_dir_all(&downloads)?;
    Ok(folders.into())
}

impl Kubernetes {
    /// The path on which the cluster finds all programs: those of ours first.
    pub(crate) fn path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let folders = [self.programs.clone()].into_iter().chain(self.unpacked.iter().cloned());
        Ok(std::env::join_paths(folders.chain(std::env::split_paths(&path)).chain(more))?)
    }
}
