//! `e2e`: the upstream NetworkPolicy suite against the cluster.

use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::plan::{Plan, text};

/// The file name of the suite's program.
const PROGRAM: &str = "netpol.test";

/// The specs that are about policies: the program holds some more, of the framework.
const NETPOL: &str = "Netpol";

/// What to run of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only specs whose names match this regular expression
    #[arg(long, value_name = "REGEX", default_value = NETPOL)]
    focus: String,
    /// Leave out specs whose names match this; without it, those that send SCTP where the kernel has none
    #[arg(long, value_name = "REGEX")]
    skip: Option<String>,
    /// Show everything that the suite prints; it is in logs/e2e.log all the same
    #[arg(long)]
    verbose: bool,
}

/// Runs it, and says in the end what passed. The exit status is 1 where a spec failed.
pub(crate) fn run(plan: &Plan, options: &Options) -> Result<ExitCode> {
    let report = plan.logs().join("e2e.json");
    let log_path = plan.logs().join("e2e.log");
    let log = fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(plan.kubernetes(PROGRAM));
    command.arg(format!("-kubeconfig={}", text(plan.kubeconfig())));
    command.args(["-provider=skeleton", "-ginkgo.timeout=2h", "-ginkgo.no-color", "-ginkgo.v"]);
    command.arg(format!("-ginkgo.json-report={}", text(&report)));
    command.arg(format!("-ginkgo.focus={}", options.focus));
    let skip = options.skip.clone().or_else(|| (!has_sctp()).then(|| "SCTPConnectivity".to_owned()));
    if let Some(skip) = skip {
        command.arg(format!("-ginkgo.skip={skip}"));
    }
    command.current_dir(plan.logs()).stdin(Stdio::null());
    if !options.verbose {
        let errors = log.try_clone()?;
        command.stdout(log).stderr(errors);
    }
    eprintln!("the upstream NetworkPolicy suite runs; its log is {}", log_path.display());
    let started = Instant::now();
    let status = command.status().context("cannot run the suite")?;
    let json = fs::read(&report).with_context(|| {
        format!(
            "the suite ended ({status}) without a report; its log ends with:\n{}",
            crate::daemon::log_end(&log_path)
        )
    })?;
    let specs = specs(&serde_json::from_slice(&json)?);
    print!("{}", summary(&specs, started.elapsed()));
    let failed = specs.iter().any(|spec| spec.outcome == Outcome::Failed);
    let good = status.success() && !failed && specs.iter().any(|spec| spec.outcome == Outcome::Passed);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether this kernel knows the protocol.
fn has_sctp() -> bool {
    fs::read_to_string("/proc/net/protocols")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("SCTP")))
}

/// How a spec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// A spec that was run, or not.
#[derive(Debug, PartialEq)]
struct Spec {
    name: String,
    outcome: Outcome,
    seconds: f64,
    /// What it says of its failure, in the first line.
    why: String,
}

/// The specs of Ginkgo's report, in which each suite has a list of them.
fn specs(report: &Value) -> Vec<Spec> {
    let suites = report.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = suites.iter().filter_map(|suite| suite["SpecReports"].as_array()).flatten();
    // Before and after the suite there are nodes that are no specs; they count when they fail.
    let spec = |report: &Value| {
        let outcome = match report["State"].as_str() {
            Some("passed") => Outcome::Passed,
            Some("skipped" | "pending") => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let is_spec = report["LeafNodeType"] == "It";
        let parents = report["ContainerHierarchyTexts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut words: Vec<&str> = parents.iter().filter_map(Value::as_str).collect();
        words.extend(report["LeafNodeText"].as_str());
        let why = report["Failure"]["Message"].as_str().unwrap_or_default();
        let spec = Spec {
            name: words.join(" "),
            outcome,
            seconds: report["RunTime"].as_f64().unwrap_or_default() / 1e9,
            why: why.lines().next().unwrap_or_default().to_owned(),
        };
        let ours = is_spec && (outcome != Outcome::Skipped || spec.name.contains(NETPOL));
        (ours || outcome == Outcome::Failed).then_some(spec)
    };
    all.filter_map(spec).collect()
}

fn summary(specs: &[Spec], took: Duration) -> String {
    let count = |outcome: Outcome| specs.iter().filter(|spec| spec.outcome == outcome).count();
    let mut text = String::new();
    for spec in specs.iter().filter(|spec| spec.outcome != Outcome::Skipped) {
        let word = if spec.outcome == Outcome::Passed { "pass" } else { "FAIL" };
        text += &format!("{word} {:6.1} s  {}\n", spec.seconds, spec.name);
        if spec.outcome == Outcome::Failed {
            text += &format!("                {}\n", spec.why);
        }
    }
    text += &format!(
        "{} passed, {} failed, {} not run, in {:.0} s\n",
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::Skipped),
        took.as_secs_f64()
    );
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_summary_names_what_ran() {
        let it = |of: &str, name: &str, state: &str| {
            json!({
                "ContainerHierarchyTexts": [of], "LeafNodeType": "It", "LeafNodeText": name, "State": state,
                "RunTime": 1_500_000_000u64, "Failure": { "Message": "wrong cells\nmore" },
            })
        };
        let before = json!({
            "ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "State": "passed",
        });
        let report = json!([{ "SpecReports": [
            before,
            it("Netpol", "a", "passed"),
            it("Netpol", "b", "failed"),
            it("Netpol", "c", "skipped"),
            it("Services", "d", "skipped"),
        ] }]);
        let text = summary(&specs(&report), Duration::from_secs(9));
        assert_eq!(
            text,
            "pass    1.5 s  Netpol a\nFAIL    1.5 s  Netpol b\n                wrong cells\n\
             1 passed, 1 failed, 1 not run, in 9 s\n"
        );
    }

    #[test]
    fn a_suite_that_cannot_begin_has_failed() {
        let before = json!({
            "ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "State": "failed",
            "Failure": { "Message": "no nodes" },
        });
        let specs = specs(&json!([{ "SpecReports": [before] }]));
        assert_eq!(specs.len(), 1);
        assert_eq!(specs[0].outcome, Outcome::Failed);
    }
}
