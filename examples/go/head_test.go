package main

import (
	"bytes"
	"math"
	"testing"

	pb "fedmtl-go/fedmtlpb"
)

// newHead makes a head with arbitrary weights.
func newHead(outputs, inputs int, regression bool) *head {
	h := &head{
		outputs: outputs, inputs: inputs, regression: regression,
		weight: make([]float64, outputs*inputs), bias: make([]float64, outputs),
	}
	for i := range h.weight {
		h.weight[i] = math.Sin(float64(i + 1))
	}
	for k := range h.bias {
		h.bias[k] = 0.1 * float64(k+1)
	}
	return h
}

func TestTheGradientIsThatOfFiniteDifferences(t *testing.T) {
	const step = 1e-5
	for _, h := range []*head{newHead(3, 4, false), newHead(1, 4, true)} {
		rows := h.examples()
		_, weight, bias := h.gradient(rows)
		for _, part := range []struct{ values, slopes []float64 }{{h.weight, weight}, {h.bias, bias}} {
			for i, x := range part.values {
				part.values[i] = x + step
				above, _, _ := h.gradient(rows)
				part.values[i] = x - step
				below, _, _ := h.gradient(rows)
				part.values[i] = x
				if slope := (above - below) / (2 * step); math.Abs(slope-part.slopes[i]) > 1e-8 {
					t.Errorf("parameter %d: derivative %v, by finite differences %v", i, part.slopes[i], slope)
				}
			}
		}
	}
}

func TestTrainingLowersTheLoss(t *testing.T) {
	for _, h := range []*head{newHead(3, 64, false), newHead(1, 64, true)} {
		rows := h.examples()
		before := h.metrics(rows)["loss"]
		if after := h.trained(rows, learningRate, nil).metrics(rows)["loss"]; after >= before {
			t.Errorf("loss %v -> %v", before, after)
		}
	}
}

func TestPearsonIsPlusOrMinusOneOnALine(t *testing.T) {
	for _, c := range []struct {
		a        []float64
		expected float64
	}{{[]float64{2, 4, 6}, 1}, {[]float64{3, 2, 1}, -1}} {
		if got := pearson(c.a, []float64{1, 2, 3}); math.Abs(got-c.expected) > 1e-12 {
			t.Errorf("%v: %v, expected %v", c.a, got, c.expected)
		}
	}
}

func TestPearsonOfAConstantIsLeftOutAndNamedAsUndefined(t *testing.T) {
	h := newHead(1, 2, true)
	rows := []example{{[]float64{1, 0}, 0.1}, {[]float64{0, 1}, 0.1}, {[]float64{1, 1}, 0.1}}
	metrics := h.metrics(rows)
	if _, isThere := metrics["pearson"]; isThere || len(h.details(metrics).Undefined) != 1 {
		t.Errorf("%v, %v", metrics, h.details(metrics))
	}
	if details := h.details(map[string]float64{"pearson": 0.5}); details != nil {
		t.Errorf("%v, expected none", details)
	}
	if details := newHead(2, 2, false).details(map[string]float64{"accuracy": 0.5}); details != nil {
		t.Errorf("%v, expected none", details)
	}
}

// headIn returns a slice whose last component has an encoder layer and the head: weight (1, -2), bias (0.5, 0).
func headIn(t *testing.T) []component {
	t.Helper()
	float32s := pb.ElementType_ELEMENT_TYPE_FLOAT32
	l, err := readLayout("group:pairs", []*pb.TensorSpec{
		{Name: "encoder.bias", Dtype: float32s, Shape: []uint64{1}},
		{Name: "heads.sst2.weight", Dtype: float32s, Shape: []uint64{2, 1}, Offset: 4},
		{Name: "heads.sst2.bias", Dtype: float32s, Shape: []uint64{2}, Offset: 12},
	})
	if err != nil {
		t.Fatal(err)
	}
	return []component{
		{layout: layout{scope: "shared"}},
		{l, []byte{0, 0, 0, 0x40, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0, 0x3f, 0, 0, 0, 0}},
	}
}

var twoLabels = &pb.TrainingPlan{
	TaskType: pb.TaskType_TASK_TYPE_CLASSIFICATION, Labels: []string{"negative", "positive"},
}

func TestAHeadIsReadFromWhicheverComponentHasItAndWrittenBack(t *testing.T) {
	model := headIn(t)
	h, where, err := readHead(model, "sst2", twoLabels)
	if err != nil {
		t.Fatal(err)
	}
	if h.weight[1] != -2 || h.bias[0] != 0.5 {
		t.Errorf("weight %v, bias %v", h.weight, h.bias)
	}
	data := append([]byte(nil), model[1].data...)
	for i := 4; i < len(data); i++ {
		data[i] = 0xff
	}
	if h.write(data, where); !bytes.Equal(data, model[1].data) {
		t.Errorf("it is written back as %x", data)
	}
}

func TestAHeadThatIsNotThePlansIsRefused(t *testing.T) {
	for _, plan := range []*pb.TrainingPlan{
		{TaskType: pb.TaskType_TASK_TYPE_CLASSIFICATION, Labels: []string{"a", "b", "c"}},
		{TaskType: pb.TaskType_TASK_TYPE_REGRESSION},
		{TaskType: pb.TaskType_TASK_TYPE_CUSTOM, Labels: []string{"a", "b"}},
		{},
	} {
		if _, _, err := readHead(headIn(t), "sst2", plan); err == nil {
			t.Errorf("a head of 2 outputs is taken for %v", plan)
		}
	}
	if _, _, err := readHead(headIn(t), "qqp", twoLabels); err == nil {
		t.Error("a head is found that isn't there")
	}
}
