// Command fedmtl-go is a FedMTL client in Go that is small enough to read in one sitting.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	pb "fedmtl-go/fedmtlpb"
)

const usage = `usage: fedmtl-go train --server HOST:PORT --task TASK --client-id ID [--token-file FILE]
       fedmtl-go vectors DIR`

const (
	exitFailure = 1
	exitUsage   = 2
	// exitSignal plus a signal's number is the exit status after that signal.
	exitSignal = 128
)

// usageError is an error in the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	number := make(chan syscall.Signal, 1)
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		number <- (<-signals).(syscall.Signal)
		cancel() // ends the calls in progress
	}()
	err := command(ctx, os.Args[1:])
	var wrong usageError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		logf("interrupted")
		os.Exit(exitSignal + int(<-number))
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "error: %v\n%s\n", err, usage)
		os.Exit(exitUsage)
	default:
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(exitFailure)
	}
}

func command(ctx context.Context, arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "vectors":
		return checkVectors(arguments[1])
	case len(arguments) >= 1 && arguments[0] == "train":
		return train(ctx, arguments[1:])
	}
	return usageError{"expected `train` with its options, or `vectors` with a folder"}
}

func train(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("train", flag.ContinueOnError)
	flags.Usage = func() {}
	flags.SetOutput(new(strings.Builder)) // the error has the same text
	server := flags.String("server", "", "")
	task := flags.String("task", "", "")
	clientID := flags.String("client-id", "", "")
	tokenFile := flags.String("token-file", "", "")
	if err := flags.Parse(arguments); err != nil {
		return usageError{err.Error()}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Sprintf("unexpected argument %q", flags.Arg(0))}
	}
	if *task == "" || *clientID == "" {
		return usageError{"--server, --task and --client-id are needed"}
	}
	if _, port, err := net.SplitHostPort(*server); err != nil || port == "" {
		return usageError{fmt.Sprintf("--server: expected HOST:PORT, got %q", *server)}
	}
	token := ""
	if *tokenFile != "" {
		var err error
		if token, err = readToken(*tokenFile); err != nil {
			return err
		}
	}
	connection, err := connect(*server, token)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := session{
		stub: pb.NewFederatedMtlServiceClient(connection), server: *server, clientID: *clientID, task: *task,
		patience: patienceFirst,
	}
	return client.run(ctx)
}

var tokenForm = regexp.MustCompile(`^[!-~]{16,512}$`)

// readToken reads a token. It never shows content that isn't a token, because that can be another secret.
func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", usageError{"--token-file: " + err.Error()}
	}
	token := strings.TrimSpace(string(text))
	if !tokenForm.MatchString(token) {
		return "", usageError{fmt.Sprintf("--token-file: %s: expected one token as `fedmtl-server clients add` gives it", path)}
	}
	return token, nil
}

// bearer sends a token with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity returns false so that the example works on loopback. With TLS it should return true.
func (b bearer) RequireTransportSecurity() bool { return false }

// connect makes a channel without TLS. For TLS, use credentials.NewTLS(...) instead of WithInsecure.
func connect(address, token string) (*grpc.ClientConn, error) {
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = firstWait, maxWait
	options := []grpc.DialOption{
		grpc.WithInsecure(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: maxWait}),
		// Without pings, a client that only listens would not notice a dead server.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.Dial(address, options...)
}

// logf writes one line for one event.
func logf(format string, values ...interface{}) {
	fmt.Printf(format+"\n", values...)
}
