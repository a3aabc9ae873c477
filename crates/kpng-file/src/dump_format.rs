//! What a dump has beyond KPNG's format: slices as they are, and the node they were seen from.
//!
//! `slices` stands in the place of `endpoints` and says of slices also what has no meaning: their names,
//! how endpoints are distributed over them, ports that the Service does not have. `seenfrom` is what a
//! plan depends on beside the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kpng_core::explain::Here;
use kpng_core::model::{Endpoint, EndpointSlice, Protocol, SlicePort};
use kpng_core::plan::{NodeFacts, PodDetection};

use crate::emit::{Fields, Yaml};
use crate::kpng_format::{endpoints, protocol};
use crate::render::endpoint_fields;
use crate::values;
use crate::yaml::{Node, Read};

/// Reads `seenfrom`.
pub(crate) fn read_here(node: &Node) -> Read<'_, Here> {
    let fields = node.strict_object(&[
        "node",
        "addresses",
        "pods",
        "primaryips",
        "nodeportaddresses",
        "localhostnodeports",
        "masqueradeall",
        "servicecidrs",
    ])?;
    let flag = |name| Ok(fields.read(name, Node::boolean)?.unwrap_or(false));
    let addresses = |name| fields.each(name, values::address);
    Ok(Here {
        node: values::object_name(fields.require("node")?)?.into(),
        facts: NodeFacts {
            pods: fields.read("pods", pods)?.unwrap_or_default(),
            primary_ips: addresses("primaryips")?,
            node_port_addresses: addresses("nodeportaddresses")?.into_iter().collect(),
            localhost_node_ports: flag("localhostnodeports")?,
            masquerade_all: flag("masqueradeall")?,
            service_cidrs: fields.each("servicecidrs", values::network)?,
        },
        addresses: addresses("addresses")?.into_iter().collect(),
    })
}

fn pods(node: &Node) -> Read<'_, PodDetection> {
    let fields = node.strict_object(&["cidrs", "bridge", "interfaceprefix"])?;
    let [bridge, prefix] = [fields.text("bridge")?, fields.text("interfaceprefix")?];
    Ok(match (fields.get("cidrs"), bridge, prefix) {
        (None, None, None) => PodDetection::None,
        (Some(_), None, None) => PodDetection::Cidrs(fields.each("cidrs", values::network)?),
        (None, Some(name), None) => PodDetection::Bridge(name.into()),
        (None, None, Some(prefix)) => PodDetection::InterfacePrefix(prefix.into()),
        _ => return Err(node.fault("pods are told in more than one way: remove all but one")),
    })
}

/// Writes `seenfrom`.
pub(crate) fn here_fields(here: &Here) -> Fields {
    let Here { node, facts, addresses } = here;
    let ips =
        |ips: &mut dyn Iterator<Item = &IpAddr>| ips.map(ToString::to_string).collect::<Vec<_>>();
    let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut pods = Fields::default();
    match &facts.pods {
        PodDetection::None => {}
        PodDetection::Cidrs(cidrs) => {
            pods.push("cidrs", Yaml::Flow(nets(cidrs).into_iter().map(Yaml::Text).collect()));
        }
        PodDetection::Bridge(name) => pods.text("bridge", name),
        PodDetection::InterfacePrefix(prefix) => pods.text("interfaceprefix", prefix),
    }
    let mut fields = Fields::default();
    fields.text("node", node);
    fields.flow("addresses", ips(&mut addresses.iter()));
    fields.map("pods", pods);
    fields.flow("primaryips", ips(&mut facts.primary_ips.iter()));
    fields.flow("nodeportaddresses", ips(&mut facts.node_port_addresses.iter()));
    fields.flag("localhostnodeports", facts.localhost_node_ports);
    fields.flag("masqueradeall", facts.masquerade_all);
    fields.flow("servicecidrs", nets(&facts.service_cidrs));
    fields
}

/// Reads one of `slices`.
pub(crate) fn read_slice(node: &Node) -> Read<'_, (String, EndpointSlice)> {
    let fields = node.strict_object(&["name", "ports", "endpoints"])?;
    let name = fields.require("name")?.text()?.to_owned();
    let mut slice = EndpointSlice {
        endpoints: Vec::new(),
        ports: fields.each("ports", |node| {
            let fields = node.strict_object(&["name", "protocol", "port"])?;
            Ok(SlicePort {
                name: fields.text("name")?.unwrap_or_default().into(),
                protocol: fields.read("protocol", protocol)?.unwrap_or(Protocol::Tcp),
                port: values::port(fields.require("port")?)?,
            })
        })?,
    };
    for node in fields.list("endpoints")? {
        let (inner, endpoints) = endpoints(node)?;
        if let Some(stray) = inner.get("portoverrides") {
            return Err(stray.fault("the slice says the ports of its endpoints: remove this"));
        }
        slice.endpoints.extend(endpoints);
    }
    Ok((name, slice))
}

/// Writes one of `slices`.
pub(crate) fn slice_fields(name: &Arc<str>, slice: &EndpointSlice) -> Yaml {
    let port = |port: &SlicePort| {
        let mut fields = Fields::default();
        if !port.name.is_empty() {
            fields.text("name", &port.name);
        }
        fields.text("protocol", port.protocol.name());
        fields.number("port", Some(port.port));
        Yaml::from(fields)
    };
    let endpoint = |endpoint: &Endpoint| {
        let mut inner = Fields::default();
        endpoint.hostname.iter().for_each(|hostname| inner.text("hostname", hostname));
        inner.addresses("ips", [endpoint.address]);
        Yaml::from(endpoint_fields(endpoint, inner))
    };
    let mut fields = Fields::default();
    fields.text("name", name);
    fields.list("ports", slice.ports.iter().map(port));
    fields.list("endpoints", slice.endpoints.iter().map(endpoint));
    fields.into()
}
