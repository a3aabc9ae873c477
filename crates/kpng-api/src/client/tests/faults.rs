//! What servers and networks can do to a client.

use std::time::{Duration, SystemTime};

use kpng_core::model::NamespacedName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Status;

use super::script::*;
use crate::address::Target;
use crate::client::limits::Limits;
use crate::client::{Config, Connection};
use crate::error::Error;
use crate::proto::localv1::{Set, WatchReq};
use crate::tls::ServerTls;
use crate::tls::tests::{Authority, Folder};

fn target_of(listener: &TcpListener) -> Target {
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

/// Where nobody listens.
async fn dead() -> Target {
    target_of(&TcpListener::bind("127.0.0.1:0").await.unwrap())
}

/// Gives one state with one Service, called `name`.
fn give_state(stream: &ServerStream<WatchReq>, name: &str) {
    stream.reset();
    stream.set_service(name, "10.0.0.1", &["10.1.0.1"]);
    stream.sync_at(1);
}

#[tokio::test]
async fn of_several_servers_one_that_lives_is_followed() {
    let (mut server, dead) = (Server::start().await, dead().await);
    for _ in 0..4 {
        let following = follow(&[&dead, &server.target, &dead]);
        give_state(&server.stream().await, "default/web");
        following.synced(1).await;
    }
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried() {
    // It has one in each family, and the server listens on that of IPv4 only.
    let mut server = Server::start().await;
    let Target::Tcp { port, .. } = server.target else { unreachable!() };
    let following = follow(&[&Target::Tcp { host: "localhost".into(), port }]);
    give_state(&server.stream().await, "default/web");
    following.synced(1).await;
    assert_eq!(following.stats.failures.get(), 0);
}

#[tokio::test]
async fn when_a_server_ends_the_next_one_is_followed() {
    let (one, two) = (Server::start().await, Server::start().await);
    let following = follow(&[&one.target, &two.target]);
    let (mut one, mut two) = (one, two);
    let (stream, mut other) = tokio::select! {
        stream = one.stream() => (stream, two),
        stream = two.stream() => (stream, one),
    };
    give_state(&stream, "default/web");
    following.synced(1).await;
    drop(stream);
    let mut stream = other.stream().await;
    // It is up to the server to see that this is not its own.
    assert_eq!(stream.request().await.have, Some(position(1)));
    give_state(&stream, "default/other");
    following.synced(2).await;
    assert_eq!(following.state(), "default/other 10.0.0.1: 10.1.0.1:8080\n");
}

#[tokio::test]
async fn a_server_that_accepts_and_is_silent_is_left() {
    // The kernel accepts, nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut server = Server::start().await;
    for tls in [false, true] {
        let authority = Authority::new("ours");
        let folder = Folder::new();
        let mut config = config(&[&target_of(&silent)]);
        if tls {
            config.tls = folder.files(None, Some(&authority));
        }
        // Pings would say it too.
        let limits = Limits { ping: FAST.ping, ..IMPATIENT };
        let connected = Connection::to(&config.targets[0], &config, limits).await;
        let error = match connected {
            Ok(connection) => connection.local(WatchReq::default()).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, Error::ConnectTimeout { .. }), "{error}");
    }
    let following = follow_with(config(&[&target_of(&silent), &server.target]), IMPATIENT);
    give_state(&server.stream().await, "default/web");
    following.synced(1).await;
}

#[tokio::test]
async fn a_server_without_a_state_is_left_for_one_that_has_it() {
    let (mut without, mut with) = (Server::start().await, Server::start().await);
    let following = follow_with(config(&[&without.target, &with.target]), IMPATIENT);
    // It begins at either; what it is told there is not a state.
    let hold = tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let stream = without.stream().await;
            stream.reset();
            streams.push(stream);
        }
    });
    give_state(&with.stream().await, "default/web");
    following.synced(1).await;
    hold.abort();

    let mut alone = Server::start().await;
    let following = follow_with(config(&[&alone.target]), IMPATIENT);
    let stream = alone.stream().await;
    stream.reset();
    tokio::time::sleep(2 * IMPATIENT.first_state).await;
    give_state(&stream, "default/web");
    following.synced(1).await;
    assert_eq!(following.stats.failures.get(), 0, "the only one is waited for");
}

/// Passes bytes on until it is told to stop, without closing anything.
async fn freezable(
    to: Target,
    freeze: watch::Receiver<bool>,
) -> (Target, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target_of(&listener);
    let relay = tokio::spawn(async move {
        let mut frozen = Vec::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to.to_string()).await.unwrap();
            let mut freeze = freeze.clone();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = freeze.wait_for(|frozen| *frozen) => frozen.push((near, far)),
            }
        }
    });
    (target, relay)
}

#[tokio::test]
async fn a_connection_that_is_dead_without_a_word_is_noticed() {
    let mut server = Server::start().await;
    let (freeze, frozen) = watch::channel(false);
    let (relayed, relay) = freezable(server.target.clone(), frozen).await;
    let following = follow_with(config(&[&relayed]), IMPATIENT);
    let stream = server.stream().await;
    give_state(&stream, "default/web");
    following.synced(1).await;
    // Silence alone is no reason: the server answers pings.
    tokio::time::sleep(IMPATIENT.ping.unwrap() + IMPATIENT.pong * 2).await;
    assert!(following.stats.is_connected());

    freeze.send_replace(true);
    until("the loss", || !following.stats.is_connected()).await;
    assert_eq!(following.state(), "default/web 10.0.0.1: 10.1.0.1:8080\n");
    relay.abort();
}

#[tokio::test]
async fn an_old_server_is_not_pinged() {
    let mut server = Server::start().await;
    let (freeze, frozen) = watch::channel(false);
    let (relayed, relay) = freezable(server.target.clone(), frozen).await;
    let following = follow_with(config(&[&relayed]), IMPATIENT);
    let stream = server.second_stream().await;
    stream.reset();
    stream.sync();
    following.synced(2).await;
    // Pings would be noticed by their getting no answer.
    freeze.send_replace(true);
    tokio::time::sleep(IMPATIENT.ping.unwrap() + IMPATIENT.pong * 2).await;
    assert!(following.stats.is_connected());
    relay.abort();
    until("the loss", || !following.stats.is_connected()).await;
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_again() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    for refusal in [
        Status::permission_denied("not you"),
        Status::unauthenticated("who are you"),
        Status::unimplemented("not here"),
        Status::internal("I am not well"),
    ] {
        server.stream().await.fail(refusal);
    }
    give_state(&server.stream().await, "default/web");
    following.synced(1).await;
    assert_eq!(following.stats.failures.get(), 4);
}

#[tokio::test]
async fn the_servers_own_words_are_in_the_error() {
    let mut server = Server::start().await;
    let connection = Connection::connect(&config(&[&server.target])).await.unwrap();
    assert_eq!(connection.target(), &server.target);
    let mut stream = connection.local(WatchReq::default()).await.unwrap();
    server.stream().await.fail(Status::permission_denied("not you"));
    let error = stream.next().await.unwrap_err().to_string();
    assert_eq!(error, format!("the stream from {} failed: not you", server.target));

    let dead = dead().await;
    let error = Connection::connect(&config(&[&dead])).await.unwrap_err().to_string();
    let refused = "Connection refused (os error 111)";
    assert_eq!(error, format!("cannot connect to {dead}: {refused}"));
    assert!(matches!(Connection::connect(&config(&[])).await, Err(Error::NoTarget)));
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let mut server = Server::start().await;
    let limits = Limits { message: 10_000, answer: 50_000, ..FAST };
    let following = follow_with(config(&[&server.target]), limits);
    let stream = server.stream().await;
    stream.set_bytes(Set::ServicesSet, "default/web", vec![0; 20_000]);

    let stream = server.stream().await;
    for n in 0..10 {
        stream.set_bytes(Set::ServicesSet, &format!("default/web-{n}"), vec![0; 9_000]);
    }

    let stream = server.stream().await;
    // One value again and again takes no more memory than once.
    for _ in 0..20 {
        stream.set_bytes(Set::ServicesSet, "default/web", vec![0; 9_000]);
    }
    give_state(&stream, "default/web");
    following.synced(1).await;
    assert_eq!(following.stats.failures.get(), 2);
}

#[tokio::test]
async fn garbage_is_left_out() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let stream = server.stream().await;
    give_state(&stream, "default/web");
    following.synced(1).await;

    let send_garbage = || {
        stream.set_bytes(Set::ServicesSet, "default/garbage", vec![0xff; 9]);
        stream.set(Set::ServicesSet, "default/liar", &service("default/web", "10.0.0.9"));
        stream.set(Set::ServicesSet, "no-path", &service("default/web", "10.0.0.9"));
        stream.set_bytes(Set::EndpointsSet, "default/web/garbage", vec![0xff; 9]);
        stream.set(Set::EndpointsSet, "default/orphan/pod", &endpoint(&["10.1.0.9"]));
        stream.set_bytes(Set::LocalNodesSet, "node-a", vec![0xff; 9]);
        stream.set_bytes(Set::UnknownSet, "anything", vec![0xff; 9]);
        stream.set_bytes(Set::GlobalNodeInfos, "|node-a||", vec![0xff; 9]);
        stream.delete(Set::EndpointsSet, "no-path");
    };
    send_garbage();
    stream.set_service("default/good", "10.0.0.2", &[]);
    stream.sync_at(2);
    following.synced(2).await;
    let good = "default/good 10.0.0.2:\ndefault/web 10.0.0.1: 10.1.0.1:8080\n";
    assert_eq!(following.state(), good);
    assert_eq!(following.stats.rejected.get(), 5);

    // The same again counts no more.
    send_garbage();
    stream.sync_at(3);
    following.synced(3).await;
    assert_eq!(following.stats.rejected.get(), 5);

    // A Service that makes no sense any more stays as it was, but its endpoints are those of now.
    stream.set_bytes(Set::ServicesSet, "default/web", vec![0xff; 9]);
    stream.set(Set::EndpointsSet, "default/web/pod", &endpoint(&["10.1.0.2"]));
    stream.sync_at(4);
    following.synced(4).await;
    assert_eq!(following.stats.rejected.get(), 6);
    let web = following.store.service(&NamespacedName::new("default", "web")).unwrap();
    assert_eq!(web.endpoints.len(), 2);
    stream.delete(Set::ServicesSet, "default/web");
    stream.sync_at(5);
    following.synced(5).await;
    assert_eq!(following.state(), "default/good 10.0.0.2:\n");
}

fn tls_config(target: &Target, folder: &Folder) -> Config {
    let tls = folder.files(None, None);
    Config { targets: vec![target.clone()], tls, server_name: None }
}

#[tokio::test]
async fn a_renewed_client_certificate_is_used_without_a_restart() {
    let authority = Authority::new("ours");
    let (of_server, of_client) = (Folder::new(), Folder::new());
    let files = of_server.files(Some(&authority.issue_valid("server")), Some(&authority));
    let tls = ServerTls::load(&files).unwrap();
    let mut server = Server::start_at("127.0.0.1:0", Some(tls)).await;

    let expired = authority.issue("node-a", SystemTime::now() - Duration::from_secs(60));
    let mut config = tls_config(&server.target, &of_client);
    config.tls = of_client.files(Some(&expired), Some(&authority));
    let following = follow_with(config, FAST);
    until("failures", || following.stats.failures.get() >= 2).await;
    assert_eq!(following.stats.connects.get(), 0);

    of_client.files(Some(&authority.issue_valid("node-a")), Some(&authority));
    give_state(&server.stream().await, "default/web");
    following.synced(1).await;
}

#[tokio::test]
async fn a_server_is_known_by_its_ca_and_its_name() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (of_server, of_client) = (Folder::new(), Folder::new());
    let files = of_server.files(Some(&ours.issue_valid("server")), None);
    let tls = ServerTls::load(&files).unwrap();
    let server = Server::start_at("127.0.0.1:0", Some(tls)).await;

    let mut shown = String::new();
    for (ca, name) in [
        (&ours, None),
        (&ours, Some("server")),
        (&ours, Some("someone-else")),
        (&ours, Some("no name")),
        (&theirs, None),
    ] {
        let mut config = tls_config(&server.target, &of_client);
        config.tls = of_client.files(None, Some(ca));
        config.server_name = name.map(str::to_owned);
        let outcome = match Connection::connect(&config).await {
            Ok(_) => "connected".to_owned(),
            Err(error) => error.to_string().replace(&server.target.to_string(), "SERVER"),
        };
        shown += &format!("{name:?}: {outcome}\n");
    }
    expect_test::expect![[r#"
        None: connected
        Some("server"): connected
        Some("someone-else"): cannot connect to SERVER: invalid peer certificate: certificate not valid for name "someone-else"; certificate is only valid for DnsName("server"), DnsName("localhost") or IpAddress(127.0.0.1)
        Some("no name"): "no name" is no name that a server's certificate can have: give a DNS name or an IP
        None: cannot connect to SERVER: invalid peer certificate: UnknownIssuer
    "#]].assert_eq(&shown);
}

#[tokio::test]
async fn a_configuration_that_can_never_work_is_an_error() {
    use std::sync::Arc;

    use crate::client::{Stats, follow_global, follow_local};
    let folder = Folder::new();
    let target = dead().await;
    let mut config = tls_config(&target, &folder);
    config.tls.ca = Some("/nonexistent/ca.pem".into());
    let (writer, _store) = kpng_core::store::Store::local();
    let stats = Arc::new(Stats::default());
    let forever = std::future::pending();
    let result = follow_local(config, "node-a".into(), writer, Arc::clone(&stats), forever).await;
    assert!(matches!(result, Err(Error::TlsRead { .. })), "{result:?}");

    let (writer, store) = kpng_core::store::Store::new();
    let none = super::script::config(&[]);
    let result = follow_global(none, writer, Arc::clone(&stats), std::future::pending()).await;
    assert!(matches!(result, Err(Error::NoTarget)), "{result:?}");
    assert!(store.is_closed());

    // Otherwise it goes on until it is told to end.
    let (writer, store) = kpng_core::store::Store::new();
    let shutdown = tokio::time::sleep(Duration::from_millis(20));
    let config = super::script::config(&[&target]);
    follow_global(config, writer, stats, shutdown).await.unwrap();
    assert!(store.is_closed());
}
