//! `moat lab`: a cluster of network namespaces, real agents and real packets.

mod chaos;
mod hostile;

use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use moat_lab::{Colour, Families, Info, Joined, LabError, Options, Programs, Purpose, Report, StateDir};

use crate::output::{self, Format};

/// Build the cluster of a manifest folder on this machine and see what its packets do
///
/// The lab makes each node a network namespace with a real moat-agent in it, joins the nodes by a link, and starts each pod of
/// the folder through moat-cni. Then it sends TCP, UDP and ICMP from every pod to every other, and prints what happened
/// beside what the engine predicted. It first does so without the policies, when everything must pass.
///
/// Nothing outside the lab's own namespaces is touched, and nothing is left behind, whatever happens. Root is not needed
/// where the kernel lets users make namespaces.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 no difference, 1 some cell differs, 2 an error.

Files in a folder, besides the manifests:
  world.txt      hosts outside the cluster: ADDRESS, then what it serves (443/TCP 53/UDP)
  expected.txt   what you say the matrix must be: SOURCE DESTINATION TRAFFIC allow|deny [IPv4|IPv6],
                 the last line that matches decides; compared as well, where it is there

Examples:
  Everything at once, on a recipe:
      moat lab run -f policies/examples/three-tier-web
  Keep it, change a policy, look again:
      moat lab up -f DIR
      $EDITOR DIR/policies.yaml
      moat lab probe
      moat lab down
  Break it in every way while packets flow:
      moat lab chaos -f policies/examples/three-tier-web --seed 7")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a lab, probe it, remove it
    Run {
        #[command(flatten)]
        make: Make,
        #[command(flatten)]
        show: Show,
    },
    /// Make a lab and keep it: edit the folder, look around in it, probe it
    Up {
        #[command(flatten)]
        make: Make,
        #[command(flatten)]
        name: Name,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Probe a lab that is up, as its folder is now; pods that came or went are added or removed first
    Probe {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        show: Show,
    },
    Chaos(chaos::Args),
    Hostile(hostile::Args),
    /// Remove a lab; no error where there is none
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Starts the keeper in namespaces of its own
    #[command(hide = true)]
    Gate {
        lab: PathBuf,
    },
    /// Holds a lab
    #[command(hide = true)]
    Keeper {
        lab: PathBuf,
    },
}

#[derive(clap::Args)]
struct Make {
    /// Folder of manifests: Namespaces, Pods or workloads, NetworkPolicies, and Nodes if you like
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    folder: PathBuf,
    /// How many nodes, where the folder has no Node objects
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=250))]
    nodes: u16,
    /// IPv4 and IPv6, where the folder has no Node objects
    #[arg(long)]
    dual_stack: bool,
    /// IPv6 only, where the folder has no Node objects
    #[arg(long, conflicts_with = "dual_stack")]
    ipv6: bool,
    /// How the nodes are joined; where it is a router, nobody outside talks to pods
    #[arg(long, value_enum, default_value_t = Joint::Link)]
    joined: Joint,
    /// Leave an agent that ends as it is, instead of starting it again: what its node then does is the kernel's doing alone
    #[arg(long)]
    no_restart: bool,
    /// Run the agents with --no-owner: the kernel does not guard their tables
    #[arg(long)]
    no_owner: bool,
}

/// How nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Joint {
    /// All on one link
    Link,
    /// Each on a link of its own with a router that knows no pod
    Router,
    /// The same, with a router that drops sources that it does not know
    StrictRouter,
}

impl From<Joint> for Joined {
    fn from(joint: Joint) -> Self {
        match joint {
            Joint::Link => Joined::Link,
            Joint::Router => Joined::Router,
            Joint::StrictRouter => Joined::StrictRouter,
        }
    }
}

#[derive(clap::Args)]
struct Name {
    /// Which lab, where you keep several
    #[arg(long, default_value = "lab", value_name = "NAME")]
    name: String,
}

#[derive(clap::Args)]
struct Show {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Do not compare with the folder's expected.txt
    #[arg(long)]
    no_expected: bool,
}

/// What a shell reports of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match command(&args.command) {
        Err(error) if matches!(error.downcast_ref(), Some(LabError::Interrupted)) => {
            Ok(ExitCode::from(INTERRUPTED))
        }
        result => result,
    }
}

fn command(command: &Command) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let tell = |text: &str| progress.tell(text);
    match command {
        Command::Run { make, show } => {
            let report = moat_lab::run(&make.options()?, !show.no_expected, &tell);
            progress.clear();
            show.print(&report?)
        }
        Command::Up { make, name, output } => {
            let info = moat_lab::up(&name.name, &make.options()?, &tell);
            progress.clear();
            print_info(&info?, &name.name, *output)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Probe { name, show } => {
            let report = moat_lab::probe(&name.name, !show.no_expected, &tell);
            progress.clear();
            show.print(&report?)
        }
        Command::Down { name } => {
            if !moat_lab::down(&name.name)? {
                output::note(format_args!("no lab `{}` was up", name.name));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Chaos(args) => chaos::run(args),
        Command::Hostile(args) => hostile::run(args),
        Command::Gate { lab } => {
            moat_lab::gate(&StateDir::at(lab.clone()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Keeper { lab } => {
            moat_lab::keep(StateDir::at(lab.clone()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Make {
    fn options(&self) -> anyhow::Result<Options> {
        let folder = self.folder.canonicalize().with_context(|| self.folder.display().to_string())?;
        if !folder.is_dir() {
            return Err(LabError::NotAFolder(self.folder.clone()).into());
        }
        let families = match (self.dual_stack, self.ipv6) {
            (true, _) => Families::Dual,
            (_, true) => Families::V6,
            _ => Families::V4,
        };
        let (programs, joined) = (Programs::beside_this_one()?, self.joined.into());
        let (restart, owner) = (!self.no_restart, !self.no_owner);
        Ok(Options {
            folder,
            nodes: self.nodes.into(),
            families,
            joined,
            restart,
            owner,
            purpose: Purpose::Probe,
            programs,
        })
    }
}

impl Show {
    fn print(&self, report: &Report) -> anyhow::Result<ExitCode> {
        let differences = report.differences().count();
        match self.output {
            Format::Text => {
                let colour = if output::colours() { Colour::On } else { Colour::Off };
                output::print(|out| out.write_all(moat_lab::text(report, colour).as_bytes()))?;
            }
            Format::Json => output::print(|out| {
                let mut value = serde_json::to_value(report)?;
                value["differences"] = differences.into();
                serde_json::to_writer_pretty(&mut *out, &value)?;
                writeln!(out)
            })?,
        }
        Ok(ExitCode::from(u8::from(differences > 0)))
    }
}

fn print_info(info: &Info, name: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::print(|out| {
            serde_json::to_writer_pretty(&mut *out, info)?;
            writeln!(out)
        }),
        Format::Text => output::print(|out| out.write_all(info_text(info, name).as_bytes())),
    }
}

fn info_text(info: &Info, name: &str) -> String {
    let mut text = String::new();
    let mut line = |words: [&str; 4]| {
        let [what, addresses, node, target] = words;
        text += format!("{what:<32}  {addresses:<32}  {node:<12}  {target}").trim_end();
        text.push('\n');
    };
    line(["NODE OR POD", "ADDRESSES", "ON", "TARGET"]);
    for node in &info.nodes {
        line([&node.name, &node.addresses.join(" "), "", &node.target.to_string()]);
    }
    for pod in &info.pods {
        line([&pod.name, &pod.addresses.join(" "), &pod.node, &pod.target.to_string()]);
    }
    // Whoever is not root enters the lab's user namespace too, in which he is.
    let user = if is_root() { "" } else { " --user --preserve-credentials" };
    let lab = if name == "lab" { String::new() } else { format!(" --lab {name}") };
    let named = if name == "lab" { String::new() } else { format!(" --name {name}") };
    let log = info.nodes.first().map(|n| n.log.display().to_string()).unwrap_or_default();
    text += &format!(
        "
Look around:    nsenter --target TARGET{user} --net ip addr     (or ping, ss, nft list ruleset, …)
An agent's log: {log}
Change it:      edit the manifests in {}; the agents see it at once
Probe it:       moat lab probe{named}
See its drops:  moat drops --follow{lab}     (and moat flows{lab})
Remove it:      moat lab down{named}
",
        info.folder.display()
    );
    text
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // Our own entry in /proc belongs to our effective user.
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// One line that says what is being done, on a terminal only.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn tell(&self, text: &str) {
        if self.terminal {
            // Back to the start of the line, and clear it.
            let _ = write!(io::stderr(), "\r\x1b[K{text} …");
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
