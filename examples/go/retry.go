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
	// patienceFirst is for a server that was never reached, because a user is waiting. patienceLater is for a server that
	// was reached, which can be restarted.
	patienceFirst patience = patience(15 * time.Second)
	patienceLater patience = patience(5 * time.Minute)
	// firstWait and maxWait bound the wait before a retry: up to firstWait at first, then up to twice as long each time,
	// up to maxWait.
	firstWait = 200 * time.Millisecond
	maxWait   = 5 * time.Second
	// maxAskedWait is the longest wait that this client accepts from a server.
	maxAskedWait = time.Hour
)

// patience is how long to retry a server that doesn't answer.
type patience time.Duration

// jitter is seeded by the time, so that clients don't retry at the same moment.
var jitter = rand.New(rand.NewSource(time.Now().UnixNano()))

// errRoundLost means that the client can't contribute to the round; it waits for the next event.
type errRoundLost struct{ reason string }

func (e errRoundLost) Error() string { return e.reason }

// next is the caller's reaction to an error, as the contract specifies it.
type next int

const (
	stop next = iota
	tryAgain
	tryAgainLater
	leaveRound
)

// nextAfter chooses the reaction. The wait is the server's RetryInfo, and is set only with tryAgainLater.
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

// willPass says whether an error is temporary, so that the call can be retried.
func willPass(err error) bool {
	todo, _ := nextAfter(err)
	return todo == tryAgain || todo == tryAgainLater
}

// persist repeats a call until it succeeds, the contract says to stop, or the server was silent for too long.
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

// backOff waits before a retry: a random time up to ceiling, or the time that the server asks for. It returns an error
// if the call must not be retried.
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
		wait += time.Duration(jitter.Int63n(int64(wait)/2 + 1)) // so that clients don't retry at the same moment
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

// plain returns an error's message without the text that gRPC adds.
func plain(err error) string {
	if err == io.EOF {
		return "the server ended the stream early"
	}
	if answer, ok := status.FromError(err); ok {
		return answer.Message()
	}
	return err.Error()
}
