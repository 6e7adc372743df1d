package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	pb "fedmtl-go/fedmtlpb"
)

const (
	numExamples  = 8
	numSteps     = 5
	learningRate = 0.5
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

// readHead finds the head in its component, and checks that it is one for the kind of task that the plan names.
func readHead(c component, plan *pb.TrainingPlan) (*head, error) {
	weight, bias, err := headTensors(c.layout)
	if err != nil {
		return nil, err
	}
	h := &head{
		outputs: int(weight.shape[0]), inputs: int(weight.shape[1]),
		weight: readFloats(c.data, weight), bias: readFloats(c.data, bias),
	}
	switch plan.GetTaskType() {
	case pb.TaskType_TASK_TYPE_CLASSIFICATION:
		if len(plan.Labels) != h.outputs {
			return nil, fmt.Errorf("%s: %d outputs for %d labels", c.layout.scope, h.outputs, len(plan.Labels))
		}
	case pb.TaskType_TASK_TYPE_REGRESSION:
		if h.outputs != 1 {
			return nil, fmt.Errorf("%s: %d outputs, expected one of a regression", c.layout.scope, h.outputs)
		}
		h.regression = true
	default: // the server doesn't say
		h.regression = h.outputs == 1
	}
	return h, nil
}

// write gives the component's bytes with the head in them.
func (h *head) write(c component) []byte {
	weight, bias, err := headTensors(c.layout)
	if err != nil {
		panic(err) // the head was read from this layout
	}
	data := append([]byte(nil), c.data...)
	writeFloats(data, weight, h.weight)
	writeFloats(data, bias, h.bias)
	return data
}

// headTensors finds the head's two tensors by their names.
func headTensors(l layout) (weight, bias tensor, err error) {
	prefix := "heads." + strings.TrimPrefix(l.scope, "task:")
	for _, t := range l.tensors {
		switch t.name {
		case prefix + ".weight":
			weight = t
		case prefix + ".bias":
			bias = t
		}
	}
	linear := len(weight.shape) == 2 && len(bias.shape) == 1 && weight.shape[0] == bias.shape[0] && weight.elements > 0
	exact := weight.dtype == pb.ElementType_ELEMENT_TYPE_FLOAT32 && bias.dtype == weight.dtype
	if len(l.tensors) != 2 || !linear || !exact {
		return tensor{}, tensor{}, fmt.Errorf(
			"%s: expected %s.weight (outputs, inputs) and %s.bias (outputs) in float32", l.scope, prefix, prefix)
	}
	return weight, bias, nil
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

// train takes a few steps of gradient descent, each over all rows.
func (h *head) train(rows []example) {
	for step := 0; step < numSteps; step++ {
		_, weight, bias := h.gradient(rows)
		for i, d := range weight {
			h.weight[i] -= learningRate * d
		}
		for k, d := range bias {
			h.bias[k] -= learningRate * d
		}
	}
}

// metrics measures the head on rows: the loss, and the accuracy or, of a regression, Pearson's correlation.
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
	if h.regression {
		return map[string]float64{"loss": loss, "pearson": pearson(predictions, labels)}
	}
	return map[string]float64{"loss": loss, "accuracy": right / float64(len(rows))}
}

// pearson gives the correlation of two samples; 0 where one is constant.
func pearson(a, b []float64) float64 {
	var covariance, varianceA, varianceB float64
	meanA, meanB := mean(a), mean(b)
	for i := range a {
		x, y := a[i]-meanA, b[i]-meanB
		covariance += x * y
		varianceA += x * x
		varianceB += y * y
	}
	if varianceA == 0 || varianceB == 0 {
		return 0
	}
	return covariance / math.Sqrt(varianceA*varianceB)
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
