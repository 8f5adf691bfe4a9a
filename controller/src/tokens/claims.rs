//! What a token says of itself. Nobody has confirmed it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Refusal;
use crate::said::{NAME, said};

/// Whom agents' tokens are for.
pub const AUDIENCE: &str = "moat-controller";

/// The longest text that is looked into: a ServiceAccount token has some 1,200 characters.
const LONGEST: usize = 16 * 1024;

/// What matters of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claims {
    /// From when on it is worth nothing.
    pub(super) expires: SystemTime,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    exp: Option<u64>,
}

/// One or several (RFC 7519, 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Audiences::Several(Vec::new())
    }
}

/// The claims of a token that says that it is `user`'s, and for us. One that does not need not be shown to the API server.
pub(super) fn of(token: &str, user: &str) -> Result<Claims, Refusal> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    let octets = (token.len() <= LONGEST).then(|| URL_SAFE_NO_PAD.decode(payload).ok()).flatten();
    let payload = octets.and_then(|octets| serde_json::from_slice::<Payload>(&octets).ok());
    let Payload { aud, sub, exp } = payload.ok_or(Refusal::Malformed)?;
    let audiences = match aud {
        Audiences::One(one) => vec![one],
        Audiences::Several(several) => several,
    };
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(Refusal::Audience(match audiences.is_empty() {
            true => "nobody".to_owned(),
            false => said(&audiences.join(", "), NAME),
        }));
    }
    if sub != user {
        return Err(Refusal::Account(said(&sub, NAME), user.to_owned()));
    }
    // One without an end is of no kubelet's making.
    let exp = exp.ok_or(Refusal::Malformed)?;
    let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)).ok_or(Refusal::Malformed)?;
    Ok(Claims { expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "system:serviceaccount:moat-system:moat-agent";

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn a_token_says_for_whom_it_is_and_whose() {
        let claims = |payload: String| of(&token(&payload), USER);
        let good = |aud: &str| claims(format!(r#"{{"aud":{aud},"sub":"{USER}","exp":7}}"#));
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        for aud in [r#""moat-controller""#, r#"["moat-controller"]"#, r#"["x","moat-controller"]"#] {
            assert_eq!(good(aud), Ok(Claims { expires }));
        }
        assert_eq!(good(r#"["x","y"]"#), Err(Refusal::Audience("x, y".into())));
        assert_eq!(good("[]"), Err(Refusal::Audience("nobody".into())));
        let other = r#"{"aud":"moat-controller","sub":"mallory","exp":7}"#.to_owned();
        assert_eq!(claims(other), Err(Refusal::Account("mallory".into(), USER.into())));
        let endless = format!(r#"{{"aud":"moat-controller","sub":"{USER}"}}"#);
        assert_eq!(claims(endless), Err(Refusal::Malformed));
    }

    /// Anybody can write such a token, and what it says of itself goes to the log.
    #[test]
    fn what_it_says_is_shown_on_one_line() {
        let claims = |payload: &str| of(&token(payload), USER).unwrap_err().to_string();
        let other = claims(r#"{"aud":"moat-controller","sub":"x\nINFO all is well\u001b[2J","exp":7}"#);
        assert_eq!(other, format!("the token is x INFO all is well\\u{{1b}}[2J's, and agents are {USER}"));
        let other = claims(&format!(r#"{{"aud":"\n{}","sub":"{USER}","exp":7}}"#, "x".repeat(9000)));
        assert!(other.len() < 400 && !other.contains('\n'), "{other}");
    }

    #[test]
    fn what_is_no_token_is_none() {
        let huge = token(&format!(r#"{{"sub":"{}"}}"#, "x".repeat(LONGEST)));
        for text in ["", "..", "mine", "a.b", "a.b.c", "a.b.c.d", &token("7"), &token("{"), &huge] {
            assert_eq!(of(text, USER), Err(Refusal::Malformed), "{text:.20}");
        }
    }
}
