package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	pb "fedmtl-go/fedmtlpb"
)

const (
	numExamples = 8
	numSteps    = 5
	// learningRate is below where descent on rows of length 1 could overshoot.
	learningRate = 0.25
	// ownInputs is how many features the rows have where the slice has no head that says it.
	ownInputs = 16
)

// head is a task's head: outputs = weight * features + bias.
type head struct {
	outputs, inputs int
	// weight is row-major, (outputs, inputs).
	weight, bias []float64
	// regression has one output, the predicted number; else they are a class's logits each.
	regression bool
}

// example is one row of the client's data: what the encoder would make of a text, and its label.
type example struct {
	features []float64
	// label is a class's number, or the number to predict.
	label float64
}

// place is where the head lies in a slice.
type place struct {
	// component is the number of its component.
	component    int
	weight, bias tensor
}

// firstHead makes a head of zeros for the kind of task that the plan names. A client that doesn't know that kind stops:
// it would take every label for something else.
func firstHead(plan *pb.TrainingPlan, inputs int) (*head, error) {
	h := &head{inputs: inputs}
	switch plan.GetTaskType() {
	case pb.TaskType_TASK_TYPE_CLASSIFICATION:
		h.outputs = len(plan.Labels)
	case pb.TaskType_TASK_TYPE_REGRESSION:
		h.outputs, h.regression = 1, true
	}
	if h.outputs == 0 {
		return nil, fmt.Errorf("the plan's task is of the kind %v with %d labels; this example knows classification and "+
			"regression alone", plan.GetTaskType(), len(plan.GetLabels()))
	}
	h.weight, h.bias = make([]float64, h.outputs*inputs), make([]float64, h.outputs)
	return h, nil
}

// readHead finds the head in a slice, and checks that it is one for the plan's task.
func readHead(model []component, task string, plan *pb.TrainingPlan) (*head, *place, error) {
	h, err := firstHead(plan, 0)
	if err != nil {
		return nil, nil, err
	}
	where, err := placeOf(model, task)
	if err != nil {
		return nil, nil, err
	}
	if got := int(where.weight.shape[0]); got != h.outputs {
		return nil, nil, fmt.Errorf("the head of %s has %d outputs, expected %d as the plan's task has", task, got, h.outputs)
	}
	h.inputs = int(where.weight.shape[1])
	data := model[where.component].data
	h.weight, h.bias = readFloats(data, where.weight), readFloats(data, where.bias)
	return h, where, nil
}

// write puts the head's numbers into its component's bytes.
func (h *head) write(data []byte, where *place) {
	writeFloats(data, where.weight, h.weight)
	writeFloats(data, where.bias, h.bias)
}

// minus gives the difference of two heads.
func (h *head) minus(other *head) *head {
	difference := *h
	difference.weight = plus(h.weight, other.weight, -1)
	difference.bias = plus(h.bias, other.bias, -1)
	return &difference
}

// headTensors names the head's parameters.
func headTensors(task string) (weight, bias string) {
	return "heads." + task + ".weight", "heads." + task + ".bias"
}

// placeOf finds the head's two tensors by their names. Whose component they are in is the server's to say: where tasks
// have encoder layers of their own, these may lie beside the head.
func placeOf(model []component, task string) (*place, error) {
	weightName, biasName := headTensors(task)
	where := &place{}
	found := 0
	for i, c := range model {
		for _, t := range c.layout.tensors {
			if !strings.HasPrefix(t.name, "heads."+task+".") {
				continue
			}
			found++
			where.component = i
			switch t.name {
			case weightName:
				where.weight = t
			case biasName:
				where.bias = t
			}
		}
	}
	weight, bias := where.weight, where.bias
	linear := len(weight.shape) == 2 && len(bias.shape) == 1 && weight.shape[0] == bias.shape[0] && weight.elements > 0
	exact := weight.dtype == pb.ElementType_ELEMENT_TYPE_FLOAT32 && bias.dtype == weight.dtype
	if found != 2 || !linear || !exact {
		return nil, fmt.Errorf("expected a slice with %s (outputs, inputs) and %s (outputs) in float32",
			weightName, biasName)
	}
	return where, nil
}

func readFloats(data []byte, t tensor) []float64 {
	values := make([]float64, t.elements)
	for i := range values {
		values[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(data[int(t.offset)+4*i:])))
	}
	return values
}

func writeFloats(data []byte, t tensor, values []float64) {
	for i, x := range values {
		binary.LittleEndian.PutUint32(data[int(t.offset)+4*i:], math.Float32bits(float32(x)))
	}
}

// examples makes the client's data, the same in every round. A real client has its rows' texts go through the encoder;
// here the features are vectors of length 1 that a formula gives, and the labels are given out in turn.
func (h *head) examples() []example {
	rows := make([]example, numExamples)
	for i := range rows {
		features, length := make([]float64, h.inputs), 0.0
		for j := range features {
			features[j] = math.Cos(float64((i + 1) * (j + 1)))
			length += features[j] * features[j]
		}
		for j := range features {
			features[j] /= math.Sqrt(length)
		}
		rows[i] = example{features, float64(i % h.outputs)}
		if h.regression {
			rows[i].label = float64(i) / (numExamples - 1)
		}
	}
	return rows
}

func (h *head) output(features []float64) []float64 {
	out := append([]float64(nil), h.bias...)
	for k := range out {
		for j, x := range features {
			out[k] += h.weight[k*h.inputs+j] * x
		}
	}
	return out
}

// lossOf gives one example's loss and its derivative by every output: squared error, or cross-entropy of the softmax.
func (h *head) lossOf(row example) (loss float64, slope []float64) {
	out := h.output(row.features)
	if h.regression {
		miss := out[0] - row.label
		return miss * miss, []float64{2 * miss}
	}
	largest := out[argmax(out)]
	sum := 0.0
	for k := range out {
		out[k] = math.Exp(out[k] - largest) // so that nothing overflows
		sum += out[k]
	}
	for k := range out {
		out[k] /= sum
	}
	label := int(row.label)
	loss = -math.Log(out[label])
	out[label]--
	return loss, out
}

// gradient gives the mean loss over rows, and its derivatives by weight and bias.
func (h *head) gradient(rows []example) (loss float64, weight, bias []float64) {
	weight, bias = make([]float64, len(h.weight)), make([]float64, len(h.bias))
	share := 1 / float64(len(rows))
	for _, row := range rows {
		one, slope := h.lossOf(row)
		loss += one * share
		for k, d := range slope {
			bias[k] += d * share
			for j, x := range row.features {
				weight[k*h.inputs+j] += d * x * share
			}
		}
	}
	return loss, weight, bias
}

// trained gives the head after a few steps of gradient descent, each over all rows. What a correction has is added to the
// gradients; nil for none.
func (h *head) trained(rows []example, rate float64, correction *head) *head {
	after := *h
	for step := 0; step < numSteps; step++ {
		_, weight, bias := after.gradient(rows)
		if correction != nil {
			weight, bias = plus(weight, correction.weight, 1), plus(bias, correction.bias, 1)
		}
		after.weight, after.bias = plus(after.weight, weight, -rate), plus(after.bias, bias, -rate)
	}
	return &after
}

// plus gives a + scale * b.
func plus(a, b []float64, scale float64) []float64 {
	sum := make([]float64, len(a))
	for i := range sum {
		sum[i] = a[i] + scale*b[i]
	}
	return sum
}

// metrics measures the head on rows: the loss, and the accuracy or, of a regression, Pearson's correlation. That is left
// out where it is undefined.
func (h *head) metrics(rows []example) map[string]float64 {
	loss, _, _ := h.gradient(rows)
	var predictions, labels []float64
	right := 0.0
	for _, row := range rows {
		out := h.output(row.features)
		predictions, labels = append(predictions, out[0]), append(labels, row.label)
		if argmax(out) == int(row.label) {
			right++
		}
	}
	if !h.regression {
		return map[string]float64{"loss": loss, "accuracy": right / float64(len(rows))}
	}
	if r := pearson(predictions, labels); !math.IsNaN(r) {
		return map[string]float64{"loss": loss, "pearson": r}
	}
	return map[string]float64{"loss": loss}
}

// details names the metric that an evaluation leaves undefined, if it does.
func (h *head) details(metrics map[string]float64) *pb.EvaluationDetails {
	if _, isDefined := metrics["pearson"]; h.regression && !isDefined {
		return &pb.EvaluationDetails{Undefined: []string{"pearson"}}
	}
	return nil
}

// pearson gives the correlation of two samples; NaN where one is constant: there is none.
func pearson(a, b []float64) float64 {
	if isConstant(a) || isConstant(b) {
		return math.NaN()
	}
	var covariance, varianceA, varianceB float64
	meanA, meanB := mean(a), mean(b)
	for i := range a {
		x, y := a[i]-meanA, b[i]-meanB
		covariance += x * y
		varianceA += x * x
		varianceB += y * y
	}
	return covariance / math.Sqrt(varianceA*varianceB)
}

func isConstant(values []float64) bool {
	for _, x := range values {
		if x != values[0] {
			return false
		}
	}
	return true
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, x := range values {
		sum += x
	}
	return sum / float64(len(values))
}

func argmax(values []float64) int {
	best := 0
	for k, x := range values {
		if x > values[best] {
			best = k
		}
	}
	return best
}
