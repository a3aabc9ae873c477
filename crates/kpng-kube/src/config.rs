//! Where the API server is, who we are there, and what we want from it.
//!
//! The client is made anew from the same configuration whenever credentials were refused or the
//! server stopped answering, so everything on disk may be rotated.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::{BoxError, ServiceBuilder};

use crate::Error;
use crate::selectors::{NodeScope, Selection};

/// What the watcher needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--kubeconfig`. Without it the environment variable `KUBECONFIG`, then the service account
    /// of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// `--server`: replaces the URL of the configuration. Without any configuration it is used
    /// without credentials.
    pub server: Option<String>,
    /// `--service-proxy-name`: only Services with this value of the label
    /// `service.kubernetes.io/service-proxy-name`. Without it only Services without the label.
    pub service_proxy_name: Option<String>,
    /// The labels and annotations to keep.
    pub selection: Selection,
    /// The Nodes to watch.
    pub nodes: NodeScope,
}

/// A connection on which nothing is acknowledged for this long is dead: idle time before the first
/// keep-alive probe plus three probes, and the limit for unacknowledged data.
const DEAD_AFTER: Duration = Duration::from_secs(25);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Config {
    /// Makes a client, and says for which server. Reads every file again.
    pub(crate) async fn client(&self) -> Result<(Client, String), Error> {
        let mut config = self.connection().await?;
        if let Some(server) = &self.server {
            config.cluster_url = server_uri(server)?;
        }
        let server = config.cluster_url.to_string();
        match connect(config) {
            Ok(client) => Ok((client, server)),
            Err(source) => Err(Error::Client { server, source: Box::new(source) }),
        }
    }

    async fn connection(&self) -> Result<kube::Config, Error> {
        if let Some(path) = &self.kubeconfig {
            let error = |source| Error::Kubeconfig { path: path.clone(), source };
            return self
                .kubeconfig(Kubeconfig::read_from(path).map_err(error)?)
                .await
                .map_err(error);
        }
        let error = |source| Error::KubeconfigOfEnvironment { source };
        if let Some(kubeconfig) = Kubeconfig::from_env().map_err(error)? {
            return self.kubeconfig(kubeconfig).await.map_err(error);
        }
        match (kube::Config::incluster(), &self.server) {
            (Ok(config), _) => Ok(config),
            (Err(_), Some(server)) => Ok(kube::Config::new(server_uri(server)?)),
            (Err(source), None) => Err(Error::NotInCluster { source }),
        }
    }

    async fn kubeconfig(&self, kubeconfig: Kubeconfig) -> Result<kube::Config, KubeconfigError> {
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
    }
}

fn server_uri(server: &str) -> Result<Uri, Error> {
    let uri: Option<Uri> = server.parse().ok();
    uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| Error::Server { server: server.to_owned() })
}

/// kube's layers on a connector of our own, which notices dead connections. kube's own stack has no
/// keep-alive and retries by itself, which would hide the server's refusals from our back-off.
fn connect(config: kube::Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        // Says that this build speaks to no proxies.
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(DEAD_AFTER));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// What an operator reads who gives this kubeconfig and this server.
    async fn check(kubeconfig: &str, server: Option<&str>, expected: Expect) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig).unwrap();
        let config = Config {
            kubeconfig: Some(path),
            server: server.map(str::to_owned),
            service_proxy_name: None,
            selection: Selection::default(),
            nodes: NodeScope::All,
        };
        let result = match config.client().await {
            Ok(_) => "a client".to_owned(),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&result.replace(&dir.path().display().to_string(), "DIR"));
    }

    const CLUSTER: &str = "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443'}}]\n";
    const CONTEXT: &str = "contexts: [{name: x, context: {cluster: c, user: u}}]\n";
    const USER: &str = "users: [{name: u, user: {token: t}}]\n";
    const CURRENT: &str = "current-context: x\n";

    #[tokio::test]
    async fn a_good_kubeconfig() {
        let good = [CLUSTER, CONTEXT, USER, CURRENT].concat();
        check(&good, None, expect!["a client"]).await;
        check(&good, Some("http://127.0.0.1:8001"), expect!["a client"]).await;
        check(
            &good,
            Some("127.0.0.1"),
            expect![[r#"the server "127.0.0.1" is no URL like https://HOST:PORT"#]],
        )
        .await;
        check(
            &good,
            Some("ftp://127.0.0.1"),
            expect![[r#"the server "ftp://127.0.0.1" is no URL like https://HOST:PORT"#]],
        )
        .await;
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_said() {
        check("{", None, expect![[r#"
            cannot use the kubeconfig DIR/kubeconfig: failed to parse kubeconfig YAML: error: line 1 column 1: unclosed bracket '{'
             --> <input>:1:1
              |
            1 | {
              | ^ unclosed bracket '{'"#]]).await;
        check(&[CLUSTER, CONTEXT, USER].concat(), None, expect!["cannot use the kubeconfig DIR/kubeconfig: failed to determine current context: set `current-context` in it"]).await;
        check(&[CLUSTER, USER, CURRENT].concat(), None, expect!["cannot use the kubeconfig DIR/kubeconfig: failed to load current context: x (it names a context that it does not define)"]).await;
        check(&[CONTEXT, USER, CURRENT].concat(), None, expect!["cannot use the kubeconfig DIR/kubeconfig: failed to load the cluster of context: c (the context names an undefined cluster)"]).await;
        let no_file = "clusters: [{name: c, cluster: {server: 'https://h', certificate-authority: /no/ca}}]\n";
        check(&[no_file, CONTEXT, USER, CURRENT].concat(), None, expect![[r#"cannot use the kubeconfig DIR/kubeconfig: failed to load certificate authority: failed to read file '"/no/ca"': No such file or directory (os error 2)"#]]).await;
        let no_token = "users: [{name: u, user: {tokenFile: /no/token}}]\n";
        check(&[CLUSTER, CONTEXT, no_token, CURRENT].concat(), None, expect![[r#"cannot make a client for https://127.0.0.1:6443/: auth error: failed to read token file '"/no/token"': No such file or directory (os error 2)"#]]).await;
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_said() {
        let config = Config {
            kubeconfig: Some("/no/such/file".into()),
            server: None,
            service_proxy_name: None,
            selection: Selection::default(),
            nodes: NodeScope::All,
        };
        let error = config.client().await.err().unwrap().to_string();
        expect![[r#"cannot use the kubeconfig /no/such/file: failed to read kubeconfig from '"/no/such/file"': No such file or directory (os error 2)"#]].assert_eq(&error);
    }
}
