//! Everything at once, for who asks once.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::api::{Api, ListParams};
use moat_manifests::StoredPolicy;
use moat_policies::{Namespace, NamespacedName, Node, Object, Pod};

use crate::record::{Kind, Record};
use crate::{Error, PolicyNote};

/// Objects of one answer. Many, and a slow reader's answer is cut off; few, and a large cluster is asked a thousand times.
const PAGE: u32 = 500;

/// What is in the cluster.
#[derive(Debug, Default)]
pub struct Listing {
    /// All objects.
    pub objects: Vec<Object>,
    /// Pods that something controls, with its kind and name.
    pub owners: Vec<(NamespacedName, Arc<str>, Arc<str>)>,
    /// The policies about which there is something to be said.
    pub notes: Vec<(NamespacedName, PolicyNote)>,
}

/// Lists what decides verdicts.
pub async fn list(client: &Client) -> Result<Listing, Error> {
    let mut all = Listing::default();
    for record in every::<Namespace>(client).await? {
        all.add(record);
    }
    for record in every::<Node>(client).await? {
        all.add(record);
    }
    for record in every::<StoredPolicy>(client).await? {
        all.add(record);
    }
    for record in every::<Pod>(client).await? {
        let owner = record.owner.clone();
        let pod = record.object.name.clone();
        all.owners.extend(owner.map(|(kind, name)| (pod, kind, name)));
        all.add(record);
    }
    Ok(all)
}

impl Listing {
    fn add<K: Kind>(&mut self, record: Record<K>) {
        let said = K::said(record);
        if let (Object::Policy(policy), Some(note)) = (&said.object, said.note) {
            self.notes.push((policy.name.clone(), *note));
        }
        self.objects.push(said.object);
    }
}

async fn every<K: Kind>(client: &Client) -> Result<Vec<Record<K>>, Error> {
    let pages = pages(Api::all(client.clone()));
    let lists: Result<Vec<Page<K>>, kube::Error> = pages.try_collect().await;
    let lists = lists.map_err(|source| Error::List { kind: K::PLURAL, source: Box::new(source) })?;
    Ok(lists.into_iter().flat_map(|page| page.objects).collect())
}

/// A part of a list.
pub(crate) struct Page<K> {
    pub(crate) objects: Vec<Record<K>>,
    /// The version of the cluster that the list is of.
    pub(crate) version: String,
}

/// A list, part by part. Ends where it fails.
///
/// It asks for no version, so it is of the newest, whichever API server of several answers: an older cache could show a policy
/// that is gone, and hide one that is there.
pub(crate) fn pages<K: Kind>(api: Api<Record<K>>) -> BoxStream<'static, Result<Page<K>, kube::Error>> {
    enum Next {
        Page(Option<String>),
        End,
    }
    stream::try_unfold(Next::Page(None), move |next| {
        let api = api.clone();
        async move {
            let Next::Page(token) = next else { return Ok(None) };
            let params = ListParams { continue_token: token, ..ListParams::default().limit(PAGE) };
            let list = api.list(&params).await?;
            let token = list.metadata.continue_.filter(|token| !token.is_empty());
            let next = token.map_or(Next::End, |token| Next::Page(Some(token)));
            let version = list.metadata.resource_version.unwrap_or_default();
            Ok(Some((Page { objects: list.items, version }, next)))
        }
    })
    .boxed()
}
