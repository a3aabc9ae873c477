//! Tests of TLS, with an authority of their own.
