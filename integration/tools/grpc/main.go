// A client of proxyless gRPC (xds:///NAME) in grpc-go, and servers for it: plain, for what ends TLS before them, and by mutual TLS
// with the SPIFFE Workload API. All of them speak grpc.health.v1.Health.
//
//	grpc-peer client TARGET
//	grpc-peer server ADDRESS
//	grpc-peer server ADDRESS WORKLOAD_API CLIENT_ID...
//
// The client reads `call` (on the connection that it has) or `fresh` (on one of its own) a line, and says, as JSON, who answered and
// as whom it was answered, or {"error": ...}. A server says where it listens, and serves until its standard input ends.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	_ "google.golang.org/grpc/xds"
)

const (
	// How long one call may take.
	patience = 5 * time.Second
	// The trailers by which a server says as whom it sees the client, and the hash of the certificate that it was shown.
	caller      = "caller"
	certificate = "certificate"
)

func say(what map[string]string) {
	line, _ := json.Marshal(what)
	os.Stdout.Write(append(line, '\n'))
}

// The SPIFFE ID at the other end of a connection, and the SHA-256 of its certificate; nothing where it is plain.
func idOf(p *peer.Peer) (string, string) {
	tls, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(tls.State.PeerCertificates) == 0 {
		return "", ""
	}
	leaf := tls.State.PeerCertificates[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return "", ""
	}
	hash := sha256.Sum256(leaf.Raw)
	return id.String(), hex.EncodeToString(hash[:])
}

func dial(target string) (*grpc.ClientConn, error) {
	secured, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(secured))
}

func call(connection *grpc.ClientConn) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var server peer.Peer
	var trailer metadata.MD
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(
		ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&server), grpc.Trailer(&trailer))
	if err != nil {
		return nil, err
	}
	id, _ := idOf(&server)
	said := map[string]string{"status": answer.GetStatus().String(), "server": id}
	for _, name := range []string{caller, certificate} {
		if all := trailer.Get(name); len(all) > 0 {
			said[name] = all[0]
		}
	}
	return said, nil
}

func fresh(target string) (map[string]string, error) {
	connection, err := dial(target)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return call(connection)
}

func client(target string) error {
	connection, err := dial(target)
	if err != nil {
		return err
	}
	defer connection.Close()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var said map[string]string
		var err error
		switch lines.Text() {
		case "call":
			said, err = call(connection)
		case "fresh":
			said, err = fresh(target)
		default:
			err = fmt.Errorf("%q is neither call nor fresh", lines.Text())
		}
		if err != nil {
			said = map[string]string{"error": err.Error()}
		}
		say(said)
	}
	return lines.Err()
}

// Says to each caller as whom it is seen.
func tell(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if p, ok := peer.FromContext(ctx); ok {
		id, hash := idOf(p)
		if err := grpc.SetTrailer(ctx, metadata.Pairs(caller, id, certificate, hash)); err != nil {
			return nil, err
		}
	}
	return handle(ctx, request)
}

func server(address string, mutual []string) error {
	options := []grpc.ServerOption{grpc.UnaryInterceptor(tell)}
	if len(mutual) > 0 {
		api := workloadapi.WithClientOptions(workloadapi.WithAddr(mutual[0]))
		source, err := workloadapi.NewX509Source(context.Background(), api)
		if err != nil {
			return err
		}
		defer source.Close()
		var clients []spiffeid.ID
		for _, text := range mutual[1:] {
			id, err := spiffeid.FromString(text)
			if err != nil {
				return err
			}
			clients = append(clients, id)
		}
		tls := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeOneOf(clients...))
		options = append(options, grpc.Creds(credentials.NewTLS(tls)))
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	serving := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(serving, health.NewServer())
	say(map[string]string{"address": listener.Addr().String()})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		serving.Stop()
	}()
	return serving.Serve(listener)
}

func run() error {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "client":
		return client(os.Args[2])
	case len(os.Args) >= 3 && os.Args[1] == "server":
		return server(os.Args[2], os.Args[3:])
	}
	return fmt.Errorf("usage: grpc-peer client TARGET | server ADDRESS [WORKLOAD_API CLIENT_ID...]")
}

func main() {
	if err := run(); err != nil {
		say(map[string]string{"error": err.Error()})
		os.Exit(1)
	}
}
