//! `cargo xtask docs`: the pages hold together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{check, find, root};

/// Checks the links, and builds the book where mdbook is installed.
pub(crate) fn run() -> Result<ExitCode> {
    links()?;
    match find("mdbook") {
        Some(mdbook) => check(Command::new(mdbook).arg("build").arg(root().join("docs")))?,
        None => {
            println!("mdbook is not installed, so the book was not built (cargo install --locked mdbook)")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Folders whose pages must all be linked from one of them.
const INDEXED: &[(&str, &str)] =
    &[("docs", "docs/SUMMARY.md"), ("policies/examples", "policies/examples/README.md")];

/// Every relative link of every page resolves, and every page of the book and every recipe is in its index.
pub(crate) fn links() -> Result<()> {
    let mut wrong = Vec::new();
    let mut pages = Vec::new();
    find_pages(root(), &mut pages)?;
    let (mut checked, mut linked) = (0, BTreeSet::new());
    for page in &pages {
        let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for link in relative_links(&text) {
            let file = page.parent().unwrap_or(root()).join(link);
            checked += 1;
            if !file.exists() {
                wrong.push(format!("{}: {link} is not there", shown(page)));
            } else {
                linked.insert((page.clone(), file.canonicalize()?));
            }
        }
    }
    for (folder, index) in INDEXED {
        let index = root().join(index);
        for page in pages.iter().filter(|p| p.starts_with(root().join(folder)) && **p != index) {
            if !linked.contains(&(index.clone(), page.canonicalize()?)) {
                wrong.push(format!("{}: is not in {}", shown(page), shown(&index)));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} broken:\n{}", wrong.len(), wrong.join("\n"));
    }
    println!("{} pages, {checked} links between them: all resolve", pages.len());
    Ok(())
}

fn shown(page: &Path) -> String {
    page.strip_prefix(root()).unwrap_or(page).display().to_string()
}

/// The repository's Markdown files, in a stable order. Hidden folders and what is built are not ours to check.
fn find_pages(dir: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| dir.display().to_string())?;
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "book" {
            find_pages(&path, pages)?;
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
    Ok(())
}

/// The targets of `[text](target)` that are files of ours, without their `#fragment`. Code, in fences or back-ticks, links
/// to nothing.
fn relative_links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second piece between back-ticks is code.
        for prose in line.split('`').step_by(2) {
            for rest in prose.split("](").skip(1) {
                let target = rest.split([')', ' ']).next().unwrap_or_default();
                let file = target.split('#').next().unwrap_or_default();
                if !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:") {
                    links.push(file);
                }
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::relative_links;

    #[test]
    fn links_to_our_own_files() {
        let text = "See [a](a.md), [b](../b/c.md#part) and [web](https://example.org/x.md).\n\
                    [here](#part) `[no](code.md)` [yes](d.md \"title\")\n\
                    ```text\n[no](fenced.md)\n```\n[`moat`](e.md)\n";
        assert_eq!(relative_links(text), ["a.md", "../b/c.md", "d.md", "e.md"]);
    }
}
