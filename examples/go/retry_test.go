package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestWhatComesNextIsAsTheContractSays(t *testing.T) {
	for code, expected := range map[codes.Code]next{
		codes.Unavailable: tryAgain, codes.DataLoss: tryAgain, codes.Aborted: leaveRound,
		codes.FailedPrecondition: leaveRound, codes.ResourceExhausted: stop, codes.NotFound: stop,
		codes.AlreadyExists: stop, codes.Unauthenticated: stop, codes.Internal: stop,
	} {
		if got, _ := nextAfter(status.Error(code, "")); got != expected {
			t.Errorf("%v: %v, expected %v", code, got, expected)
		}
	}
	for _, err := range []error{io.EOF, fmt.Errorf("a chunk: %w", errDamaged)} {
		if got, _ := nextAfter(err); got != tryAgain {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestALimitThatWillPassIsWaitedFor(t *testing.T) {
	limited, err := status.New(codes.ResourceExhausted, "too many calls").WithDetails(
		&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if todo, wait := nextAfter(limited.Err()); todo != tryAgainLater || wait != 1500*time.Millisecond {
		t.Errorf("%v after %v", todo, wait)
	}
}

func TestACallIsTriedAgainUntilItGoesWellOrTheRoundIsLost(t *testing.T) {
	calls := 0
	err := patienceFirst.persist(context.Background(), "a test", func() error {
		if calls++; calls < 3 {
			return status.Error(codes.DataLoss, "")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls: %v", calls, err)
	}
	err = patienceFirst.persist(context.Background(), "a test", func() error { return status.Error(codes.Aborted, "it has closed") })
	var lost errRoundLost
	if !errors.As(err, &lost) || lost.reason != "it has closed" {
		t.Errorf("%v", err)
	}
}
