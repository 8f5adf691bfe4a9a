//! What the API server says about a token.

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};

use super::Refusal;
use super::claims::{AUDIENCE, Claims};
use crate::said::{SENTENCE, said};

/// Where the API server says which node a token is bound to (Kubernetes 1.32 and newer).
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Asks about one token.
pub(super) async fn ask(client: &kube::Client, token: &str) -> Result<TokenReviewStatus, kube::Error> {
    let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let answer = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.unwrap_or_default())
}

/// The node of a token that is `user`'s. The token's own `claims` only say better why it is none.
pub(super) fn node_of(
    status: &TokenReviewStatus,
    user: &str,
    claims: &Claims,
    now: SystemTime,
) -> Result<Arc<str>, Refusal> {
    if status.authenticated != Some(true) {
        return Err(match now >= claims.expires {
            true => Refusal::Expired,
            false => Refusal::Bad(said(status.error.as_deref().unwrap_or("no reason is given"), SENTENCE)),
        });
    }
    // An API server that does not know audiences answers without them, and has not looked at ours.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(Refusal::Audience(audiences.join(", ")));
    }
    let owner = status.user.clone().unwrap_or_default();
    let name = owner.username.unwrap_or_default();
    if name != user {
        return Err(Refusal::Account(name, user.to_owned()));
    }
    let extra = owner.extra.unwrap_or_default();
    match extra.get(NODE).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.as_str().into()),
        _ => Err(Refusal::NoNode),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const USER: &str = "system:serviceaccount:moat-system:moat-agent";

    fn good() -> TokenReviewStatus {
        let extra = [(NODE.to_owned(), vec!["n1".to_owned()])].into();
        let user = UserInfo { username: Some(USER.to_owned()), extra: Some(extra), ..UserInfo::default() };
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            error: None,
            user: Some(user),
        }
    }

    fn node(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<Arc<str>, Refusal> {
        let mut status = good();
        change(&mut status);
        let claims = Claims { expires: SystemTime::UNIX_EPOCH + Duration::from_secs(100) };
        node_of(&status, USER, &claims, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn nothing_is_taken_for_granted() {
        assert_eq!(node(|_| ()), Ok("n1".into()));
        let bad = node(|status| status.authenticated = None);
        assert!(matches!(bad, Err(Refusal::Bad(_))));
        assert!(matches!(node(|status| *status = TokenReviewStatus::default()), Err(Refusal::Bad(_))));
        assert!(matches!(node(|status| status.audiences = None), Err(Refusal::Audience(_))));
        assert!(matches!(node(|status| status.user = None), Err(Refusal::Account(..))));
        let user = |change: fn(&mut UserInfo)| node(|status| change(status.user.as_mut().unwrap()));
        assert!(matches!(user(|user| user.username = Some("mallory".into())), Err(Refusal::Account(..))));
        assert_eq!(user(|user| user.extra = None), Err(Refusal::NoNode));
        let several = user(|user| {
            user.extra = Some([(NODE.to_owned(), vec!["n1".to_owned(), "n2".to_owned()])].into());
        });
        assert_eq!(several, Err(Refusal::NoNode));
    }

    #[test]
    fn an_expired_one_is_called_so() {
        let status = TokenReviewStatus { error: Some("invalid bearer token".into()), ..Default::default() };
        let claims = Claims { expires: SystemTime::UNIX_EPOCH + Duration::from_secs(100) };
        let at = |seconds| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            node_of(&status, USER, &claims, now).unwrap_err().reason()
        };
        assert_eq!((at(99), at(100)), ("bad", "expired"));
    }
}
