//! etcd and kube-apiserver on loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const TOKEN: &str = "a-token-for-this-test";

/// A loaded machine takes its time to start an API server.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where the programs are.
pub(crate) struct Programs {
    api_server: PathBuf,
}

impl Programs {
    /// `None`, with a word about it, where they are not built.
    pub(crate) fn find() -> Option<Self> {
        let api_server =
            std::env::var_os("MOAT_KUBERNETES").map(|folder| PathBuf::from(folder).join("kube-apiserver"));
        let found = api_server.filter(|file| file.is_file());
        if found.is_none() {
            println!(
                "SKIPPED: MOAT_KUBERNETES names no folder with kube-apiserver; `cargo xtask setup --kubernetes` builds it"
            );
        }
        found.map(|api_server| Self { api_server })
    }
}

pub(crate) struct Server {
    programs: Programs,
    folder: PathBuf,
    etcd: u16,
    port: u16,
    _etcd: Child,
    api_server: Option<Child>,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A kubeconfig for the server behind that port.
pub(crate) fn kubeconfig(folder: &Path, port: u16) -> PathBuf {
    let file = folder.join(format!("kubeconfig-{port}"));
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: it
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
clusters: [{{name: it, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]
users: [{{name: it, user: {{token: {TOKEN}}}}}]
"
    );
    fs::write(&file, text).unwrap();
    file
}

impl Server {
    pub(crate) async fn start(programs: Programs, folder: &Path) -> Self {
        let (etcd, peers, port) = (free_port(), free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{peers}"));
        let mut command = Command::new("etcd");
        command
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=default={peer}"));
        let etcd_process = spawn(command, &folder.join("etcd.log"));
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.join("accounts.key"), key.serialize_pem()).unwrap();
        fs::write(folder.join("accounts.pub"), key.public_key_pem()).unwrap();
        fs::write(folder.join("tokens.csv"), format!("{TOKEN},it,1,\"system:masters\"\n")).unwrap();
        let folder = folder.to_owned();
        let mut server = Self { programs, folder, etcd, port, _etcd: etcd_process, api_server: None };
        until("etcd to listen", async || TcpStream::connect((Ipv4Addr::LOCALHOST, etcd)).await.is_ok()).await;
        server.go_on().await;
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends the API server at once.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut api_server) = self.api_server.take() {
            api_server.kill().await.unwrap();
        }
    }

    /// Starts the API server, and waits until it is ready.
    pub(crate) async fn go_on(&mut self) {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(&self.programs.api_server);
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=192.0.2.1",
                "--endpoint-reconciler-type=none",
            ])
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", file("certificates")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .args(["--authorization-mode=AlwaysAllow", "--service-cluster-ip-range=10.96.0.0/16"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", file("accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
            // So that it takes policies that older servers took.
            .arg("--feature-gates=StrictIPCIDRValidation=false")
            // Nobody makes the ServiceAccounts that pods would have.
            .arg("--disable-admission-plugins=ServiceAccount");
        self.api_server = Some(spawn(command, &self.folder.join("kube-apiserver.log")));
        let access = moat_apiserver::Access::Kubeconfig {
            file: Some(kubeconfig(&self.folder, self.port)),
            context: None,
        };
        let client = access.client().await.unwrap();
        until("the API server to be ready", async || {
            // Also that what it makes itself is there.
            let ready = moat_apiserver::list(&client).await;
            let objects = ready.map(|listing| listing.objects).unwrap_or_default();
            objects.iter().any(|object| object.key() == moat_policies::Key::Namespace("default".into()))
        })
        .await;
    }

    /// Lets etcd forget all revisions before the newest.
    pub(crate) async fn compact(&self) {
        let range = self.post("/v3/kv/range", "{\"key\":\"AA==\"}").await;
        let revision = range.split("\"revision\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let answer = self
            .post("/v3/kv/compaction", &format!("{{\"revision\":\"{revision}\",\"physical\":true}}"))
            .await;
        assert!(answer.contains("200 OK"), "{answer}");
    }

    async fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.etcd)).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn spawn(mut command: Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
    command.spawn().expect("the program starts; is etcd in PATH?")
}

pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited too long for {what}"));
}
