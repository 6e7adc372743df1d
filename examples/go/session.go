package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	pb "fedmtl-go/fedmtlpb"
)

// session is one client in one run.
type session struct {
	stub                   pb.FederatedMtlServiceClient
	server, clientID, task string
	patience               patience
	// joined is the run that the client has joined, waiting what it was last told to wait for.
	joined, waiting string
}

// run takes part until the run is over, over however many streams of events.
func (s *session) run(ctx context.Context) error {
	for {
		var events pb.FederatedMtlService_WatchRoundsClient
		var event *pb.WatchRoundsResponse
		// The stream is open, and the client present, once its first event is there: where the run stands.
		err := s.patience.persist(ctx, "joining the run at "+s.server, func() (err error) {
			events, err = s.stub.WatchRounds(ctx, &pb.WatchRoundsRequest{ClientId: s.clientID, Task: s.task})
			if err == nil {
				event, err = events.Recv()
			}
			return err
		})
		if err != nil {
			return err
		}
		s.patience = patienceLater
		for err == nil {
			if event.Kind == pb.RoundEventKind_ROUND_EVENT_KIND_FINISHED {
				logf("run finished after round %d", event.Round)
				return nil
			}
			if err := s.follow(ctx, event); err != nil {
				return err
			}
			// Events wait here while the client works. The server keeps some hundreds; a client whose training takes
			// long reads them beside it, and stops when one says that the round has closed.
			event, err = events.Recv()
		}
		if willPass(err) && ctx.Err() == nil {
			logf("server lost: %s", plain(err))
		}
		if err := backOff(ctx, "watching the rounds", err, firstWait); err != nil {
			return err
		}
	}
}

// follow does what an event asks for.
func (s *session) follow(ctx context.Context, event *pb.WatchRoundsResponse) error {
	if s.joined != event.RunId {
		s.joined = event.RunId
		logf("joined run %s as %s for %s", event.RunId, s.clientID, s.task)
	}
	switch event.Kind {
	case pb.RoundEventKind_ROUND_EVENT_KIND_WAITING:
		if s.waiting != event.WaitingFor {
			s.waiting = event.WaitingFor
			logf("round %d: waiting for %s", event.Round, event.WaitingFor)
		}
	case pb.RoundEventKind_ROUND_EVENT_KIND_OPENED:
		if !event.InCohort || event.Reported {
			return nil
		}
		err := s.takePart(ctx, event)
		var lost errRoundLost
		if errors.As(err, &lost) {
			logf("round %d: missed: %s", event.Round, lost.reason)
			return nil
		}
		return err
	}
	return nil
}

// takePart does one round's work.
func (s *session) takePart(ctx context.Context, event *pb.WatchRoundsResponse) error {
	var header *pb.SliceHeader
	var received []component
	var parts assembler
	request := &pb.GetSliceRequest{
		RunId: event.RunId, ClientId: s.clientID, Task: s.task, Round: event.Round,
		Encoding: pb.Encoding_ENCODING_FLOAT32,
	}
	err := s.patience.persist(ctx, fmt.Sprintf("round %d: getting the slice", event.Round), func() (err error) {
		header, received, err = download(ctx, s.stub, request, &parts)
		return err
	})
	if err != nil {
		return err
	}
	update, components, loss, err := s.work(header, received)
	if err != nil {
		return err
	}
	var receipt *pb.PushUpdateResponse
	broken := false
	err = s.patience.persist(ctx, fmt.Sprintf("round %d: sending the update", event.Round), func() (err error) {
		if broken {
			if err := resume(ctx, s.stub, update); err != nil {
				return err
			}
			broken = false
		}
		receipt, err = upload(ctx, s.stub, update, components)
		// A call that a limit refused has left nothing to ask for; and to ask would count against the limit too.
		todo, _ := nextAfter(err)
		broken = err != nil && todo == tryAgain && len(components) > 0
		return err
	})
	if err != nil {
		return err
	}
	outcome := "accepted"
	if receipt.Outcome == pb.Outcome_OUTCOME_DUPLICATE {
		outcome = "accepted before"
	}
	logf("round %d: slice %.1f MB, loss %s, %s", event.Round, float64(header.TotalBytes)/1e6, loss, outcome)
	return nil
}

// work makes an update of a slice. It gives its header, its components, and the loss as the log shows it.
func (s *session) work(header *pb.SliceHeader, received []component) (*pb.UpdateHeader, []component, string, error) {
	at := -1
	for i, c := range received {
		if c.layout.scope == "task:"+s.task {
			at = i
		}
	}
	if at < 0 {
		return nil, nil, "", fmt.Errorf("the slice has no head of %s", s.task)
	}
	h, err := readHead(received[at], header.Plan)
	if err != nil {
		return nil, nil, "", err
	}
	rows := h.examples()
	before := h.metrics(rows)
	update := &pb.UpdateHeader{
		RunId: header.RunId, ClientId: s.clientID, Task: s.task, BaseRound: header.Round, UpdateId: newID(),
		Kind: pb.UpdateKind_UPDATE_KIND_METRICS, ReceivedMetrics: before, NumEvalExamples: int64(len(rows)),
	}
	if header.Purpose == pb.RoundPurpose_ROUND_PURPOSE_EVALUATE {
		return update, nil, fmt.Sprintf("%.4f", before["loss"]), nil
	}
	h.train(rows)
	after := h.metrics(rows)
	trained := append([]component(nil), received...) // the encoder as it came
	trained[at].data = h.write(received[at])
	update.Kind = pb.UpdateKind_UPDATE_KIND_PARAMETERS
	if header.Plan.GetUpdateKind() == pb.UpdateKind_UPDATE_KIND_DELTA {
		update.Kind = pb.UpdateKind_UPDATE_KIND_DELTA
		for i := range trained {
			// An encoder that isn't changed has a difference of 0, whatever the dtypes.
			data := make([]byte, len(received[i].data))
			if i == at {
				subtract(data, trained[i].data, received[i].data)
			}
			trained[i].data = data
		}
	}
	for _, c := range trained {
		update.Components = append(update.Components, c.layout.toProto())
	}
	update.NumExamples = int64(len(rows))
	update.NumSteps = numSteps
	update.TrainedMetrics = after
	return update, trained, fmt.Sprintf("%.4f -> %.4f", before["loss"], after["loss"]), nil
}

// subtract writes trained minus received, of components that are all float32.
func subtract(out, trained, received []byte) {
	for i := 0; i < len(out); i += 4 {
		x := math.Float32frombits(binary.LittleEndian.Uint32(trained[i:]))
		y := math.Float32frombits(binary.LittleEndian.Uint32(received[i:]))
		binary.LittleEndian.PutUint32(out[i:], math.Float32bits(x-y))
	}
}

// newID names an update for good.
func newID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err) // the system has no random numbers
	}
	return hex.EncodeToString(id)
}
