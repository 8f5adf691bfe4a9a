//! Writes the definitions to a folder: `crds FOLDER`; with `--check` says instead which of its files are not as they would be written.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let check = args.iter().any(|arg| arg == "--check");
    let folder = args.iter().find(|arg| !arg.starts_with("--")).ok_or("which folder?")?;
    let mut drifted = Vec::new();
    for (name, text) in moat_crd::yaml()? {
        let path = PathBuf::from(folder).join(name);
        if !check {
            fs::write(&path, text)?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            drifted.push(path.display().to_string());
        }
    }
    if drifted.is_empty() {
        return Ok(());
    }
    Err(format!("not what the types say; run `cargo xtask crds`: {}", drifted.join(", ")).into())
}
