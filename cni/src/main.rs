//! The `moat-cni` binary: hands its environment and stdin to [`moat_cni::plugin`].

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use moat_cni::plugin;
use moat_cni::version::SpecVersion;

fn main() -> ExitCode {
    let get = |name: &str| env::var(name).ok();
    let Some(command) = get("CNI_COMMAND").filter(|command| !command.is_empty()) else {
        eprint!("{}", usage());
        return ExitCode::SUCCESS;
    };
    let output = plugin::run(&command, get, io::stdin().lock());
    moat_cni::failpoint::reach("done");
    if let Some(text) = output.stdout {
        // A runtime that closed the pipe gets no answer; all that is left to say is that it failed.
        if writeln!(io::stdout(), "{text}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> String {
    let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    format!(
        "moat-cni {}: the CNI plugin of moat, which gives a pod its network together with its policy.\n\
         \n\
         It is run by a container runtime, not by hand: copy it to the runtime's plugin folder (/opt/cni/bin) and put\n\
         a configuration into /etc/cni/net.d, for example 10-moat.conflist:\n\
         \n\
         \x20 {{\"cniVersion\":\"1.1.0\",\"name\":\"moat\",\"plugins\":[{{\"type\":\"moat-cni\",\"agentSocket\":\"/run/moat/agent.sock\"}}]}}\n\
         \n\
         The node's moat-agent must listen on agentSocket. Commands (CNI_COMMAND): ADD, DEL, CHECK, GC, STATUS, VERSION.\n\
         CNI versions: {}.\n",
        env!("CARGO_PKG_VERSION"),
        versions.join(", "),
    )
}
