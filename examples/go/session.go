package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	pb "fedmtl-go/fedmtlpb"
)

// session is one client in one run.
type session struct {
	stub                   pb.FederatedMtlServiceClient
	server, clientID, task string
	patience               patience
	// joined is the run that the client has joined; waiting is the last wait condition that it logged.
	joined, waiting string
	kept            kept
}

// kept is the state that a client keeps from round to round of one run. It changes only with updates that count.
type kept struct {
	// head is the client's own head if the plan leaves the head to the clients; nil before the first round.
	head     *head
	variates variates
}

// work is the result of a round's work on a slice.
type work struct {
	header     *pb.UpdateHeader
	components []component
	// loss is the loss in the form of the log.
	loss string
	// kept is the client's state for when the update counts.
	kept kept
}

// run participates until the run is over, with as many streams of events as necessary.
func (s *session) run(ctx context.Context) error {
	for {
		var events pb.FederatedMtlService_WatchRoundsClient
		var event *pb.WatchRoundsResponse
		// The first event, the run's current state, says that the stream is open and the client is present.
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
			// Events wait while the client works; the server keeps some hundreds of them. A client with long training
			// reads them concurrently, and stops when an event says that the round has closed.
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

// follow reacts to an event.
func (s *session) follow(ctx context.Context, event *pb.WatchRoundsResponse) error {
	if s.joined != event.RunId {
		s.joined, s.kept = event.RunId, kept{}
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

// takePart does the work of one round.
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
	done, err := s.work(header, received)
	if err != nil {
		return err
	}
	var receipt *pb.PushUpdateResponse
	broken := false
	err = s.patience.persist(ctx, fmt.Sprintf("round %d: sending the update", event.Round), func() (err error) {
		if broken {
			if err := resume(ctx, s.stub, done.header); err != nil {
				return err
			}
			broken = false
		}
		receipt, err = upload(ctx, s.stub, done.header, done.components)
		// After a call that a limit refused, nothing is staged, and QueryUpload would count toward the limit too.
		todo, _ := nextAfter(err)
		broken = err != nil && todo == tryAgain && len(done.components) > 0
		return err
	})
	if err != nil {
		return err
	}
	s.kept = done.kept
	outcome := "accepted"
	if receipt.Outcome == pb.Outcome_OUTCOME_DUPLICATE {
		outcome = "accepted before"
	}
	logf("round %d: slice %.1f MB, loss %s, %s", event.Round, float64(header.TotalBytes)/1e6, done.loss, outcome)
	return nil
}

// work does a round's work on a slice, and returns the update.
func (s *session) work(header *pb.SliceHeader, received []component) (*work, error) {
	model, controls := split(written(header, received))
	before, where, err := s.findHead(model, header.Plan)
	if err != nil {
		return nil, err
	}
	rows := before.examples()
	metrics := before.metrics(rows)
	done := &work{kept: s.kept, loss: fmt.Sprintf("%.4f", metrics["loss"]), header: &pb.UpdateHeader{
		RunId: header.RunId, ClientId: s.clientID, Task: s.task, BaseRound: header.Round, UpdateId: newID(),
		Kind: pb.UpdateKind_UPDATE_KIND_METRICS, ReceivedMetrics: metrics, NumEvalExamples: int64(len(rows)),
		ReceivedDetails: before.details(metrics),
	}}
	if header.Purpose == pb.RoundPurpose_ROUND_PURPOSE_EVALUATE {
		return done, nil
	}
	rate := learningRate
	if header.Plan.Optimizer == pb.LocalOptimizer_LOCAL_OPTIMIZER_SGD {
		rate = header.Plan.LearningRate // with SGD the plan's rate fits these steps
	}
	own := s.kept.variates.begin(header.ControlSince)
	corrections, err := own.corrections(model, controls)
	if err != nil {
		return nil, err
	}
	after := before.trained(rows, rate, headCorrection(corrections, model, where))
	t := training{before, after, where, corrections, numSteps * rate, pb.UpdateKind_UPDATE_KIND_PARAMETERS}
	if header.Plan.UpdateKind == pb.UpdateKind_UPDATE_KIND_DELTA || corrections != nil {
		t.kind = pb.UpdateKind_UPDATE_KIND_DELTA
	}
	for i, c := range model {
		done.components = append(done.components, t.component(i, c))
		done.header.Components = append(done.header.Components, c.layout.toProto())
	}
	done.header.Kind, done.header.NumExamples, done.header.NumSteps = t.kind, int64(len(rows)), numSteps
	done.header.TrainedMetrics = after.metrics(rows)
	done.header.TrainedDetails = after.details(done.header.TrainedMetrics)
	done.loss += fmt.Sprintf(" -> %.4f", done.header.TrainedMetrics["loss"])
	if where == nil {
		done.kept.head = after
	}
	if corrections != nil {
		done.header.LearningRateSum, done.header.ControlRound = t.rateSum, own.round
		done.kept.variates = own.following(header.Round, corrections, done.components, t.rateSum)
	}
	return done, nil
}

// written returns the components of a slice that the round doesn't leave as they are. They are in the header's order.
func written(header *pb.SliceHeader, received []component) (writable []component) {
	for i, c := range received {
		if !header.Components[i].ReadOnly {
			writable = append(writable, c)
		}
	}
	return writable
}

// training is the result of a training.
type training struct {
	before, after *head
	// where is the position of the head in the slice; nil if the slice has no head.
	where *place
	// corrections are nil without control variates.
	corrections map[string]vector
	rateSum     float64
	kind        pb.UpdateKind
}

// component returns a component for the update. All parameters except the head are unchanged: their difference is 0.
func (t training) component(i int, c component) component {
	data, result := append([]byte(nil), c.data...), t.after
	if t.kind == pb.UpdateKind_UPDATE_KIND_DELTA {
		data, result = make([]byte, len(c.data)), t.after.minus(t.before)
	}
	t.corrections[c.layout.scope].descend(data, t.rateSum)
	if t.where != nil && t.where.component == i {
		result.write(data, t.where)
	}
	return component{c.layout, data}
}

// findHead returns the head to train, and its position in the slice. If the plan leaves the head to the clients, the
// slice has no head, and this client's head begins with zeros.
func (s *session) findHead(model []component, plan *pb.TrainingPlan) (*head, *place, error) {
	weight, bias := headTensors(s.task)
	for _, name := range plan.GetLocal() {
		if name != weight && name != bias {
			return nil, nil, fmt.Errorf("each client is to keep %s for itself, one of %d local parameters in the plan; "+
				"this example can keep its head alone", name, len(plan.Local))
		}
	}
	if len(plan.GetLocal()) == 0 {
		return readHead(model, s.task, plan)
	}
	if s.kept.head != nil {
		return s.kept.head, nil, nil
	}
	h, err := firstHead(plan, ownInputs)
	return h, nil, err
}

// newID returns a permanent id for an update.
func newID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err) // the system can't provide random numbers
	}
	return hex.EncodeToString(id)
}
