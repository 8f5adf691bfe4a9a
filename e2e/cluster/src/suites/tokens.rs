//! Who may ask: an agent without a token, with one that has expired, that is for somebody else, or that is another node's is refused by
//! every controller, counted and logged.
//!
//! The false agent speaks the real protocol over TLS, from the control plane's network. Its tokens are the API server's own, or signed
//! with the cluster's key, so nothing but what is said of them is wrong with them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::{FromAgent, Hello, from_agent};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

use super::Suite;
use super::field::{Field, NodeView};
use super::rollout::NAMESPACE;
use super::stage::Stage;
use crate::api::Kind;
use crate::kubectl::kubectl;

pub(super) const SUITE: Suite = Suite {
    name: "tokens",
    about: "agents with no token, an expired one, or somebody else's are refused",
    play,
};

const AGENTS: u16 = 9471;
const PAGES: u16 = 9470;
const AUDIENCE: &str = "moat-controller";
const SERVER_NAME: &str = "moat-controller.moat-system.svc";
const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest life that the API server gives a token.
const LIFE: u64 = 600;

fn play(stage: &mut Stage) -> Result<()> {
    let field = stage.field;
    let agents = pods(field, "moat-agent")?;
    let of_node = |name: &str| {
        let agent = agents.iter().find(|pod| text(pod, "/spec/nodeName") == name);
        agent.with_context(|| format!("there is no agent on {name}"))
    };
    let (first, second) = (of_node("node1")?, of_node("node2")?);
    let good = token(field, AUDIENCE, "moat-agent", first)?;
    let controllers = pods(field, "moat-controller")?;
    if controllers.len() < 2 {
        bail!("there are {} controllers, and two are to be asked", controllers.len());
    }
    let account =
        field.api.get(Kind::SERVICE_ACCOUNT, NAMESPACE, "moat-agent")?.context("no ServiceAccount")?;
    let signed = |lived: i64| own_token(field, &account, first, lived);
    // What is shown, as whose agent, why it is refused.
    let cases: Vec<(&str, Option<String>, &str, &str, Code)> = vec![
        ("no token", None, "node1", "no_token", Code::Unauthenticated),
        ("what is no token", Some("nonsense".into()), "node1", "malformed", Code::Unauthenticated),
        ("an expired token", Some(signed(-60)?), "node1", "expired", Code::Unauthenticated),
        (
            "a token for the API server",
            Some(token(field, "https://kubernetes.default.svc.cluster.local", "moat-agent", first)?),
            "node1",
            "audience",
            Code::Unauthenticated,
        ),
        (
            "another account's token",
            Some(token(field, AUDIENCE, "moat-controller", &controllers[0])?),
            "node1",
            "account",
            Code::PermissionDenied,
        ),
        ("a good token of node1, as node2", Some(good), "node2", "other_node", Code::PermissionDenied),
        // So it is their age alone that is wrong with the expired ones.
        (
            "a signed token of node1 that has not expired, as node2",
            Some(signed(LIFE as i64)?),
            "node2",
            "other_node",
            Code::PermissionDenied,
        ),
        (
            "a token of node2, as node1",
            Some(token(field, AUDIENCE, "moat-agent", second)?),
            "node1",
            "other_node",
            Code::PermissionDenied,
        ),
    ];
    for controller in &controllers {
        let node = field.node(text(controller, "/spec/nodeName"))?;
        for (what, token, claimed, reason, code) in &cases {
            let wrong = refused(field, node, controller, token.as_deref(), claimed, reason, *code);
            let wrong: Vec<String> = match wrong {
                Ok(wrong) => wrong,
                Err(error) => vec![format!("{error:#}")],
            };
            stage.verdict(
                &format!("{what}: refused by the controller on {}, counted, logged", node.name),
                &wrong,
            );
        }
    }
    Ok(())
}

/// What is wrong with how an agent is refused.
fn refused(
    field: &Field,
    node: &NodeView,
    controller: &Value,
    token: Option<&str>,
    claimed: &str,
    reason: &str,
    code: Code,
) -> Result<Vec<String>> {
    let before = counted(node, reason)?;
    let mut wrong = Vec::new();
    match follow(field, node.addresses[0], token, claimed)? {
        Some(status) if status.code() == code => {}
        Some(status) => wrong.push(format!("refused with {:?}: {}", status.code(), status.message())),
        None => wrong.push("it is served".to_owned()),
    }
    let after = counted(node, reason)?;
    if after != before + 1 {
        wrong.push(format!("counted as {reason}: {before} before, {after} afterwards"));
    }
    let mut logs = kubectl(&field.plan, &field.plan.kubeconfig());
    logs.args(["logs", "--namespace", NAMESPACE, text(controller, "/metadata/name")]);
    let output = logs.output().context("cannot run kubectl")?;
    let log = String::from_utf8_lossy(&output.stdout);
    let said = |line: &str| line.contains("an agent is refused") && line.contains(reason);
    if !log.lines().any(said) {
        wrong.push(format!("its log does not say that an agent is refused for {reason}"));
    }
    Ok(wrong)
}

/// Asks a controller as an agent does. Returns how it was refused; nothing if it was served.
fn follow(field: &Field, address: IpAddr, token: Option<&str>, node: &str) -> Result<Option<tonic::Status>> {
    let bundle =
        field.api.get(Kind::CONFIG_MAP, NAMESPACE, "moat-controller-ca")?.context("there is no CA yet")?;
    let ca = text(&bundle, "/data/ca.crt").to_owned();
    let to = SocketAddr::new(address, AGENTS);
    field.fabric.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(to, &ca, token, node)).await });
        asked.context("the controller does not answer")?
    })
}

async fn ask(to: SocketAddr, ca: &str, token: Option<&str>, node: &str) -> Result<Option<tonic::Status>> {
    let tls = ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(ca));
    let channel = Endpoint::from_shared(format!("https://{to}"))?.tls_config(tls)?.connect().await;
    let mut client = PoliciesClient::new(channel.context("cannot connect to the controller")?);
    // It holds nothing: sums over nothing have their octets all the same.
    let nothing = vec![0; 16];
    let (pods, nodes) = (nothing.clone(), nothing);
    let hello = Hello { level: moat_api::LEVEL, node: node.to_owned(), pods, nodes, ..Hello::default() };
    let first = FromAgent { what: Some(from_agent::What::Hello(hello)) };
    // Held open: who hangs up at once may not hear the answer.
    let words = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
    let mut request = Request::new(words);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let mut answers = match client.follow(request).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return Ok(Some(status)),
    };
    Ok(answers.message().await.err())
}

/// How often a controller has refused somebody for that.
fn counted(node: &NodeView, reason: &str) -> Result<u64> {
    let page = node.network.run(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", PAGES)).context("the controller has no pages")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })?;
    count(&page, reason).with_context(|| format!("the controller does not count {reason}"))
}

fn count(page: &str, reason: &str) -> Option<u64> {
    let start = format!("moat_controller_agents_refused_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start))?.trim().parse().ok()
}

/// moat's pods of that name.
fn pods(field: &Field, name: &str) -> Result<Vec<Value>> {
    let mut all = field.api.list(Kind::POD, NAMESPACE)?;
    all.retain(|pod| text(pod, "/metadata/labels/app.kubernetes.io~1name") == name);
    Ok(all)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A token of the API server's making, bound to a pod.
fn token(field: &Field, audience: &str, account: &str, pod: &Value) -> Result<String> {
    let bound = json!({
        "kind": "Pod", "apiVersion": "v1", "name": text(pod, "/metadata/name"), "uid": text(pod, "/metadata/uid"),
    });
    let spec = json!({ "audiences": [audience], "expirationSeconds": LIFE, "boundObjectRef": bound });
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let made = field.api.create_under(Kind::SERVICE_ACCOUNT, NAMESPACE, account, "token", &request)?.object;
    Ok(text(&made, "/status/token").to_owned())
}

/// One that says the same as the API server's, but for its age: it lasts so many seconds from now.
fn own_token(field: &Field, account: &Value, pod: &Value, lasts: i64) -> Result<String> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let node_name = text(pod, "/spec/nodeName");
    let node = field.api.get(Kind::NODE, "", node_name)?.context("the node is gone")?;
    let named = |object: &Value| json!({ "name": text(object, "/metadata/name"), "uid": text(object, "/metadata/uid") });
    let claims = json!({
        "iss": "https://kubernetes.default.svc.cluster.local",
        "aud": [AUDIENCE],
        "sub": format!("system:serviceaccount:{NAMESPACE}:moat-agent"),
        "iat": now - 3600, "nbf": now - 3600, "exp": now + lasts,
        "kubernetes.io": { "namespace": NAMESPACE, "serviceaccount": named(account), "pod": named(pod), "node": named(&node) },
    });
    let head = json!({ "alg": "ES256", "typ": "JWT" });
    let text =
        format!("{}.{}", base64url(head.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let key = KeyPair::from_pem(&std::fs::read_to_string(field.plan.pki("service-accounts.key"))?)?;
    let signature = fixed(&key.sign(text.as_bytes())?).context("the signature is none")?;
    Ok(format!("{text}.{}", base64url(&signature)))
}

/// An ECDSA signature as JWTs have it (RFC 7518, 3.4): both numbers with 32 octets, where DER takes as many as they need.
fn fixed(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = der.strip_prefix(&[0x30])?.get(1..)?;
    let mut both = Vec::new();
    for _ in 0..2 {
        let (length, number) = rest.strip_prefix(&[0x02])?.split_first()?;
        let (number, after) = number.split_at_checked(usize::from(*length))?;
        let short = number.strip_prefix(&[0]).filter(|_| number.len() > 32).unwrap_or(number);
        both.extend(std::iter::repeat_n(0, 32usize.checked_sub(short.len())?));
        both.extend(short);
        rest = after;
    }
    Some(both)
}

/// Base64 with the alphabet for URLs and no padding (RFC 4648, 5).
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain([&0, &0]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for sextet in 0..=chunk.len() {
            let index = word >> (18 - 6 * sextet) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc_with_the_alphabet_for_urls() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64url(plain.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn numbers_of_a_signature_have_32_octets_each() {
        let mut der = vec![0x30, 0, 0x02, 33, 0];
        der.extend([0x80; 32]);
        der.extend([0x02, 2, 1, 2]);
        let both = fixed(&der).unwrap();
        assert_eq!(both[..32], [0x80; 32]);
        assert_eq!(both[32..62], [0; 30]);
        assert_eq!(both[62..], [1, 2]);
        assert_eq!(fixed(&der[..20]), None);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let page = "# HELP x\nmoat_controller_agents_refused_total{reason=\"expired\"} 4\n";
        assert_eq!(count(page, "expired"), Some(4));
        assert_eq!(count(page, "no_token"), None);
    }
}
