//! What clients can do to a server, with sockets.
