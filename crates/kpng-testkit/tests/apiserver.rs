//! The control plane of the test kit starts, keeps its data over a restart, and checks rights.

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
