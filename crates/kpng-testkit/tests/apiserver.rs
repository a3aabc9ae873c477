//! The control plane of the test kit starts, keeps its data over a restart, and checks rights.

use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_testkit::apiserver::{ApiServer, Authorization, Options, Rest};
use serde_json::json;

#[test]
fn objects_survive_a_restart() {
    let Some(mut server) = ApiServer::start() else { return };
    let spec = json!({"ports": [{"port": 80}]});
    let created = server.create_service("shop", "web", spec);
    assert!(created["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."), "{created}");
    server.restart();
    let found = server.rest().get("/api/v1/namespaces/shop/services/web");
    assert_eq!(found["metadata"]["uid"], created["metadata"]["uid"]);
}

#[test]
fn a_powerless_user_may_not_list_services() {
    let rbac = Options { authorization: Authorization::Rbac, ..Options::default() };
    let Some(server) = ApiServer::start_with(rbac) else { return };
    let nobody = Rest::new(server.port(), &server.ca_path(), server.powerless_token());
    assert_eq!(nobody.request("GET", "/api/v1/services", None).status, 403);
    assert_eq!(server.rest().request("GET", "/api/v1/services", None).status, 200);
}

#[test]
fn it_lives_in_the_network_namespace_of_its_thread() {
    let namespace = match NetNs::new() {
        Ok(namespace) => namespace,
        Err(error) => {
            let skip = std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1");
            assert!(skip, "{error}, or set KPNG_SKIP_NET=1 to skip this test");
            return;
        }
    };
    let start = || {
        let mut kernel = Rtnetlink::open().unwrap();
        let loopback = kernel.link("lo").unwrap().index;
        kernel.set_up(loopback).unwrap();
        let server = ApiServer::start()?;
        assert_eq!(server.rest().request("GET", "/api/v1/nodes", None).status, 200);
        Some(server)
    };
    let Some(server) = namespace.run(start).unwrap() else { return };
    let outside = Rest::new(server.port(), &server.ca_path(), server.token());
    assert!(!outside.has("/readyz"), "it must not be reachable from outside");
}
