use std::net::TcpListener;

use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Rtnetlink;

use crate::namespace;

fn link_names() -> Vec<String> {
    Rtnetlink::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect()
}

#[test]
fn a_namespace_is_separate_and_persists_between_runs() {
    let Some(first) = namespace() else { return };
    let second = NetNs::new().unwrap();
    let add = |name: &str| Rtnetlink::open().unwrap().add_bridge(name).unwrap();
    first.run(|| add("one")).unwrap();
    second.run(|| add("two")).unwrap();
    assert_eq!(first.run(link_names).unwrap(), ["lo", "one"]);
    assert_eq!(second.try_clone().unwrap().run(link_names).unwrap(), ["lo", "two"]);
    let here = link_names();
    assert!(!here.contains(&"one".to_owned()) && !here.contains(&"two".to_owned()), "{here:?}");
}

#[test]
fn a_socket_stays_where_it_was_opened() {
    let Some(namespace) = namespace() else { return };
    let mut inside = namespace.run(|| Rtnetlink::open().unwrap()).unwrap();
    inside.add_bridge("mine").unwrap();
    assert_eq!(namespace.run(link_names).unwrap(), ["lo", "mine"]);
    let listener = namespace.run(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
    let other = NetNs::new().unwrap();
    let port = listener.local_addr().unwrap().port();
    // The same port is free elsewhere.
    other.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
}

#[test]
fn a_panic_inside_continues_outside() {
    let Some(namespace) = namespace() else { return };
    let panic = std::panic::catch_unwind(|| namespace.run(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
}
