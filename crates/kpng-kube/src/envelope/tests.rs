//! Whatever the bytes are and however they are cut: events are found, and nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::{ObjectMeta, Service};

fn object(name: &str) -> Bytes {
    let metadata = ObjectMeta { name: name.to_owned(), ..ObjectMeta::default() };
    Service { metadata: Some(metadata), ..Service::default() }.encode_to_vec().into()
}

/// Three events, in both encodings.
fn stream(encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Protobuf => [
            encode::event("ADDED", object("one")),
            encode::event("BOOKMARK", object("")),
            encode::event("DELETED", object("three")),
        ]
        .concat(),
        Encoding::Json => [
            r#"{"type":"ADDED","object":{"metadata":{"name":"one"}}}"#,
            "",
            r#"{"type":"BOOKMARK","object":{"metadata":{}}}"#,
            r#"{"type":"DELETED","object":{"metadata":{"name":"three"}}}"#,
            "",
        ]
        .join("\n")
        .into_bytes(),
    }
}

fn both() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Protobuf), Just(Encoding::Json)]
}

/// All events of a body that arrives in `pieces`, up to the first error.
fn events(encoding: Encoding, pieces: &[&[u8]]) -> (Vec<(EventType, String)>, Option<Error>) {
    let mut events = Events::new(encoding);
    let mut found = Vec::new();
    for piece in pieces {
        events.push(piece);
        loop {
            match events.next() {
                Ok(Some(event)) => {
                    let object: Service = event.object.decode().unwrap_or_default();
                    let name = object.metadata.unwrap_or_default().name;
                    found.push((event.event_type, name));
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn expected() -> Vec<(EventType, String)> {
    vec![
        (EventType::Put, "one".to_owned()),
        (EventType::Bookmark, String::new()),
        (EventType::Deleted, "three".to_owned()),
    ]
}

/// Cuts `bytes` at the given places, in any order and possibly more than once.
fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for place in places.into_iter().rev() {
        let (head, tail) = rest.split_at(place);
        pieces.insert(0, tail);
        rest = head;
    }
    pieces.insert(0, rest);
    pieces
}

proptest! {
    #[test]
    fn events_are_found_however_the_network_cuts(
        encoding in both(),
        places in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = stream(encoding);
        let (found, error) = events(encoding, &cut(&bytes, &places));
        prop_assert!(error.is_none());
        prop_assert_eq!(found, expected());
    }

    #[test]
    fn a_truncated_stream_gives_a_prefix_and_no_error(
        encoding in both(),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = stream(encoding);
        let (found, error) = events(encoding, &[&bytes[..at.index(bytes.len())]]);
        prop_assert!(error.is_none());
        prop_assert!(expected().starts_with(&found));
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200), encoding in both()) {
        drop(events(encoding, &[&bytes]));
        let body = Bytes::from(bytes);
        drop(list(encoding, &body));
        drop(status(Some(encoding), &body));
        let object = RawObject { encoding, bytes: body.clone() };
        drop((object.decode::<Service>(), object.metadata()));
        drop(list(encoding, &encode::wrap(body)));
    }

    #[test]
    fn a_flipped_byte_never_panics(
        encoding in both(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = stream(encoding);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(events(encoding, &[&bytes]));
    }
}

#[test]
fn a_list_is_taken_apart_without_copies() {
    let metadata = ListMeta { resource_version: "7".to_owned(), continue_token: "next".to_owned() };
    let body = encode::list(metadata.clone(), vec![object("one"), object("two")]);
    let found = list(Encoding::Protobuf, &body).unwrap();
    assert_eq!(found.metadata, metadata);
    assert_eq!(found.items, [object("one"), object("two")]);
    let inside = body.as_ptr_range();
    assert!(found.items.iter().all(|item| inside.contains(&item.as_ptr())));
}

#[test]
fn the_metadata_of_a_broken_object_is_found() {
    let mut broken = object("one").to_vec();
    broken.extend([0x12, 0x7f]);
    let json = br#"{"metadata":{"name":"one"},"spec":7}"#;
    for (encoding, bytes) in [(Encoding::Protobuf, broken), (Encoding::Json, json.to_vec())] {
        let object = RawObject { encoding, bytes: bytes.into() };
        assert!(object.decode::<Service>().is_err());
        assert_eq!(object.metadata().unwrap().name, "one");
    }
}

#[test]
fn json_lists_may_have_null_items() {
    let body = Bytes::from_static(br#"{"metadata":{"resourceVersion":"7"},"items":null}"#);
    assert!(list(Encoding::Json, &body).unwrap().items.is_empty());
}

#[test]
fn a_frame_that_claims_too_much_is_an_error_at_once() {
    let (_, error) = events(Encoding::Protobuf, &[&[0xff, 0, 0, 0]]);
    expect_test::expect!["cannot read an event of a watch from the API server: it claims 4278190080 bytes, more than the 16777216 that are accepted"]
        .assert_eq(&error.unwrap().to_string());
    let line = vec![b' '; MAX_EVENT + 1];
    assert!(events(Encoding::Json, &[&line]).1.is_some());
}

#[test]
fn an_object_without_its_magic_is_an_error() {
    let object = Some(RawExtension { raw: object("bare") });
    let event = WatchEvent { event_type: "ADDED".to_owned(), object }.encode_to_vec();
    let header = u32::try_from(event.len()).unwrap().to_be_bytes();
    let (_, error) = events(Encoding::Protobuf, &[&header, &event]);
    expect_test::expect!["cannot read an event of a watch from the API server: it does not start with the magic of Kubernetes' protobuf"]
        .assert_eq(&error.unwrap().to_string());
}

#[test]
fn content_types() {
    let check = |text, expected| assert_eq!(Encoding::from_content_type(text), expected, "{text}");
    check("application/vnd.kubernetes.protobuf", Some(Encoding::Protobuf));
    check("application/vnd.kubernetes.protobuf;stream=watch", Some(Encoding::Protobuf));
    check("application/json; charset=utf-8", Some(Encoding::Json));
    check("text/html", None);
    check("", None);
}
