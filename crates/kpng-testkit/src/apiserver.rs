//! A real Kubernetes control plane for tests: etcd and kube-apiserver on loopback.
//!
//! Both listen on 127.0.0.1 of the network namespace of the thread that calls [`ApiServer::start`],
//! on ports of their own, so any number of them run side by side. They end with the value, and also
//! when the test process is killed.

mod binaries;
mod process;
mod rest;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use binaries::{Binaries, binaries, kube_proxy};
use process::{Child, run};
pub use rest::{Response, Rest};

/// How long etcd and kube-apiserver may take to become ready. On two busy cores it is 5 to 20 s.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The Service range of each family.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";

/// Who may do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// Everybody who has a token may do everything.
    #[default]
    AlwaysAllow,
    /// Role based: [`ApiServer::token`] is an administrator's, [`ApiServer::powerless_token`] may
    /// nothing that is not public.
    Rbac,
}

/// What kind of control plane to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who may do what.
    pub authorization: Authorization,
    /// Whether lists can be streamed (the feature gate `WatchList`), as in newer clusters.
    pub streaming_lists: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { authorization: Authorization::default(), streaming_lists: true }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ApiServer {
    binaries: Binaries,
    options: Options,
    dir: TempDir,
    ports: Ports,
    etcd: Option<Child>,
    apiserver: Option<Child>,
    rest: Rest,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    etcd_peer: u16,
    apiserver: u16,
}

impl ApiServer {
    /// Starts a control plane that allows everything. `None`, with the reason printed, when
    /// `KPNG_SKIP_APISERVER=1` and the programs are missing.
    ///
    /// # Panics
    /// When a program is missing or does not become ready.
    pub fn start() -> Option<Self> {
        Self::start_with(Options::default())
    }

    /// The same with a choice.
    ///
    /// # Panics
    /// When a program is missing or does not become ready.
    pub fn start_with(options: Options) -> Option<Self> {
        let binaries = match binaries() {
            Ok(binaries) => binaries,
            Err(reason) if std::env::var_os("KPNG_SKIP_APISERVER").is_some_and(|v| v == "1") => {
                announce(&format!("skipped without kube-apiserver: {reason}"));
                return None;
            }
            Err(reason) => panic!("{reason}\nset KPNG_SKIP_APISERVER=1 to skip these tests"),
        };
        let dir = temporary_directory();
        let ports = Ports::free();
        write_secrets(dir.path());
        let rest = Rest::new(ports.apiserver, &dir.path().join("ca.crt"), ADMIN_TOKEN);
        let mut server = Self { binaries, options, dir, ports, etcd: None, apiserver: None, rest };
        server.write_kubeconfigs();
        server.start_etcd();
        server.start_apiserver();
        Some(server)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.apiserver)
    }

    /// The TCP port of the API server on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.apiserver
    }

    /// A bearer token of the group `system:masters`.
    pub fn token(&self) -> &'static str {
        ADMIN_TOKEN
    }

    /// A bearer token of a user without any rights (with [`Authorization::Rbac`]).
    pub fn powerless_token(&self) -> &'static str {
        POWERLESS_TOKEN
    }

    /// A kubeconfig with [`ApiServer::token`].
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// A kubeconfig with [`ApiServer::powerless_token`].
    pub fn powerless_kubeconfig_path(&self) -> PathBuf {
        self.dir.path().join("powerless.kubeconfig")
    }

    /// The certificate authority that signed the API server's certificate, PEM.
    pub fn ca_path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The administrator's REST client.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// Kills kube-apiserver (not etcd) as a power cut would.
    pub fn stop(&mut self) {
        self.apiserver = None;
    }

    /// Starts kube-apiserver again, after [`ApiServer::stop`] or while it runs, on the same port
    /// and data, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn restart(&mut self) {
        self.stop();
        self.start_apiserver();
    }

    /// Freezes kube-apiserver: its connections stay open and nothing answers.
    pub fn pause(&self) {
        self.apiserver.as_ref().expect("pause() is for a running server").signal("STOP");
    }

    /// Ends what [`ApiServer::pause`] began.
    pub fn resume(&self) {
        self.apiserver.as_ref().expect("resume() is for a paused server").signal("CONT");
    }

    /// The log of kube-apiserver so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("apiserver.log")).unwrap_or_default()
    }

    fn write_kubeconfigs(&self) {
        for (name, token) in [("admin", ADMIN_TOKEN), ("powerless", POWERLESS_TOKEN)] {
            let kubeconfig = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {
                    "server": self.url(), "certificate-authority": self.ca_path(),
                }}],
                "users": [{"name": name, "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                "current-context": "test",
            });
            let path = self.dir.path().join(format!("{name}.kubeconfig"));
            fs::write(path, kubeconfig.to_string()).expect("the temporary directory is writable");
        }
    }

    fn start_etcd(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let arguments = [
            format!("--data-dir={}", self.dir.path().join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--log-level=error".to_owned(),
            // The API server's bookmarks and consistent reads wait for etcd's progress.
            "--experimental-watch-progress-notify-interval=1s".to_owned(),
        ];
        let log = self.dir.path().join("etcd.log");
        let etcd = Child::spawn(&self.binaries.etcd, &arguments, self.dir.path(), &log);
        etcd.wait_for_port(self.ports.etcd, READY_TIMEOUT);
        self.etcd = Some(etcd);
    }

    fn start_apiserver(&mut self) {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let mode = match self.options.authorization {
            Authorization::AlwaysAllow => "AlwaysAllow",
            Authorization::Rbac => "RBAC",
        };
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.ports.apiserver),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            format!("--service-account-key-file={}", file("apiserver.key")),
            format!("--service-account-signing-key-file={}", file("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--authorization-mode={mode}"),
            format!("--feature-gates=WatchList={}", self.options.streaming_lists),
            // A loopback address must not become an endpoint of `kubernetes`.
            "--endpoint-reconciler-type=none".to_owned(),
            "--shutdown-delay-duration=0s".to_owned(),
        ];
        let log = self.dir.path().join("apiserver.log");
        let apiserver =
            Child::spawn(&self.binaries.kube_apiserver, &arguments, self.dir.path(), &log);
        let deadline = Instant::now() + READY_TIMEOUT;
        // The API server creates its own Service some time after it is ready.
        let kubernetes = "/api/v1/namespaces/default/services/kubernetes";
        while !(self.rest.has("/readyz") && self.rest.has(kubernetes)) {
            apiserver.assert_alive();
            assert!(Instant::now() < deadline, "kube-apiserver is not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        self.apiserver = Some(apiserver);
    }
}

/// Objects, each as little as the API server accepts.
impl ApiServer {
    /// Creates a Service in a namespace, which is created too when it is missing.
    pub fn create_service(&self, namespace: &str, name: &str, spec: Value) -> Value {
        self.ensure_namespace(namespace);
        let service = json!({"metadata": {"name": name}, "spec": spec});
        self.rest.create(&format!("/api/v1/namespaces/{namespace}/services"), service)
    }

    /// Sets `status.loadBalancer` of a Service.
    pub fn set_load_balancer(&self, namespace: &str, name: &str, load_balancer: Value) -> Value {
        let path = format!("/api/v1/namespaces/{namespace}/services/{name}/status");
        self.rest.patch(&path, json!({"status": {"loadBalancer": load_balancer}}))
    }

    /// Creates an EndpointSlice of `service`. `body` has `addressType`, `endpoints` and `ports`.
    pub fn create_slice(&self, namespace: &str, name: &str, service: &str, body: Value) -> Value {
        self.ensure_namespace(namespace);
        let mut slice = body;
        let labels = json!({"kubernetes.io/service-name": service});
        slice["metadata"] = json!({"name": name, "labels": labels});
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        self.rest.create(&path, slice)
    }

    /// Creates a Node with labels, `spec` and, through its subresource, `status`.
    pub fn create_node(&self, name: &str, labels: Value, spec: Value, status: Value) -> Value {
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
        self.rest.create("/api/v1/nodes", node);
        self.rest.patch(&format!("/api/v1/nodes/{name}/status"), json!({"status": status}))
    }

    /// Writes an object into etcd, past the API server's validation: as a newer one would, or an older.
    /// `path` is such as `services/specs/NAMESPACE/NAME`.
    ///
    /// # Panics
    /// When etcd does not take it.
    pub fn write_unvalidated(&self, path: &str, object: &Value) {
        let put = json!({
            "key": rest::base64(format!("/registry/{path}").as_bytes()),
            "value": rest::base64(object.to_string().as_bytes()),
        });
        rest::post_plainly(self.ports.etcd, "/v3/kv/put", &put.to_string());
    }

    /// Creates a namespace unless it exists.
    pub fn ensure_namespace(&self, name: &str) {
        let body = json!({"metadata": {"name": name}});
        let response = self.rest.request("POST", "/api/v1/namespaces", Some(&body));
        assert!(matches!(response.status, 201 | 409), "create namespace {name}: {response:?}");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The API server first: without etcd it would fill its log.
        self.apiserver = None;
        self.etcd = None;
    }
}

const ADMIN_TOKEN: &str = "administrator-of-the-test";
const POWERLESS_TOKEN: &str = "nobody-of-the-test";

impl Ports {
    fn free() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("loopback is up in this namespace");
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        // All three are held until the last is known, so they differ.
        let (a, b, c) = (listen(), listen(), listen());
        Self { etcd: port(&a), etcd_peer: port(&b), apiserver: port(&c) }
    }
}

/// Memory where there is some: etcd 3.4 syncs every write to disk.
fn temporary_directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("kpng-apiserver-");
    builder.tempdir_in(memory).or_else(|_| builder.tempdir()).expect("a writable /dev/shm or /tmp")
}

/// A certificate authority, the server's certificate for 127.0.0.1, and the tokens.
fn write_secrets(dir: &Path) {
    let tokens = format!(
        "{ADMIN_TOKEN},admin,admin,\"system:masters\"\n{POWERLESS_TOKEN},nobody,nobody,\"nobodies\"\n"
    );
    fs::write(dir.join("tokens.csv"), tokens).expect("the temporary directory is writable");
    fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:kubernetes\n")
        .expect("the temporary directory is writable");
    let openssl = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        run(Path::new("openssl"), &arguments, dir, &[]).unwrap_or_else(|error| panic!("{error}"));
    };
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=kpng-test-ca",
    );
    openssl(
        "req -newkey rsa:2048 -nodes -keyout apiserver.key -out apiserver.csr -subj /CN=127.0.0.1",
    );
    openssl(
        "x509 -req -in apiserver.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
         -extfile san -out apiserver.crt",
    );
}

/// Tells the person who runs the tests.
#[expect(clippy::print_stderr, reason = "a skipped test must say so where it is seen")]
fn announce(message: &str) {
    eprintln!("{message}");
}
