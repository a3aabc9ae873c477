//! How fast lists of the API server become a store, how much memory that takes, and what one change
//! costs afterwards.
//!
//! Numbers are compared with the smallest size of the same run: time per object and per change
//! should not depend on the size.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kpng_core::store::{Batch, Kind, Store, Writer};
use kpng_kube::{Converter, Encoding, Selection};

/// Objects per page, as the watcher asks for.
const PAGE: usize = 500;
/// Single changes that are timed at each size.
const CHANGES: usize = 2000;

/// Lists `n` Services with one slice of two endpoints each, for every `n` of `sizes`, and prints a
/// table.
///
/// Memory is the growth of the resident set since the beginning. Give sizes in ascending order: the
/// allocator reuses what a smaller size has freed.
///
/// # Errors
/// When the generated objects do not arrive in the store, or `/proc` is not mounted.
pub(crate) fn run(sizes: &[usize]) -> Result<()> {
    let start = resident_bytes()?;
    print(&format!(
        "{:>8} {:>9} {:>10} {:>10} {:>9} {:>7} {:>10} {:>9} {:>11} {:>7}",
        "services",
        "wire MiB",
        "decode ms",
        "apply ms",
        "ns/object",
        "ratio",
        "memory MiB",
        "B/service",
        "ns/change",
        "ratio",
    ));
    let mut smallest: Option<(f64, f64)> = None;
    for &size in sizes {
        let result = measure(size)?;
        let memory = result.resident.saturating_sub(start);
        let per_object = nanoseconds(result.decode + result.apply) / (2 * size) as f64;
        let per_change = nanoseconds(result.changes) / CHANGES as f64;
        let (object_base, change_base) = *smallest.get_or_insert((per_object, per_change));
        print(&format!(
            "{size:>8} {:>9.1} {:>10.1} {:>10.1} {per_object:>9.0} {:>7.2} {:>10.1} {:>9} {per_change:>11.0} {:>7.2}",
            mebibytes(result.wire),
            nanoseconds(result.decode) / 1e6,
            nanoseconds(result.apply) / 1e6,
            per_object / object_base,
            mebibytes(memory),
            memory / size.max(1),
            per_change / change_base,
        ));
    }
    Ok(())
}

struct Measured {
    wire: usize,
    decode: Duration,
    apply: Duration,
    resident: usize,
    changes: Duration,
}

fn measure(size: usize) -> Result<Measured> {
    let (mut writer, store) = Store::new();
    let mut converter = Converter::new(Selection::default());
    let mut measured = Measured {
        wire: 0,
        decode: Duration::ZERO,
        apply: Duration::ZERO,
        resident: 0,
        changes: Duration::ZERO,
    };
    for kind in [Kind::Services, Kind::EndpointSlices] {
        for from in (0..size).step_by(PAGE) {
            let body = page(kind, from..size.min(from + PAGE));
            measured.wire += body.len();
            let (decode, apply) = take(&mut converter, &mut writer, kind, &body)?;
            measured.decode += decode;
            measured.apply += apply;
        }
    }
    let mut synced = Batch::new();
    Kind::ALL.into_iter().for_each(|kind| synced.mark_synced(kind));
    writer.apply(synced);
    ensure!(store.len().0 == size, "{} of {size} Services arrived", store.len().0);
    measured.resident = resident_bytes()?;
    for change in 0..CHANGES {
        // Spread over all Services, each time another address.
        let at = change * 7919 % size;
        let body = list([slice(at, u8::try_from(change % 200)? + 50)]);
        let (decode, apply) = take(&mut converter, &mut writer, Kind::EndpointSlices, &body)?;
        measured.changes += decode + apply;
    }
    Ok(measured)
}

/// Decodes and applies one page, as the watcher does.
fn take(
    converter: &mut Converter,
    writer: &mut Writer,
    kind: Kind,
    body: &Bytes,
) -> Result<(Duration, Duration)> {
    let started = Instant::now();
    let mut batch = Batch::new();
    let page = converter.page(kind, Encoding::Protobuf, body, &mut batch)?;
    let decode = started.elapsed();
    ensure!(page.complaints.is_empty(), "a generated object is bad: {:?}", page.complaints);
    let started = Instant::now();
    writer.apply(batch);
    Ok((decode, started.elapsed()))
}

/// The resident set of this process.
fn resident_bytes() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("find VmRSS in /proc/self/status")?.trim().parse::<usize>()? * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "a number to read")]
fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn print(line: &str) {
    println!("{line}");
}

/// A protobuf message in the making. Field numbers are those of Kubernetes' `generated.proto` files.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
        self
    }

    fn number(self, field: u64, value: u64) -> Self {
        self.varint(field << 3).varint(value)
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut message = self.varint(field << 3 | 2).varint(value.len() as u64);
        message.0.extend_from_slice(value);
        message
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn entry(self, field: u64, key: &str, value: &str) -> Self {
        self.message(field, Self::default().text(1, key).text(2, value))
    }
}

fn page(kind: Kind, numbers: std::ops::Range<usize>) -> Bytes {
    match kind {
        Kind::Services => list(numbers.map(service)),
        _ => list(numbers.map(|n| slice(n, 1))),
    }
}

/// `"k8s\0" Unknown { raw: List { metadata, items } }`.
fn list(items: impl IntoIterator<Item = Message>) -> Bytes {
    let mut list = Message::default().message(1, Message::default().text(2, "123456"));
    for item in items {
        list = list.message(2, item);
    }
    let envelope = Message(b"k8s\0".to_vec());
    envelope.message(2, list).0.into()
}

fn metadata(name: &str, namespace: &str, owner: &str, manager: &str, fields: &str) -> Message {
    let time = || Message::default().number(1, 1_795_594_620).number(2, 0);
    let managed = Message::default()
        .text(1, manager)
        .text(2, "Update")
        .text(3, "v1")
        .message(4, time())
        .text(6, "FieldsV1")
        .message(7, Message::default().text(1, fields));
    Message::default()
        .text(1, name)
        .text(2, "")
        .text(3, namespace)
        .text(5, "6f1c2b1e-52f4-4b8e-9b39-1f0b3f0f6a11")
        .text(6, "123456")
        .number(7, 1)
        .message(8, time())
        .entry(11, "kubernetes.io/service-name", owner)
        .entry(11, "endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io")
        .entry(11, "app.kubernetes.io/name", owner)
        .entry(12, "meta.helm.sh/release-name", owner)
        .message(17, managed)
}

fn names(n: usize) -> (String, String) {
    (format!("service-{n}"), format!("namespace-{}", n / 100))
}

fn service(n: usize) -> Message {
    let fields = r#"{"f:metadata":{"f:annotations":{".":{},"f:meta.helm.sh/release-name":{}},"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}"#;
    let (name, namespace) = names(n);
    let target = Message::default().number(1, 0).number(2, 8080).text(3, "");
    let port = Message::default()
        .text(1, "http")
        .text(2, "TCP")
        .number(3, 80)
        .message(4, target)
        .number(5, 0);
    let ip = format!("10.{}.{}.{}", 96 + n / 65536, n / 256 % 256, n % 256);
    let spec = Message::default()
        .message(1, port)
        .entry(2, "app.kubernetes.io/name", &name)
        .text(3, &ip)
        .text(4, "ClusterIP")
        .text(7, "None")
        .text(17, "SingleStack")
        .text(18, &ip)
        .text(19, "IPv4")
        .text(22, "Cluster");
    Message::default()
        .message(1, metadata(&name, &namespace, &name, "helm", fields))
        .message(2, spec)
        .message(3, Message::default().message(1, Message::default()))
}

/// A slice with two endpoints; `last` is the last byte of one's address.
fn slice(n: usize, last: u8) -> Message {
    let fields = r#"{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},"f:labels":{".":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"6f1c2b1e\"}":{}}},"f:ports":{}}"#;
    let (owner, namespace) = names(n);
    let name = format!("{owner}-x7k2p");
    let endpoint = |last: u8| {
        let pod = format!("{owner}-7d4b9c6f5-{last}");
        let target = Message::default()
            .text(1, "Pod")
            .text(2, &namespace)
            .text(3, &pod)
            .text(4, "0b5e7f64-8f0e-4e0e-a1c9-7b3f2f1f9f11");
        let conditions = Message::default().number(1, 1).number(2, 1).number(3, 0);
        Message::default()
            .text(1, &format!("10.{}.{}.{last}", 128 + n / 256 % 64, n % 256))
            .message(2, conditions)
            .message(4, target)
            .text(6, &format!("node-{}", n % 500))
            .text(7, "zone-a")
    };
    let port = Message::default().text(1, "http").text(2, "TCP").number(3, 8080);
    Message::default()
        .message(1, metadata(&name, &namespace, &owner, "kube-controller-manager", fields))
        .message(2, endpoint(last))
        .message(2, endpoint(2))
        .message(3, port)
        .text(4, "IPv4")
}
