//! Events on policies that are not compiled as they stand, for who asks `kubectl describe networkpolicy`.
//!
//! An Event is named after what it says about which policy: however many controllers say it, and however often, there is one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use moat_apiserver::PolicyNote;
use moat_manifests::Finding;
use moat_policies::NamespacedName;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Who says so.
const REPORTER: &str = "moat.dev/controller";

/// How long to wait from one Event to the next: thousands of policies can be wrong at once, and nobody waits for these.
const PACE: Duration = Duration::from_millis(50);

/// How long to wait when the API server cannot take one now.
const PAUSE: Duration = Duration::from_secs(5);

/// The longest that the text of an Event may be, in bytes.
const LONGEST: usize = 1024;

/// What is to be said. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The newest of each policy, not yet written.
    unsaid: Mutex<BTreeMap<NamespacedName, PolicyNote>>,
    news: Notify,
}

impl Events {
    /// This is to be said about a policy, or nothing any more.
    pub(crate) fn say(&self, policy: NamespacedName, note: Option<PolicyNote>) {
        let mut unsaid = self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        match note {
            Some(note) => {
                unsaid.insert(policy, note);
                self.0.news.notify_one();
            }
            None => drop(unsaid.remove(&policy)),
        }
    }

    /// Writes Events until `stop`, in the name of the process `instance`.
    pub(crate) async fn write(
        self,
        client: Client,
        instance: Arc<str>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let pause = match self.next() {
                None => {
                    tokio::select! {
                        () = self.0.news.notified() => {}
                        () = stop.cancelled() => return,
                    }
                    continue;
                }
                Some((policy, note)) => match write(&client, &policy, &note, &instance).await {
                    Ok(()) => {
                        metrics.events.inc();
                        PACE
                    }
                    Err(error) => {
                        metrics.event_errors.inc();
                        match is_final(&error) {
                            // Its namespace is going, or we may not; that is no reason to try for ever.
                            true => warn!(%policy, "no Event about it can be written: {error}"),
                            false => {
                                debug!(%policy, "no Event about it can be written now: {error}");
                                self.again(policy, note);
                            }
                        }
                        PAUSE
                    }
                },
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn next(&self) -> Option<(NamespacedName, PolicyNote)> {
        self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// To be tried again, unless there is something newer.
    fn again(&self, policy: NamespacedName, note: PolicyNote) {
        self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner).entry(policy).or_insert(note);
    }
}

/// Whether the same request would fail again.
fn is_final(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 400..=499) && status.code != 429)
}

async fn write(
    client: &Client,
    policy: &NamespacedName,
    note: &PolicyNote,
    instance: &str,
) -> Result<(), Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), &policy.namespace);
    let event = event(policy, note, instance, Timestamp::now());
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => Ok(()),
        // Another controller has said so, or we did before.
        Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

fn event(policy: &NamespacedName, note: &PolicyNote, instance: &str, now: Timestamp) -> Event {
    let (reason, action, before, findings) = match note.refused.is_empty() {
        false => (
            "PolicyNotCompiled",
            "Isolate",
            "this policy isolates the pods that it may select, and lets nobody talk to them: ",
            &note.refused,
        ),
        true => ("PolicyOdd", "Compile", "", &note.warnings),
    };
    let text = bounded(before, findings);
    let regarding = ObjectReference {
        api_version: Some("networking.k8s.io/v1".to_owned()),
        kind: Some("NetworkPolicy".to_owned()),
        namespace: Some(policy.namespace.to_string()),
        name: Some(policy.name.to_string()),
        uid: note.uid.as_deref().map(str::to_owned),
        resource_version: Some(note.version.to_string()),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name(policy, note, reason, &text)),
            namespace: Some(policy.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        action: Some(action.to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(regarding),
        note: Some(text),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// One name for one thing that is said about one policy: another one of the policy's name, or another thing, has another.
fn name(policy: &NamespacedName, note: &PolicyNote, reason: &str, text: &str) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [note.uid.as_deref().unwrap_or_default(), reason, text] {
        hash.update(part.as_bytes()).update(&[0]);
    }
    let hash = hash.finalize().to_hex();
    // At most 253 octets; those of a policy's name are ASCII.
    let start: String = policy.name.chars().take(253 - 17).collect();
    format!("{start}.{}", &hash[..16])
}

/// As many findings as there is room for.
fn bounded(before: &str, findings: &[Finding]) -> String {
    let mut text = before.to_owned();
    for (i, finding) in findings.iter().enumerate() {
        let finding = finding.to_string();
        let (between, more) = (if i > 0 { "; " } else { "" }, format!("; and {} more", findings.len() - i));
        if text.len() + between.len() + finding.len() + more.len() > LONGEST {
            if i == 0 {
                let end = finding.floor_char_boundary(LONGEST - text.len());
                text.push_str(&finding[..end]);
            } else {
                text.push_str(&more);
            }
            break;
        }
        text.push_str(between);
        text.push_str(&finding);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(uid: &str, version: &str, refused: &[(&str, &str)], warnings: &[(&str, &str)]) -> PolicyNote {
        let findings = |these: &[(&str, &str)]| {
            let finding =
                |(field, reason): &(&str, &str)| Finding { field: (*field).into(), reason: (*reason).into() };
            these.iter().map(finding).collect()
        };
        let (refused, warnings) = (findings(refused), findings(warnings));
        PolicyNote { uid: Some(uid.into()), version: version.into(), refused, warnings }
    }

    fn made(note: &PolicyNote, instance: &str) -> Event {
        event(&NamespacedName::new("shop", "db"), note, instance, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn two_controllers_say_it_once_and_something_else_is_another_event() {
        let form = [("spec.ingress[0].form", "no such field")];
        let name = |note: &PolicyNote, instance: &str| made(note, instance).metadata.name.unwrap();
        let first = name(&note("u", "1", &form, &[]), "a");
        assert_eq!(first, name(&note("u", "2", &form, &[]), "b"), "an annotation changes nothing about it");
        assert_ne!(first, name(&note("v", "1", &form, &[]), "a"), "another policy of that name");
        assert_ne!(first, name(&note("u", "1", &[("spec.later", "no such field")], &[]), "a"));
        assert_ne!(first, name(&note("u", "1", &[], &form), "a"));
        assert!(first.starts_with("db.") && first.len() == 3 + 16);
    }

    #[test]
    fn it_says_what_is_wrong_and_what_that_means() {
        let event =
            made(&note("u", "7", &[("spec.ingress[0].form", "no such field; did you mean from?")], &[]), "a");
        assert_eq!(event.reason.as_deref(), Some("PolicyNotCompiled"));
        assert_eq!(
            event.note.as_deref(),
            Some(
                "this policy isolates the pods that it may select, and lets nobody talk to them: \
                 spec.ingress[0].form: no such field; did you mean from?"
            )
        );
        assert_eq!(event.regarding.unwrap().uid.as_deref(), Some("u"));
    }

    #[test]
    fn a_text_is_as_long_as_it_may_be() {
        let long = "ä".repeat(700);
        let text = |count: usize, reason: &str| {
            let findings = vec![Finding { field: "spec".into(), reason: reason.into() }; count];
            bounded("x: ", &findings)
        };
        assert!(text(1, &long).len() <= LONGEST && text(1, &long).starts_with("x: spec: ää"));
        let many = text(100, "no such field");
        assert!(many.len() <= LONGEST && many.contains("; and ") && many.ends_with(" more"), "{many}");
        assert_eq!(text(2, "odd"), "x: spec: odd; spec: odd");
    }
}
