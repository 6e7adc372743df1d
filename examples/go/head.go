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
	// learningRate is small enough that descent on rows of length 1 does not overshoot.
	learningRate = 0.25
	// ownInputs is the number of features of the rows if the slice has no head that determines it.
	ownInputs = 16
)

// head is a task's head: outputs = weight * features + bias.
type head struct {
	outputs, inputs int
	// weight is row-major, (outputs, inputs).
	weight, bias []float64
	// regression says that the head has one output, the predicted number; otherwise each output is a class's logit.
	regression bool
}

// example is one row of the client's data: a vector in place of an encoded text, and its label.
type example struct {
	features []float64
	// label is the number of a class, or the number to predict.
	label float64
}

// place is the position of the head in a slice.
type place struct {
	// component is the index of the head's component.
	component    int
	weight, bias tensor
}

// firstHead makes a head of zeros for the plan's task type. A client that doesn't know the task type stops, because it
// would misread every label.
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

// readHead finds the head in a slice, and checks that it fits the plan's task.
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

// write writes the head's numbers to its component's bytes.
func (h *head) write(data []byte, where *place) {
	writeFloats(data, where.weight, h.weight)
	writeFloats(data, where.bias, h.bias)
}

// minus returns the difference of two heads.
func (h *head) minus(other *head) *head {
	difference := *h
	difference.weight = plus(h.weight, other.weight, -1)
	difference.bias = plus(h.bias, other.bias, -1)
	return &difference
}

// headTensors returns the names of the head's parameters.
func headTensors(task string) (weight, bias string) {
	return "heads." + task + ".weight", "heads." + task + ".bias"
}

// placeOf finds the head's two tensors by their names. The server decides which component they are in: if tasks have
// encoder layers of their own, these layers can be in the head's component.
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

// examples makes the client's data, the same in every round. A real client runs its texts through the encoder. Here the
// features are vectors of length 1 from a formula, and the rows get the labels in turn.
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

// lossOf returns one example's loss and its derivatives by the outputs: squared error, or cross-entropy of the softmax.
func (h *head) lossOf(row example) (loss float64, slope []float64) {
	out := h.output(row.features)
	if h.regression {
		miss := out[0] - row.label
		return miss * miss, []float64{2 * miss}
	}
	largest := out[argmax(out)]
	sum := 0.0
	for k := range out {
		out[k] = math.Exp(out[k] - largest) // prevents an overflow
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

// gradient returns the mean loss over rows, and its derivatives by weight and bias.
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

// trained returns the head after a few steps of gradient descent, each over all rows. The correction is added to the
// gradients; nil for no correction.
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

// plus returns a + scale * b.
func plus(a, b []float64, scale float64) []float64 {
	sum := make([]float64, len(a))
	for i := range sum {
		sum[i] = a[i] + scale*b[i]
	}
	return sum
}

// metrics measures the head on rows: the loss, and the accuracy or, for a regression, the Pearson correlation. An
// undefined correlation is left out.
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

// details names the undefined metric of an evaluation, if there is one.
func (h *head) details(metrics map[string]float64) *pb.EvaluationDetails {
	if _, isDefined := metrics["pearson"]; h.regression && !isDefined {
		return &pb.EvaluationDetails{Undefined: []string{"pearson"}}
	}
	return nil
}

// pearson returns the correlation of two samples; NaN if one is constant, because the correlation is undefined.
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
