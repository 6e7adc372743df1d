package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// patienceFirst holds for a server that was never reached: who typed its address looks on. patienceLater is for one
	// that was, and may be started again.
	patienceFirst patience = patience(15 * time.Second)
	patienceLater patience = patience(5 * time.Minute)
	// firstWait and maxWait bound the time to the next try: up to the first, then up to twice as long each time, up to
	// the second.
	firstWait = 200 * time.Millisecond
	maxWait   = 5 * time.Second
	// maxAskedWait is the longest that a server can make this client wait.
	maxAskedWait = time.Hour
)

// patience is how long to go on trying a server that doesn't answer.
type patience time.Duration

// jitter is seeded by the time, so that clients don't come back all at once.
var jitter = rand.New(rand.NewSource(time.Now().UnixNano()))

// errRoundLost says that nothing can be done for the round any more; the next event says how it goes on.
type errRoundLost struct{ reason string }

func (e errRoundLost) Error() string { return e.reason }

// next is what the contract has a caller do about an error.
type next int

const (
	stop next = iota
	tryAgain
	tryAgainLater
	leaveRound
)

// nextAfter chooses it. The wait is what the server asked for, with tryAgainLater alone.
func nextAfter(err error) (next, time.Duration) {
	if errors.Is(err, errDamaged) || err == io.EOF { // a stream that ends early
		return tryAgain, 0
	}
	answer, ok := status.FromError(err)
	if !ok {
		return stop, 0
	}
	switch answer.Code() {
	case codes.Unavailable, codes.DataLoss:
		return tryAgain, 0
	case codes.Aborted, codes.FailedPrecondition:
		return leaveRound, 0
	case codes.ResourceExhausted:
		for _, detail := range answer.Details() {
			if info, ok := detail.(*errdetails.RetryInfo); ok && info.GetRetryDelay() != nil {
				return tryAgainLater, info.RetryDelay.AsDuration()
			}
		}
	}
	return stop, 0
}

// willPass says whether a call is worth to be tried again after an error.
func willPass(err error) bool {
	todo, _ := nextAfter(err)
	return todo == tryAgain || todo == tryAgainLater
}

// persist calls until it goes well, or the contract or the server's silence says to stop.
func (p patience) persist(ctx context.Context, what string, call func() error) error {
	var failing time.Time
	for ceiling := firstWait; ; ceiling = shorter(2*ceiling, maxWait) {
		err := call()
		if err == nil {
			return nil
		}
		if failing.IsZero() {
			failing = time.Now()
			if willPass(err) && ctx.Err() == nil {
				logf("%s: trying again: %s", what, plain(err))
			}
		}
		todo, _ := nextAfter(err)
		left := time.Duration(p) - time.Since(failing)
		if todo == tryAgain && left <= 0 && ctx.Err() == nil {
			return fmt.Errorf("%s: gave up after %.0f s: %s", what, time.Since(failing).Seconds(), plain(err))
		}
		if err := backOff(ctx, what, err, shorter(ceiling, left+firstWait)); err != nil {
			return err
		}
	}
}

// backOff waits until a call may be tried again after an error: for up to ceiling, or for as long as the server asks.
// It returns an error where the call may not.
func backOff(ctx context.Context, what string, err error, ceiling time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	todo, wait := nextAfter(err)
	switch todo {
	case stop:
		return fmt.Errorf("%s: %s", what, plain(err))
	case leaveRound:
		return errRoundLost{plain(err)}
	case tryAgain:
		wait = time.Duration(jitter.Int63n(int64(ceiling)))
	case tryAgainLater:
		wait = shorter(wait, maxAskedWait)
		wait += time.Duration(jitter.Int63n(int64(wait)/2 + 1)) // so that not all come at once
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func shorter(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}

// plain gives an error without what gRPC writes around it.
func plain(err error) string {
	if err == io.EOF {
		return "the server ended the stream early"
	}
	if answer, ok := status.FromError(err); ok {
		return answer.Message()
	}
	return err.Error()
}
