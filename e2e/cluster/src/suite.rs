//! `e2e`: the upstream NetworkPolicy suite against the cluster.
//!
//! ```text
//!   netpol.test, dry ──▶ the specs that are to run ──▶ as many lists as jobs
//!                                                        └─ netpol.test with its list ──▶ report ──▶ one summary
//! ```
//!
//! Each spec makes its own namespaces and pods, and most of its time it waits for connections that are denied, three seconds each:
//! several at once take little more of the machine than one.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
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
    /// How many specs at once
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
}

/// Runs it, and says in the end what passed. The exit status is 1 where a spec failed.
pub(crate) fn run(plan: &Plan, options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let (wanted, left_out) = listed(plan, options)?;
    let jobs = usize::from(options.jobs).min(wanted.len());
    let mut running = Vec::new();
    for number in 0..jobs {
        let list: Vec<&str> = wanted.iter().skip(number).step_by(jobs).map(String::as_str).collect();
        let job = Job::new(plan, &(number + 1).to_string());
        running.push((job.start(plan, &["-ginkgo.v", &format!("-ginkgo.focus={}", any_of(&list))])?, job));
    }
    eprintln!(
        "the upstream NetworkPolicy suite runs: {} specs, {jobs} at once; logs: {}/e2e-*.log",
        wanted.len(),
        plan.logs().display()
    );
    let mut specs = Vec::new();
    for (mut child, job) in running {
        let status = child.wait().context("cannot wait for the suite")?;
        let reported = job.report().with_context(|| format!("the suite ended ({status})"))?;
        specs.extend(reported.into_iter().filter(|spec| spec.outcome != Outcome::Skipped));
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs.extend(untold(&wanted, &specs));
    print!("{}", summary(&specs, left_out, started.elapsed()));
    let good = !wanted.is_empty() && specs.iter().all(|spec| spec.outcome == Outcome::Passed);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of the specs that are to run, and how many are left out.
fn listed(plan: &Plan, options: &Options) -> Result<(Vec<String>, usize)> {
    let job = Job::new(plan, "list");
    let mut flags = vec!["-ginkgo.dry-run".to_owned(), format!("-ginkgo.focus={}", options.focus)];
    let skip = options.skip.clone().or_else(|| (!has_sctp()).then(|| "SCTPConnectivity".to_owned()));
    flags.extend(skip.map(|skip| format!("-ginkgo.skip={skip}")));
    let status = job.start(plan, &flags)?.wait()?;
    let specs = job.report().with_context(|| format!("the suite does not list its specs ({status})"))?;
    let (out, wanted): (Vec<Spec>, Vec<Spec>) =
        specs.into_iter().partition(|spec| spec.outcome == Outcome::Skipped);
    if wanted.is_empty() {
        bail!("no spec matches {:?}", options.focus);
    }
    Ok((wanted.into_iter().map(|spec| spec.name).collect(), out.len()))
}

/// One process of the suite's program.
struct Job {
    log: PathBuf,
    report: PathBuf,
}

impl Job {
    fn new(plan: &Plan, name: &str) -> Self {
        let file = |ending: &str| plan.logs().join(format!("e2e-{name}.{ending}"));
        Self { log: file("log"), report: file("json") }
    }

    fn start(&self, plan: &Plan, flags: &[impl AsRef<std::ffi::OsStr>]) -> Result<Child> {
        // An older run's is not taken for this one's.
        let _ = fs::remove_file(&self.report);
        let log =
            fs::File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(plan.kubernetes(PROGRAM));
        command.arg(format!("-kubeconfig={}", text(plan.kubeconfig())));
        command.args(["-provider=skeleton", "-ginkgo.timeout=2h", "-ginkgo.no-color"]);
        command.arg(format!("-ginkgo.json-report={}", text(&self.report))).args(flags);
        command.current_dir(plan.logs()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("cannot run the suite")
    }

    fn report(&self) -> Result<Vec<Spec>> {
        let json = fs::read(&self.report).with_context(|| {
            format!("there is no report; its log ends with:\n{}", crate::daemon::log_end(&self.log))
        })?;
        Ok(specs(&serde_json::from_slice(&json)?))
    }
}

/// A regular expression that matches names which end with one of these.
fn any_of(names: &[&str]) -> String {
    let escaped = names.iter().map(|name| {
        let escape = |c: char| if c.is_ascii_punctuation() { format!("\\{c}") } else { c.to_string() };
        name.chars().map(escape).collect::<String>()
    });
    format!("({})$", escaped.collect::<Vec<_>>().join("|"))
}

/// Specs that were to run and of which nobody has told anything: a process that died, or names that are not what they were.
fn untold(wanted: &[String], told: &[Spec]) -> Vec<Spec> {
    let missing = wanted.iter().filter(|name| !told.iter().any(|spec| spec.name == **name));
    missing
        .map(|name| Spec {
            name: name.clone(),
            outcome: Outcome::Failed,
            seconds: 0.0,
            why: "it was not run".to_owned(),
        })
        .collect()
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

fn summary(specs: &[Spec], left_out: usize, took: Duration) -> String {
    let count = |outcome: Outcome| specs.iter().filter(|spec| spec.outcome == outcome).count();
    let mut text = String::new();
    for spec in specs {
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
        left_out,
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
        let mut specs = specs(&report);
        specs.retain(|spec| spec.outcome != Outcome::Skipped);
        let text = summary(&specs, 1, Duration::from_secs(9));
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

    #[test]
    fn a_list_of_names_matches_them_as_they_are() {
        assert_eq!(any_of(&["[sig] a (b)", "c"]), "(\\[sig\\] a \\(b\\)|c)$");
    }

    #[test]
    fn a_spec_of_which_nobody_tells_has_failed() {
        let told = [Spec { name: "a".into(), outcome: Outcome::Passed, seconds: 1.0, why: String::new() }];
        let untold = untold(&["a".into(), "b".into()], &told);
        assert_eq!((untold.len(), untold[0].name.as_str(), untold[0].outcome), (1, "b", Outcome::Failed));
    }
}
