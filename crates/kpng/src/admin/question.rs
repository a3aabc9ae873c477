//! What is asked by the admin socket, and how it stands in a URL.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use hyper::{Method, StatusCode, Uri};
use kpng_core::explain::{Here, Query};
use kpng_core::model::Family;

use crate::cli::{Destination, DumpWhat, Output, PacketSource};
use crate::http::{encode, parameters};

/// A question to a running kpng, or about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Why something happens to a packet.
    Explain {
        /// Where it comes from.
        source: PacketSource,
        /// The interface that it comes in through, if that is known.
        interface: Option<Arc<str>>,
        /// Where it goes.
        destination: Destination,
        /// In which form.
        output: Output,
    },
    /// What it knows, or would write.
    Dump(DumpWhat),
    /// Whether the kernel holds what it shall.
    Check(Output),
}

/// What is said to who asks something that is no question.
const ADVICE: &str = "ask /explain?source=IP&destination=IP&port=N[&protocol=TCP][&interface=NAME]\
                      [&output=json], /dump/{services|plan|ruleset|state}, or /check[?output=json]";

impl Question {
    /// The question of a request, or how to answer instead.
    ///
    /// # Errors
    /// When there is no such question.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, (StatusCode, String)> {
        if method != Method::GET {
            let text = "only GET: nothing can be changed here".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, text));
        }
        let bad = |text: String| (StatusCode::BAD_REQUEST, format!("{text}; {ADVICE}"));
        let parameters = parameters(uri.query().unwrap_or_default());
        match uri.path() {
            "/explain" => Self::explain(&parameters).map_err(bad),
            "/check" => Ok(Self::Check(output(&parameters).map_err(bad)?)),
            path => match path.strip_prefix("/dump/").map(|what| DumpWhat::from_str(what, false)) {
                Some(Ok(what)) => Ok(Self::Dump(what)),
                _ => Err((StatusCode::NOT_FOUND, format!("there is no {path}; {ADVICE}"))),
            },
        }
    }

    /// The question about a packet that the parameters of a URL describe.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn explain(parameters: &[(String, String)]) -> Result<Self, String> {
        let need = |name| get(parameters, name).ok_or_else(|| format!("{name} is not given"));
        let address = need("destination")?;
        let destination: IpAddr =
            address.parse().map_err(|error| format!("destination {address:?}: {error}"))?;
        let port = need("port")?;
        let protocol = get(parameters, "protocol").unwrap_or("TCP");
        let destination = match destination {
            IpAddr::V4(ip) => format!("{ip}:{port}/{protocol}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}/{protocol}"),
        };
        Ok(Self::Explain {
            source: need("source")?.parse()?,
            interface: get(parameters, "interface").map(Arc::from),
            destination: destination.parse()?,
            output: output(parameters)?,
        })
    }

    /// The path and query of the question's URL.
    pub fn path_and_query(&self) -> String {
        let output_name = |output: Output| match output {
            Output::Text | Output::Markdown => "text",
            Output::Json => "json",
        };
        match self {
            Self::Explain { source, interface, destination, output } => {
                let Destination { address, port, protocol } = destination;
                let source = match source {
                    PacketSource::Node => "node".to_owned(),
                    PacketSource::Address(address) => address.to_string(),
                };
                let interface = interface.as_ref();
                let interface = interface.map(|name| format!("&interface={}", encode(name)));
                format!(
                    "/explain?source={source}&destination={address}&port={port}\
                     &protocol={protocol}&output={}{}",
                    output_name(*output),
                    interface.unwrap_or_default()
                )
            }
            Self::Dump(what) => format!("/dump/{}", what.name()),
            Self::Check(output) => format!("/check?output={}", output_name(*output)),
        }
    }

    /// The packet that an explanation is asked of, on this node.
    ///
    /// # Errors
    /// When the node is its source and has no address of that family.
    pub fn query(&self, here: &Here) -> anyhow::Result<Query> {
        let Self::Explain { source, interface, destination, .. } = self else {
            anyhow::bail!("this question is about no packet")
        };
        let Destination { address, port, protocol } = *destination;
        let source = match source {
            PacketSource::Address(address) => *address,
            // What the node sends to itself there comes from there.
            PacketSource::Node if address.is_loopback() => address,
            PacketSource::Node => {
                let family = Family::of(address);
                let facts = &here.facts;
                let own = facts.primary_ips.iter().chain(&here.addresses);
                let mut own = own.filter(|ip| Family::of(**ip) == family && !ip.is_loopback());
                *own.next().with_context(|| {
                    let family = family.name();
                    format!("the node has no {family} address; give the source address itself")
                })?
            }
        };
        let interface = interface.clone();
        Ok(Query { source, interface, destination: address, protocol, port })
    }
}

fn get<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn output(parameters: &[(String, String)]) -> Result<Output, String> {
    match get(parameters, "output") {
        Some(output) => Output::from_str(output, true),
        None => Ok(Output::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_back_from_its_url() {
        let explain =
            |source: &str, destination: &str, interface: Option<&str>| Question::Explain {
                source: source.parse().unwrap(),
                interface: interface.map(Arc::from),
                destination: destination.parse().unwrap(),
                output: Output::Json,
            };
        for question in [
            explain("10.0.0.1", "10.96.0.1:80", None),
            explain("node", "[fd00::1]:53/udp", Some("veth%&=ä")),
            explain("fd00::2", "[fd00::1]:5/SCTP", Some("cni0")),
            Question::Dump(DumpWhat::State),
            Question::Dump(DumpWhat::Ruleset),
            Question::Check(Output::Text),
        ] {
            let uri = question.path_and_query().parse().unwrap();
            assert_eq!(Question::parse(&Method::GET, &uri), Ok(question));
        }
    }

    #[test]
    fn what_is_no_question_is_answered_with_advice() {
        let parse = |method, uri: &str| Question::parse(&method, &uri.parse().unwrap());
        let refused = |result: Result<_, (StatusCode, String)>, status, word| {
            let (found, text) = result.unwrap_err();
            assert!(found == status && text.contains(word), "{found} {text}");
        };
        refused(parse(Method::POST, "/check"), StatusCode::METHOD_NOT_ALLOWED, "GET");
        refused(parse(Method::GET, "/dump/secrets"), StatusCode::NOT_FOUND, "/dump/{services");
        refused(parse(Method::GET, "/explain?source=node"), StatusCode::BAD_REQUEST, "destination");
        let wrong = "/explain?source=x&destination=10.0.0.1&port=80";
        refused(parse(Method::GET, wrong), StatusCode::BAD_REQUEST, "\"x\"");
        let wrong = "/explain?source=node&destination=10.0.0.1&port=99999";
        refused(parse(Method::GET, wrong), StatusCode::BAD_REQUEST, "99999");
    }
}
