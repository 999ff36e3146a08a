// Serves clusters with go-control-plane's snapshot cache and server, as its documentation shows them, for our benchmark to stand
// beside: all clients share one snapshot, which is what costs it least.
//
//	control-plane SOCKET CLUSTERS
//
// CLUSTERS is a file: a DiscoveryResponse with the clusters. Each line of standard input, a number, becomes the connect timeout
// of the first cluster, in milliseconds, and is answered with `changed` once it is served.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// One snapshot for every node.
type everybody struct{}

func (everybody) ID(*core.Node) string { return "everybody" }

func clusters(path string) ([]types.Resource, error) {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all discovery.DiscoveryResponse
	if err := proto.Unmarshal(bytes, &all); err != nil {
		return nil, err
	}
	resources := make([]types.Resource, 0, len(all.GetResources()))
	for _, packed := range all.GetResources() {
		one := new(cluster.Cluster)
		if err := packed.UnmarshalTo(one); err != nil {
			return nil, err
		}
		resources = append(resources, one)
	}
	return resources, nil
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: control-plane SOCKET CLUSTERS")
	}
	resources, err := clusters(os.Args[2])
	if err != nil {
		return err
	}
	ctx := context.Background()
	snapshots := cache.NewSnapshotCache(true, everybody{}, nil)
	serve := func(version string) error {
		snapshot, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{resource.ClusterType: resources})
		if err != nil {
			return err
		}
		return snapshots.SetSnapshot(ctx, "everybody", snapshot)
	}
	if err := serve("0"); err != nil {
		return err
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(ctx, snapshots, nil))
	failed := make(chan error, 1)
	go func() { failed <- grpcServer.Serve(listener) }()
	fmt.Println("ready")
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			number, err := strconv.Atoi(lines.Text())
			if err != nil {
				failed <- err
				return
			}
			changed := proto.Clone(resources[0]).(*cluster.Cluster)
			changed.ConnectTimeout = durationpb.New(time.Duration(number) * time.Millisecond)
			resources[0] = changed
			if err := serve(lines.Text()); err != nil {
				failed <- err
				return
			}
			fmt.Println("changed")
		}
		os.Exit(0)
	}()
	return <-failed
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
