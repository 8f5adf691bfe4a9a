use moat_api::Told;
use moat_policies::Limits;

use super::*;
use crate::authority::leaf::Shown;

/// What there is to be told is names, and they become more for as long as somebody does not read.
#[tokio::test]
async fn who_does_not_read_is_not_served_for_ever() {
    let index = Arc::new(Mutex::new(Index::new(Limits::default())));
    let metrics = Arc::new(Metrics::new(index.clone(), None, Shown::default()));
    let serve = Serve::new(index.clone(), metrics, "test".into(), CancellationToken::new());
    let serve = Serve { unread: Duration::from_millis(50), ..serve };
    let (node, held) = ("n1".into(), Told::default().held());
    let version = String::new();
    let hello = Hello { level: 2, node, version, held, announces_only: false, life: Arc::default() };
    // An agent's connection has room for one message. The one that is there is not read; or the first of two is not.
    for unread in [true, false] {
        let wake = Arc::new(Notify::new());
        let id = index.lock().unwrap().join(&hello, wake.clone());
        let attachments = Attachments { number: 1, whole: true, ..Attachments::default() };
        index.lock().unwrap().attached(id, &attachments);
        let (to, _unread) = mpsc::channel(1);
        if unread {
            to.try_send(Ok(wire::FromController::default())).unwrap();
        }
        let told = time::timeout(Duration::from_secs(20), serve.tell(id, &wake, None, &to, 2)).await;
        assert!(told.is_ok(), "it is waited for without end");
    }
    // Nor where it is not told anything but which replicas there are.
    let (wake, (to, _unread)) = (Arc::new(Notify::new()), mpsc::channel(1));
    to.try_send(Ok(wire::FromController::default())).unwrap();
    let (tell, mut replicas) = watch::channel(Some(Vec::new()));
    replicas.mark_changed();
    let id = index.lock().unwrap().join(&hello, Arc::default());
    let told = serve.tell(id, &wake, Some(replicas), &to, 2);
    assert!(time::timeout(Duration::from_secs(20), told).await.is_ok(), "it is waited for without end");
    drop(tell);
}
