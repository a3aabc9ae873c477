"""Prints what Services mean on a node, as a server of kpng says it, and then what changes."""

import argparse
import queue
import socket
import sys
from pathlib import Path

import grpc

# The modules are made of the proto files here and now; README.md says how to make files.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
localv1, services = grpc.protos_and_services("localv1/api.proto")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-api", default="127.0.0.1:12090", help="the server, HOST:PORT or unix:///PATH")
parser.add_argument("-node", default=socket.gethostname(), help="the name of the node")
parser.add_argument("-once", action="store_true", help="end after the first answer")
parser.add_argument("-push", action="store_true", help="ask for all answers at once, not for each")
arguments = parser.parse_args()


def addresses(value):
    """Decodes a Service or an Endpoint, and returns its addresses."""
    if value.Ref.Set == localv1.ServicesSet:
        ips = localv1.Service.FromString(value.Bytes).IPs.ClusterIPs
    else:
        ips = localv1.Endpoint.FromString(value.Bytes).IPs
    return f"[{' '.join([*ips.V4, *ips.V6])}]"


request = localv1.WatchReq(NodeName=arguments.node, Push=arguments.push)
requests = queue.SimpleQueue()
requests.put(request)
with grpc.insecure_channel(arguments.api) as channel:
    for item in services.SetsStub(channel).Watch(iter(requests.get, None)):
        match item.WhichOneof("Op"):
            case "Reset":  # what is not set again before sync is gone
                print("reset")
            case "Set":
                ref = item.Set.Ref
                print("+", localv1.Set.Name(ref.Set), ref.Path, addresses(item.Set))
            case "Delete":
                print("-", localv1.Set.Name(item.Delete.Set), item.Delete.Path)
            case "Sync":  # all of this is consistent now
                print("sync", flush=True)
                if arguments.once:
                    break
                if not arguments.push:
                    requests.put(request)
