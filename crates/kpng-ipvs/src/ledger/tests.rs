use super::*;

const LIMIT: Duration = Duration::from_secs(900);

fn ledger() -> Ledger {
    Ledger::new(Rules { weight: 2, graceful_timeout: LIMIT })
}

fn key(protocol: Protocol) -> ServiceKey {
    let address = [10, 96, 0, 10].into();
    ServiceKey::Address { address, protocol: protocol.number(), port: 80 }
}

fn target(number: u8) -> Target {
    Target { address: [10, 0, 0, number].into(), port: 8080 }
}

fn wanted(targets: &[u8]) -> Virtual {
    let targets = targets.iter().map(|number| target(*number)).collect();
    Virtual { scheduler: "rr".to_owned(), persistence: None, targets }
}

/// Destinations as the kernel shows them: number, weight, connections.
fn found(destinations: &[(u8, u32, u32)]) -> Vec<FoundDestination> {
    let found = |&(number, weight, connections): &(u8, u32, u32)| FoundDestination {
        destination: destination(&target(number), weight),
        is_translated: true,
        connections,
    };
    destinations.iter().map(found).collect()
}

/// What has to be done, in the words of ipvsadm.
fn set(ledger: &mut Ledger, key: ServiceKey, targets: Option<&[u8]>, now: Instant) -> Vec<String> {
    let mut commands = Commands::default();
    ledger.set(key, targets.map(wanted).as_ref(), now, &mut commands);
    text(&commands)
}

fn text(commands: &Commands) -> Vec<String> {
    let all = commands.grow.iter().chain(&commands.shrink);
    all.map(|command| command.to_string().replace("10.96.0.10:80 ", "").replace("10.0.0.", ""))
        .collect()
}

fn drained(
    ledger: &mut Ledger,
    key: ServiceKey,
    destinations: &[(u8, u32, u32)],
    now: Instant,
) -> Vec<String> {
    let mut commands = Commands::default();
    ledger.drained(key, &found(destinations), now, &mut commands);
    text(&commands)
}

#[test]
fn an_endpoint_that_goes_keeps_its_connections_up_to_a_limit() {
    let (mut ledger, key, start) = (ledger(), key(Protocol::Tcp), Instant::now());
    assert_eq!(
        set(&mut ledger, key, Some(&[1, 2, 3]), start),
        [
            "-A -t -s rr -b flag-3",
            "-a -t -r 1:8080 -m -w 2",
            "-a -t -r 2:8080 -m -w 2",
            "-a -t -r 3:8080 -m -w 2"
        ]
    );
    assert_eq!(set(&mut ledger, key, Some(&[1, 2, 3]), start), [""; 0]);
    assert_eq!(ledger.draining(10), []);
    assert_eq!(
        set(&mut ledger, key, Some(&[1]), start),
        ["-e -t -r 2:8080 -m -w 0", "-e -t -r 3:8080 -m -w 0"]
    );
    assert_eq!(ledger.draining(10), [key]);
    let kernel = found(&[(1, 2, 5), (2, 0, 1), (3, 0, 0)]);
    assert!(ledger.has_exactly(key, &kernel));
    assert_eq!(
        drained(&mut ledger, key, &[(1, 2, 5), (2, 0, 1), (3, 0, 0)], start),
        ["-d -t -r 3:8080"]
    );
    assert_eq!(drained(&mut ledger, key, &[(1, 2, 5), (2, 0, 1)], start), [""; 0]);
    let late = start + LIMIT;
    assert_eq!(drained(&mut ledger, key, &[(1, 2, 5), (2, 0, 1)], late), ["-d -t -r 2:8080"]);
    assert_eq!(ledger.draining(10), []);
}

#[test]
fn an_endpoint_that_comes_back_is_used_again() {
    let (mut ledger, key, now) = (ledger(), key(Protocol::Tcp), Instant::now());
    set(&mut ledger, key, Some(&[1, 2]), now);
    set(&mut ledger, key, Some(&[1]), now);
    assert_eq!(set(&mut ledger, key, Some(&[1, 2]), now), ["-e -t -r 2:8080 -m -w 2"]);
    assert_eq!(ledger.draining(10), []);
}

#[test]
fn a_service_that_goes_waits_for_all_its_endpoints() {
    let (mut ledger, key, now) = (ledger(), key(Protocol::Sctp), Instant::now());
    set(&mut ledger, key, Some(&[1]), now);
    assert_eq!(set(&mut ledger, key, None, now), ["-e --sctp-service -r 1:8080 -m -w 0"]);
    assert!(ledger.is_at([10, 96, 0, 10].into()));
    assert_eq!(set(&mut ledger, key, None, now), [""; 0]);
    assert_eq!(drained(&mut ledger, key, &[(1, 0, 1)], now), [""; 0]);
    let commands = drained(&mut ledger, key, &[(1, 0, 0)], now);
    assert_eq!(commands, ["-d --sctp-service -r 1:8080", "-D --sctp-service 10.96.0.10:80"]);
    assert!(!ledger.is_at([10, 96, 0, 10].into()));
}

#[test]
fn udp_waits_for_nothing() {
    let (mut ledger, key, now) = (ledger(), key(Protocol::Udp), Instant::now());
    set(&mut ledger, key, Some(&[1, 2]), now);
    assert_eq!(set(&mut ledger, key, Some(&[2]), now), ["-d -u -r 1:8080"]);
    assert_eq!(set(&mut ledger, key, None, now), ["-D -u 10.96.0.10:80"]);
}

#[test]
fn what_the_kernel_has_is_taken_over_and_goes_on_waiting() {
    let (key, start) = (key(Protocol::Tcp), Instant::now());
    let kernel = [(1, 2, 0), (2, 0, 7), (4, 1, 0)];
    let service = service(key, &wanted(&[]));
    let mut before = ledger();
    let mut commands = Commands::default();
    before.adopt(service.clone(), &found(&kernel), None, start, &mut commands);
    let later = start + Duration::from_secs(600);
    let mut ledger = ledger();
    ledger.adopt(service.clone(), &found(&kernel), Some(&before), later, &mut commands);
    assert_eq!(commands, Commands::default());
    assert_eq!(ledger.unwanted(), [key]);
    assert_eq!(
        set(&mut ledger, key, Some(&[1, 3]), later),
        ["-a -t -r 3:8080 -m -w 2", "-e -t -r 4:8080 -m -w 0"]
    );
    assert!(ledger.agrees_with(std::slice::from_ref(&service)));
    assert!(!ledger.agrees_with(&[]));
    assert!(!ledger.agrees_with(&[Service { scheduler: "sh".to_owned(), ..service }]));
    let kernel = [(1, 2, 0), (2, 0, 7), (3, 2, 0), (4, 0, 7)];
    let late = start + LIMIT;
    assert_eq!(drained(&mut ledger, key, &kernel, late), ["-d -t -r 2:8080"], "it waited before");
}

#[test]
fn what_is_somebody_elses_is_left_alone() {
    let (mut ledger, key, now) = (ledger(), key(Protocol::Tcp), Instant::now());
    ledger.leave(key);
    assert_eq!(set(&mut ledger, key, Some(&[1]), now), [""; 0]);
    assert_eq!(set(&mut ledger, key, None, now), [""; 0]);
}

#[test]
fn checking_goes_in_rounds() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let keys: Vec<_> = (1..=5)
        .map(|mark| ServiceKey::Mark { family: kpng_linux::rtnetlink::Family::V4, mark })
        .collect();
    for key in &keys {
        set(&mut ledger, *key, Some(&[1]), now);
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(ledger.next_to_check(3));
    }
    assert_eq!(seen, [&keys[..], &keys[..], &keys[..]].concat());
    assert_eq!(ledger.next_to_check(100).len(), 5);
}
