// A client of xDS that is not ours: Envoy's own types in Go (go-control-plane), held to the rules that Envoy's protos state for
// each field, and grpc-go's transport.
//
//	xds-client SOCKET delta|sotw
//
// Each line of standard input is a request, as JSON; each line of standard output an answer, as JSON with its resources unpacked,
// or {"error": ...} where one breaks a rule or the stream ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// A stream of either variant.
type stream struct {
	request func() proto.Message
	send    func(proto.Message) error
	receive func() (proto.Message, error)
	close   func() error
}

func open(client discovery.AggregatedDiscoveryServiceClient, variant string) (stream, error) {
	switch variant {
	case "delta":
		s, err := client.DeltaAggregatedResources(context.Background())
		return stream{
			request: func() proto.Message { return new(discovery.DeltaDiscoveryRequest) },
			send:    func(m proto.Message) error { return s.Send(m.(*discovery.DeltaDiscoveryRequest)) },
			receive: func() (proto.Message, error) { return s.Recv() },
			close:   func() error { return s.CloseSend() },
		}, err
	case "sotw":
		s, err := client.StreamAggregatedResources(context.Background())
		return stream{
			request: func() proto.Message { return new(discovery.DiscoveryRequest) },
			send:    func(m proto.Message) error { return s.Send(m.(*discovery.DiscoveryRequest)) },
			receive: func() (proto.Message, error) { return s.Recv() },
			close:   func() error { return s.CloseSend() },
		}, err
	}
	return stream{}, fmt.Errorf("%q is neither delta nor sotw", variant)
}

// check holds a message, and all that is packed in it, to the rules of its type; no field may be unknown to it.
func check(message proto.Message) error {
	if rules, ok := message.(interface{ ValidateAll() error }); ok {
		if err := rules.ValidateAll(); err != nil {
			return err
		}
	}
	return walk(message.ProtoReflect())
}

func walk(message protoreflect.Message) error {
	if unknown := message.GetUnknown(); len(unknown) > 0 {
		return fmt.Errorf("%s has fields that it does not know: %x", message.Descriptor().FullName(), []byte(unknown))
	}
	if packed, ok := message.Interface().(*anypb.Any); ok {
		inside, err := packed.UnmarshalNew()
		if err != nil {
			return fmt.Errorf("%s: %w", packed.GetTypeUrl(), err)
		}
		return check(inside)
	}
	var failed error
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		visit := func(value protoreflect.Value) bool {
			failed = walk(value.Message())
			return failed == nil
		}
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, value protoreflect.Value) bool { return visit(value) })
			}
		case field.Message() == nil:
		case field.IsList():
			for i := 0; i < value.List().Len() && visit(value.List().Get(i)); i++ {
			}
		default:
			visit(value)
		}
		return failed == nil
	})
	return failed
}

func say(line []byte) {
	os.Stdout.Write(append(line, '\n'))
}

func fail(err error) {
	line, _ := json.Marshal(map[string]string{"error": err.Error()})
	say(line)
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: xds-client SOCKET delta|sotw")
	}
	credentials := grpc.WithTransportCredentials(insecure.NewCredentials())
	connection, err := grpc.NewClient("unix:"+os.Args[1], credentials)
	if err != nil {
		return err
	}
	defer connection.Close()
	s, err := open(discovery.NewAggregatedDiscoveryServiceClient(connection), os.Args[2])
	if err != nil {
		return err
	}
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			request := s.request()
			if err := protojson.Unmarshal(lines.Bytes(), request); err != nil {
				fail(err)
				os.Exit(1)
			}
			if err := s.send(request); err != nil {
				return
			}
		}
		_ = s.close()
	}()
	for {
		answer, err := s.receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := check(answer); err != nil {
			return err
		}
		line, err := protojson.Marshal(answer)
		if err != nil {
			return err
		}
		say(line)
	}
}

func main() {
	if err := run(); err != nil {
		fail(err)
		os.Exit(1)
	}
}
