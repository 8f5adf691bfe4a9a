//! What the tests need beside Rust: a few system programs, and the reference CNI client.
//!
//! The lab itself needs nothing: moat speaks to the kernel without helpers. The tests call other people's programs
//! to hear from an independent party what we wrote.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cache, cargo, check, find, in_words};

/// A program or a file, the Debian and Ubuntu package that has it, and what it is for.
pub(crate) struct Need {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
}

const NEEDS: &[Need] = &[
    Need { program: "nft", package: "nftables", why: "reads our tables back, as an independent party" },
    Need { program: "ip", package: "iproute2", why: "shows links, addresses and routes to the tests" },
    Need {
        program: "/etc/protocols",
        package: "netbase",
        why: "has the names of protocols, for nft to print",
    },
    Need { program: "go", package: "golang-go", why: "builds cnitool" },
    Need {
        program: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        why: "is what our plugin's benchmark compares with",
    },
    Need {
        program: "ethtool",
        package: "ethtool",
        why: "shows a benchmark that the links which it compares are set alike",
    },
];

/// The CNI project's own client.
const CNITOOL: &str = "github.com/containernetworking/cni/cnitool@v1.3.0";
/// The oldest Go that builds it, and the one to fetch where the system's is older, as Debian 12's is.
const OLDEST_GO: u32 = 21;
const NEWER_GO: &str = "go1.25.0";

/// Installs what is missing, or says what to install.
pub(crate) fn run() -> Result<ExitCode> {
    ensure()?;
    for need in NEEDS {
        println!("{:<16} {}", need.program, need.why);
    }
    println!("{:<16} drives our CNI plugin as a container runtime would", "cnitool");
    println!("all here");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that all of it is there.
pub(crate) fn ensure() -> Result<()> {
    // One of our own: an older one, which somebody else may have installed, does not speak CNI 1.1.
    let have_cnitool = cache()?.join("bin/cnitool").is_file();
    // Go is only wanted to build cnitool.
    let wanted = |need: &&Need| find(need.program).is_none() && !(need.program == "go" && have_cnitool);
    let missing: Vec<&Need> = NEEDS.iter().filter(wanted).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    if !have_cnitool {
        build_cnitool()?;
    }
    Ok(())
}

/// Installs the packages, or says which ones to install.
pub(crate) fn install(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !rootly() || find("apt-get").is_none() {
        let why: Vec<String> = missing.iter().map(|n| format!("  {:<10} {}", n.package, n.why)).collect();
        bail!("these packages are missing:\n{}\nas root, run: {by_hand}", why.join("\n"));
    }
    let apt = |args: &[&str]| {
        check(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(args))
    };
    // A fresh image has no package lists at all, so the update comes first.
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"], &packages[..]].concat())
        .with_context(|| format!("cannot install packages; try it by hand: {by_hand}"))
}

/// Where a tool of cargo's is; built from crates.io into the cache where it is nowhere yet.
pub(crate) fn cargo_tool(name: &str) -> Result<PathBuf> {
    if let Some(program) = find(name) {
        return Ok(program);
    }
    check(cargo(["install", "--locked", "--quiet", name, "--root"]).arg(cache()?))?;
    find(name).with_context(|| format!("{name} is not where it was installed"))
}

/// Whether we are root, and may install packages: asked of `id`, since the answer needs a system call and this crate has no unsafe.
pub(crate) fn rootly() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

fn build_cnitool() -> Result<()> {
    let mut go = find("go").context("go is not where its package puts it")?;
    let bin = cache()?.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    if go_minor(&said(Command::new(&go).args(["env", "GOVERSION"]))?).is_some_and(|minor| minor < OLDEST_GO) {
        go = newer_go(&go)?;
    }
    // Outside of any Go module, whatever the folder that we were called in.
    let mut install = Command::new(go);
    install.args(["install", CNITOOL]).env("GOBIN", &bin).env("CGO_ENABLED", "0").current_dir(&bin);
    check(&mut install)
}

/// A newer Go, fetched by the old one. Go's releases are modules too, which any Go downloads and checks against the public
/// checksum database; but only newer ones know that the files in there are programs.
fn newer_go(go: &Path) -> Result<PathBuf> {
    let arch = said(Command::new(go).args(["env", "GOARCH"]))?;
    let module = format!("golang.org/toolchain@v0.0.1-{NEWER_GO}.linux-{arch}");
    check(Command::new(go).args(["mod", "download", &module]).current_dir("/"))?;
    let folder = Path::new(&said(Command::new(go).args(["env", "GOMODCACHE"]))?).join(module);
    for programs in [folder.join("bin"), folder.join(format!("pkg/tool/linux_{arch}"))] {
        for file in std::fs::read_dir(&programs).with_context(|| programs.display().to_string())? {
            std::fs::set_permissions(file?.path(), Permissions::from_mode(0o555))?;
        }
    }
    Ok(folder.join("bin/go"))
}

/// What a program prints, without the line's end.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", in_words(command)))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// 19 from `go1.19.8`.
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::go_minor;

    #[test]
    fn go_versions() {
        assert_eq!(go_minor("go1.19.8"), Some(19));
        assert_eq!(go_minor("go1.26"), Some(26));
        assert_eq!(go_minor("go1.27rc1"), Some(27));
        assert_eq!(go_minor("devel +abc"), None);
    }
}
