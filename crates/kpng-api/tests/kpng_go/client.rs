//! A client that knows KPNG's schema and nothing else, and speaks as KPNG's do: it asks, and reads
//! until Sync. It insists that the server never sends a field or a value which that schema lacks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, ReflectMessage as _, Value};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::{Request, Status};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is not there after this is not on its way.
const MOMENT: Duration = Duration::from_millis(200);

/// One stream of either API.
pub(crate) struct Client {
    schema: DescriptorPool,
    requests: mpsc::UnboundedSender<Bytes>,
    answers: Streaming<Bytes>,
    hashes: Hashes,
}

/// An operation on the sets.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Reset,
    Set { set: String, path: String, bytes: Bytes, value: DynamicMessage },
    Delete { set: String, path: String },
}

impl Client {
    /// A stream of `localv1.Sets`.
    pub(crate) async fn local(server: &str) -> Self {
        Self::open(server, "/localv1.Sets/Watch").await
    }

    /// A stream of `globalv1.Sets`.
    pub(crate) async fn global(server: &str) -> Self {
        Self::open(server, "/globalv1.Sets/Watch").await
    }

    async fn open(server: &str, method: &'static str) -> Self {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{server}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let (requests, receiver) = mpsc::unbounded_channel();
        let requests_stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        let method = http::uri::PathAndQuery::from_static(method);
        let answers = grpc.streaming(Request::new(requests_stream), method, Raw).await.unwrap();
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kpng_go/schema");
        let files = protox::compile(["globalv1/api.proto"], [schema]).unwrap();
        let schema = DescriptorPool::from_file_descriptor_set(files).unwrap();
        Self { schema, requests, answers: answers.into_inner(), hashes: Hashes::default() }
    }

    /// Asks for the view of `node`.
    pub(crate) fn ask_local(&self, node: &str) {
        let mut request = self.message("localv1.WatchReq");
        request.set_field_by_name("NodeName", Value::String(node.to_owned()));
        self.requests.send(request.encode_to_vec().into()).unwrap();
    }

    /// Asks for everything.
    pub(crate) fn ask_global(&self) {
        self.requests.send(Bytes::new()).unwrap();
    }

    /// The operations before Sync.
    pub(crate) async fn answer(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        loop {
            let item = timeout(PATIENCE, self.answers.message()).await.expect("an answer comes");
            match self.op(&item.unwrap().expect("the stream goes on")) {
                Some(op) => ops.push(op),
                None => return ops,
            }
        }
    }

    /// Nothing is sent.
    pub(crate) async fn hears_nothing(&mut self) {
        let item = timeout(MOMENT, self.answers.message()).await;
        assert!(item.is_err(), "nobody asked for {item:?}");
    }

    /// The stream has ended in order.
    pub(crate) async fn hears_the_end(&mut self) {
        let item = timeout(PATIENCE, self.answers.message()).await.expect("the stream ends");
        assert!(matches!(item, Ok(None)), "{item:?}");
    }

    /// Reads an OpItem; `None` for Sync.
    fn op(&self, bytes: &Bytes) -> Option<Op> {
        match bytes[..] {
            [0x0a, 0x00] => return None,
            [0x22, 0x00] => return Some(Op::Reset),
            _ => {}
        }
        let item = self.decode("localv1.OpItem", bytes);
        if let Some(Value::Message(delete)) = is_set(&item, "Delete") {
            let (set, path) = set_and_path(&delete);
            return Some(Op::Delete { set, path });
        }
        let Some(Value::Message(value)) = is_set(&item, "Set") else {
            panic!("KPNG does not send {}", text(&item));
        };
        let Some(Value::Message(reference)) = is_set(&value, "Ref") else { panic!("no Ref") };
        let (set, path) = set_and_path(&reference);
        let Some(Value::Bytes(bytes)) = is_set(&value, "Bytes") else { panic!("{path} is empty") };
        let value = self.decode(message_of(&set), &bytes);
        Some(Op::Set { set, path, bytes, value })
    }

    fn message(&self, name: &str) -> DynamicMessage {
        DynamicMessage::new(self.schema.get_message_by_name(name).expect("the schema has it"))
    }

    fn decode(&self, name: &str, bytes: &[u8]) -> DynamicMessage {
        let mut message = self.message(name);
        message.merge(bytes).unwrap();
        assert_known(&message);
        message
    }

    /// Shows an answer, a line for each operation. Hashes are opaque: they become `#1`, `#2` and so on.
    pub(crate) fn show(&mut self, ops: &[Op]) -> String {
        let mut shown = String::new();
        for op in ops {
            shown += &match op {
                Op::Reset => "reset\n".to_owned(),
                Op::Delete { set, path } => format!("- {set} {}\n", self.hashes.name(path)),
                Op::Set { set, path, value, .. } => {
                    let path = self.hashes.name(path);
                    format!("+ {set} {path} {}\n", self.hashes.hide(&text(value)))
                }
            };
        }
        shown + "sync\n"
    }
}

fn message_of(set: &str) -> &'static str {
    match set {
        "ServicesSet" => "localv1.Service",
        "EndpointsSet" => "localv1.Endpoint",
        "GlobalServiceInfos" => "globalv1.ServiceInfo",
        "GlobalEndpointInfos" => "globalv1.EndpointInfo",
        "GlobalNodeInfos" => "globalv1.NodeInfo",
        _ => panic!("KPNG has no values in {set}"),
    }
}

fn is_set(message: &DynamicMessage, field: &str) -> Option<Value> {
    message
        .has_field_by_name(field)
        .then(|| message.get_field_by_name(field))?
        .map(|v| v.into_owned())
}

fn set_and_path(reference: &DynamicMessage) -> (String, String) {
    let field = |name| reference.get_field_by_name(name).expect("a Ref has it").into_owned();
    let descriptor = reference.descriptor().get_field_by_name("Set").map(|field| field.kind());
    let (Some(Kind::Enum(sets)), Value::EnumNumber(set), Value::String(path)) =
        (descriptor, field("Set"), field("Path"))
    else {
        panic!("this is no Ref: {}", text(reference))
    };
    (sets.get_value(set).expect("asserted").name().to_owned(), path)
}

/// Neither the message nor one in it has a field or a value that KPNG does not know.
fn assert_known(message: &DynamicMessage) {
    let name = message.descriptor().full_name().to_owned();
    assert_eq!(message.unknown_fields().count(), 0, "unknown fields in {name} {}", text(message));
    for (field, value) in message.fields() {
        assert_known_value(&field.kind(), value);
    }
}

fn assert_known_value(kind: &Kind, value: &Value) {
    match (value, kind) {
        (Value::Message(message), _) => assert_known(message),
        (Value::List(values), _) => values.iter().for_each(|one| assert_known_value(kind, one)),
        (Value::EnumNumber(number), Kind::Enum(kind)) => {
            assert!(kind.get_value(*number).is_some(), "unknown {} {number}", kind.name());
        }
        // All maps are of strings.
        _ => {}
    }
}

/// A message in one line.
pub(crate) fn text(message: &DynamicMessage) -> String {
    serde_json::to_string(message).unwrap().replace('"', "")
}

/// Names for hashes, in the order in which they appear.
#[derive(Default)]
struct Hashes(BTreeMap<String, usize>);

impl Hashes {
    /// The path with its hash replaced, if it ends with one.
    fn name(&mut self, path: &str) -> String {
        let (before, last) = path.rsplit_once(['/', '|']).expect("paths have parts");
        if last.len() < 8 || u64::from_str_radix(last, 16).is_err() {
            return path.to_owned();
        }
        assert_eq!(last.to_lowercase().trim_start_matches('0'), last, "as KPNG writes them");
        let separator = &path[before.len()..=before.len()];
        format!("{before}{separator}{}", self.number(last))
    }

    fn number(&mut self, hash: &str) -> String {
        let next = self.0.len() + 1;
        format!("#{}", self.0.entry(hash.to_owned()).or_insert(next))
    }

    /// The text of a message with its hash replaced, if it has one.
    fn hide(&mut self, text: &str) -> String {
        let Some((hash, rest)) = text.strip_prefix("{Hash:").and_then(|text| text.split_once(','))
        else {
            return text.to_owned();
        };
        let hash = hash.parse::<u64>().expect("it is a number");
        format!("{{Hash:{},{rest}", self.number(&format!("{hash:x}")))
    }
}

/// Messages as they are on the wire.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
