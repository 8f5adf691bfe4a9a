//! What the tests need beside Rust: a few system programs, and the reference CNI client.
//!
//! The lab itself needs nothing: moat speaks to the kernel without helpers. The tests call other people's programs
//! to hear from an independent party what we wrote.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cache, check, find};

/// A program, the Debian and Ubuntu package that has it, and what it is for.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: &[Need] = &[
    Need { program: "nft", package: "nftables", why: "reads our tables back, as an independent party" },
    Need { program: "ip", package: "iproute2", why: "shows links, addresses and routes to the tests" },
    Need { program: "conntrack", package: "conntrack", why: "shows connection entries to the tests" },
    Need { program: "go", package: "golang-go", why: "builds cnitool" },
];

/// The CNI project's own client. The newer one speaks CNI 1.1; the older one, CNI up to 1.0, is the last that Debian
/// 12's Go can build.
const CNITOOL: &str = "github.com/containernetworking/cni/cnitool";
const CNITOOL_VERSION: &str = "v1.3.0";
const CNITOOL_BEFORE_GO_1_21: &str = "v1.1.2";

/// Installs what is missing, or says what to install.
pub(crate) fn run() -> Result<ExitCode> {
    ensure()?;
    for need in NEEDS {
        println!("{:<10} {}", need.program, need.why);
    }
    println!("{:<10} drives our CNI plugin as a container runtime would", "cnitool");
    println!("all here");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that all of it is there.
pub(crate) fn ensure() -> Result<()> {
    let have_cnitool = find("cnitool").is_some();
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

fn install(missing: &[&Need]) -> Result<()> {
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

/// Whether we may install packages: asked of `id`, since the answer needs a system call and this crate has no unsafe.
fn rootly() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

fn build_cnitool() -> Result<()> {
    let go = find("go").context("go is not where its package puts it")?;
    let said = Command::new(&go).args(["env", "GOVERSION"]).output().context("cannot run go")?;
    let version = match go_minor(&String::from_utf8_lossy(&said.stdout)) {
        Some(minor) if minor < 21 => CNITOOL_BEFORE_GO_1_21,
        _ => CNITOOL_VERSION,
    };
    let bin = cache()?.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    // Outside of any Go module, whatever the folder that we were called in.
    check(
        Command::new(go)
            .args(["install", &format!("{CNITOOL}@{version}")])
            .env("GOBIN", &bin)
            .env("CGO_ENABLED", "0")
            .current_dir(&bin),
    )
}

/// 19 from `go1.19.8`.
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.trim().strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::go_minor;

    #[test]
    fn go_versions() {
        assert_eq!(go_minor("go1.19.8\n"), Some(19));
        assert_eq!(go_minor("go1.26"), Some(26));
        assert_eq!(go_minor("go1.27rc1"), Some(27));
        assert_eq!(go_minor("devel +abc"), None);
    }
}
