// Prints what Services mean on a node, as a server of kpng says it, and then what changes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"kpng.dev/kpng/examples/go-client/localv1"
)

func main() {
	hostname, _ := os.Hostname()
	api := flag.String("api", "127.0.0.1:12090", "the server, `HOST:PORT or unix:///PATH`")
	node := flag.String("node", hostname, "the `name` of the node")
	once := flag.Bool("once", false, "end after the first answer")
	push := flag.Bool("push", false, "ask for all answers at once, not for each")
	flag.Parse()

	connection, err := grpc.NewClient(*api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	stream, err := localv1.NewSetsClient(connection).Watch(context.Background())
	check(err)
	request := &localv1.WatchReq{NodeName: *node, Push: *push}
	check(stream.Send(request))
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return // the server ends
		}
		check(err)
		switch op := item.Op.(type) {
		case *localv1.OpItem_Reset_: // what is not set again before sync is gone
			fmt.Println("reset")
		case *localv1.OpItem_Set:
			fmt.Println("+", op.Set.Ref.Set, op.Set.Ref.Path, addresses(op.Set))
		case *localv1.OpItem_Delete:
			fmt.Println("-", op.Delete.Set, op.Delete.Path)
		case *localv1.OpItem_Sync: // all of this is consistent now
			fmt.Println("sync")
			if *once {
				return
			}
			if !*push {
				_ = stream.Send(request) // if that fails, Recv says why
			}
		}
	}
}

// Decodes a Service or an Endpoint, and returns its addresses.
func addresses(value *localv1.Value) []string {
	service, endpoint := &localv1.Service{}, &localv1.Endpoint{}
	if value.Ref.Set == localv1.Set_ServicesSet {
		check(proto.Unmarshal(value.Bytes, service))
		ips := service.GetIPs().GetClusterIPs()
		return append(ips.GetV4(), ips.GetV6()...)
	}
	check(proto.Unmarshal(value.Bytes, endpoint))
	return append(endpoint.GetIPs().GetV4(), endpoint.GetIPs().GetV6()...)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
