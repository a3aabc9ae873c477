//! From bytes to single objects: what is around an object in a list, a watch and an error.
//!
//! Nothing here panics or allocates without bound, whatever the bytes are, and objects are slices of
//! what was received: nothing is copied. Each object decodes on its own, so a bad one spoils no other.
//!
//! ```text
//! protobuf list   "k8s\0" Unknown { raw: List { metadata, items: [object, …] } }
//! protobuf watch  [length, 4 bytes, big endian] WatchEvent { type, object { raw: "k8s\0" Unknown { raw: object } } } …
//! JSON list       {"metadata": …, "items": [object, …]}
//! JSON watch      {"type": …, "object": object} "\n" …
//! ```
//!
//! The framing is that of `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`: the event of a watch
//! has no magic, the object in it has.

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::Error;
use crate::wire::{AnyObject, ListMeta, ObjectMeta, Status};

const MAGIC: &[u8] = b"k8s\0";

/// The largest event of a watch that is accepted. etcd refuses objects of more than 1.5 MiB, and
/// JSON is about twice as large as protobuf.
pub(crate) const MAX_EVENT: usize = 16 << 20;

/// The two encodings of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
    /// `application/json`.
    Json,
}

impl Encoding {
    /// The encoding that a `Content-Type` names.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let (kind, _) = content_type.split_once(';').unwrap_or((content_type, ""));
        match kind.trim() {
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// An object that is not decoded yet: without its envelope.
#[derive(Clone, Debug)]
pub(crate) struct RawObject {
    pub(crate) encoding: Encoding,
    pub(crate) bytes: Bytes,
}

impl RawObject {
    /// Decodes the object. An error says where it went wrong.
    pub(crate) fn decode<T: Message + Default + DeserializeOwned>(&self) -> Result<T, String> {
        match self.encoding {
            Encoding::Protobuf => T::decode(self.bytes.clone()).map_err(|e| e.to_string()),
            Encoding::Json => serde_json::from_slice(&self.bytes).map_err(|e| e.to_string()),
        }
    }

    /// The object's metadata, also when the rest of it is broken.
    pub(crate) fn metadata(&self) -> Option<ObjectMeta> {
        match self.encoding {
            Encoding::Protobuf => {
                // Every object has it as field 1, and Go writes fields in order.
                let mut rest = self.bytes.clone();
                let (1, WireType::LengthDelimited) = decode_key(&mut rest).ok()? else {
                    return None;
                };
                let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                ObjectMeta::decode(rest.get(..length)?).ok()
            }
            Encoding::Json => self.decode::<AnyObject>().ok()?.metadata,
        }
    }
}

/// `runtime.Unknown`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Unknown {
    #[prost(message, optional, tag = "1")]
    pub(crate) type_meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) raw: Bytes,
}

/// `runtime.TypeMeta`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TypeMeta {
    #[prost(string, tag = "1")]
    pub(crate) api_version: String,
    #[prost(string, tag = "2")]
    pub(crate) kind: String,
}

/// Any list, its items undecoded.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ListMeta>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) items: Vec<Bytes>,
}

/// `meta/v1.WatchEvent`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WatchEvent {
    #[prost(string, tag = "1")]
    pub(crate) event_type: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) object: Option<RawExtension>,
}

/// `runtime.RawExtension`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) raw: Bytes,
}

#[derive(Deserialize)]
struct JsonList<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What a list body has.
#[derive(Debug)]
pub(crate) struct RawList {
    pub(crate) metadata: ListMeta,
    pub(crate) items: Vec<Bytes>,
}

/// Takes a list apart.
pub(crate) fn list(encoding: Encoding, body: &Bytes) -> Result<RawList, Error> {
    let malformed = |reason: String| Error::Malformed { what: "a list", reason };
    match encoding {
        Encoding::Protobuf => {
            let list = List::decode(unwrap(body).map_err(malformed)?);
            let list = list.map_err(|error| malformed(error.to_string()))?;
            Ok(RawList { metadata: list.metadata.unwrap_or_default(), items: list.items })
        }
        Encoding::Json => {
            let list: JsonList<'_> =
                serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
            let items = list.items.unwrap_or_default();
            let items = items.iter().map(|item| body.slice_ref(item.get().as_bytes()));
            Ok(RawList { metadata: list.metadata, items: items.collect() })
        }
    }
}

/// The server's refusal in the body of a response, if it is one that can be read.
pub(crate) fn status(encoding: Option<Encoding>, body: &Bytes) -> Option<Status> {
    let encoding = encoding?;
    let bytes = match encoding {
        Encoding::Protobuf => unwrap(body).ok()?,
        Encoding::Json => body.clone(),
    };
    RawObject { encoding, bytes }.decode().ok()
}

/// The object in `"k8s\0" Unknown { raw }`.
fn unwrap(bytes: &Bytes) -> Result<Bytes, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start with the magic of Kubernetes' protobuf".to_owned());
    }
    let unknown = Unknown::decode(bytes.slice(MAGIC.len()..));
    Ok(unknown.map_err(|error| format!("its envelope: {error}"))?.raw)
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventType {
    /// `ADDED` or `MODIFIED`: here is the object as it is now.
    Put,
    /// `DELETED`: here is the object as it was last.
    Deleted,
    /// `BOOKMARK`: nothing but a newer resource version.
    Bookmark,
    /// `ERROR`: the object is a `Status`.
    Error,
    /// A type that is newer than this code.
    Unknown,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) event_type: EventType,
    pub(crate) object: RawObject,
}

/// Cuts the body of a watch into events, however the network cut it.
#[derive(Debug)]
pub(crate) struct Events {
    encoding: Encoding,
    buffer: BytesMut,
    /// JSON: how much of the buffer has no line end.
    scanned: usize,
}

impl Events {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self { encoding, buffer: BytesMut::new(), scanned: 0 }
    }

    /// More of the body.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes of an unfinished event remain.
    pub(crate) fn is_inside_event(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next complete event; `None` until more is pushed. After an error the stream is lost: its
    /// frames cannot be found again.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, Error> {
        let event = match self.encoding {
            Encoding::Protobuf => self.next_protobuf(),
            Encoding::Json => self.next_json(),
        };
        event.map_err(|reason| Error::Malformed { what: "an event of a watch", reason })
    }

    fn next_protobuf(&mut self) -> Result<Option<Event>, String> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        check_length(length)?;
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let frame = self.buffer.split_to(length).freeze();
        let event = WatchEvent::decode(frame).map_err(|error| error.to_string())?;
        let raw = event.object.unwrap_or_default().raw;
        let object = RawObject { encoding: Encoding::Protobuf, bytes: unwrap(&raw)? };
        Ok(Some(Event { event_type: EventType::from_name(&event.event_type), object }))
    }

    fn next_json(&mut self) -> Result<Option<Event>, String> {
        loop {
            let end = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n');
            let Some(end) = end.map(|end| end + self.scanned) else {
                self.scanned = self.buffer.len();
                check_length(self.scanned)?;
                return Ok(None);
            };
            self.scanned = 0;
            let line = self.buffer.split_to(end + 1).freeze();
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event: JsonEvent<'_> =
                serde_json::from_slice(&line).map_err(|error| error.to_string())?;
            let bytes = line.slice_ref(event.object.get().as_bytes());
            let object = RawObject { encoding: Encoding::Json, bytes };
            return Ok(Some(Event { event_type: EventType::from_name(event.event_type), object }));
        }
    }
}

fn check_length(length: usize) -> Result<(), String> {
    if length <= MAX_EVENT {
        return Ok(());
    }
    Err(format!("it claims {length} bytes, more than the {MAX_EVENT} that are accepted"))
}

impl EventType {
    fn from_name(name: &str) -> Self {
        match name {
            "ADDED" | "MODIFIED" => Self::Put,
            "DELETED" => Self::Deleted,
            "BOOKMARK" => Self::Bookmark,
            "ERROR" => Self::Error,
            _ => Self::Unknown,
        }
    }
}

/// The encoding side, for tests and benchmarks.
#[cfg(test)]
pub(crate) mod encode {
    use super::*;

    /// `"k8s\0" Unknown { raw }`.
    pub(crate) fn wrap(raw: Bytes) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        Unknown { type_meta: None, raw }.encode(&mut bytes).unwrap();
        bytes.into()
    }

    /// A protobuf list.
    pub(crate) fn list(metadata: ListMeta, items: Vec<Bytes>) -> Bytes {
        wrap(List { metadata: Some(metadata), items }.encode_to_vec().into())
    }

    /// A protobuf watch event.
    pub(crate) fn event(event_type: &str, object: Bytes) -> Vec<u8> {
        let object = Some(RawExtension { raw: wrap(object) });
        let event = WatchEvent { event_type: event_type.to_owned(), object }.encode_to_vec();
        let length = u32::try_from(event.len()).unwrap();
        [length.to_be_bytes().as_slice(), &event].concat()
    }
}

#[cfg(test)]
mod tests;
