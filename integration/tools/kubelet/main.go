// Command kubelet stands in for a kubelet where nothing runs in pods: it serves the one request that `kubectl exec` ends in,
// with the code that container runtimes serve it with, and runs the command as a process of this machine.
//
// The command gets this program's environment, and ENTENTE_CONTROL naming the socket of the pod in -sockets: what a pod's own
// file system would have told it apart by. Who may ask is for the API server to decide; this listens on the loopback alone.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

type machine struct{ sockets string }

// ExecInContainer runs the command, and ends it when who asked is gone.
func (m machine) ExecInContainer(ctx context.Context, pod, _, container string, cmd []string, in io.Reader,
	out, complaints io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	log.Printf("exec in %s (%s): %q", pod, container, cmd)
	process := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	process.Env = append(os.Environ(), "ENTENTE_CONTROL="+filepath.Join(m.sockets, pod+".sock"))
	// A writer that is no interface with a nil in it: a stream that was not asked for.
	if out != nil {
		process.Stdout = out
	}
	if complaints != nil {
		process.Stderr = complaints
	}
	stdin, err := process.StdinPipe()
	if err != nil {
		return err
	}
	if err := process.Start(); err != nil {
		return err
	}
	go func() {
		if in != nil {
			_, _ = io.Copy(stdin, in)
		}
		_ = stdin.Close()
	}()
	err = process.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &utilexec.ExitErrorWrapper{ExitError: exit}
	}
	return err
}

func (m machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) != 4 || parts[0] != "exec" {
		http.Error(w, "this serves /exec/NAMESPACE/POD/CONTAINER alone", http.StatusNotFound)
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		http.Error(w, "no command", http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, m, parts[2], "", parts[3], command, options, time.Hour, time.Minute,
		remotecommand.SupportedStreamingProtocols)
}

// certificate makes one of its own: an API server that was given no authority for kubelets takes any.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func main() {
	listen := flag.String("listen", "", "address, as IP:PORT")
	sockets := flag.String("sockets", "", "folder with the control sockets of the pods: POD.sock")
	flag.Parse()
	own, err := certificate()
	if err == nil {
		server := &http.Server{
			Addr:      *listen,
			Handler:   machine{*sockets},
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12},
			// A connection that is taken over speaks no HTTP/2.
			TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		}
		err = server.ListenAndServeTLS("", "")
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
