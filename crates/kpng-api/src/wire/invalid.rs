//! What can be wrong with a message.

/// Why a message is rejected. `field` is the path in the message, with KPNG's names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Invalid {
    /// The bytes are no message of this type.
    #[error("cannot be decoded: {0}")]
    Bytes(#[from] prost::DecodeError),
    /// A field without which the message means nothing.
    #[error("{field} is missing")]
    Missing { field: String },
    /// A value of an enumeration, or a type's name.
    #[error("{field} {value} is unknown")]
    Unknown { field: String, value: String },
    /// The name of an object, or a namespace.
    #[error("{field} {value:?} is no name of an object")]
    Name { field: String, value: String },
    /// A port number.
    #[error("{field} {value} is no port number")]
    Port { field: String, value: i64 },
    /// An address that the message cannot do without.
    #[error("{field} {value:?} is no IP address")]
    Address { field: String, value: String },
    /// A reference to one of the Service's ports.
    #[error("{field} {value} does not exist: the Service has {ports} ports")]
    PortIndex { field: String, value: u32, ports: usize },
    /// More ports than an index can tell apart.
    #[error("Ports has {ports} entries: at most 65536 can be told apart")]
    TooManyPorts { ports: usize },
}
