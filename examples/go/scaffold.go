package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// controlPrefix begins the scope of a server's control variate; the scope of its component follows.
const controlPrefix = "control:"

// vector has a number for each element of a component.
type vector []float32

// variates are a client's own control variates (SCAFFOLD; docs/wire.md, "Control variates"): the mean gradient of the
// client's last training.
type variates struct {
	// round is the base_round of the update that the variates come from; 0 for none.
	round uint32
	// own has the variates by the scope of their component. Missing variates are 0.
	own map[string]vector
}

// split returns the model's components of a slice, which an update has too, and the server's variates by the scope of
// their component.
func split(received []component) (model []component, controls map[string]component) {
	controls = map[string]component{}
	for _, c := range received {
		if scope := strings.TrimPrefix(c.layout.scope, controlPrefix); scope != c.layout.scope {
			controls[scope] = c
		} else {
			model = append(model, c)
		}
	}
	return model, controls
}

// begin returns the variates at the beginning of a round. Variates from before the server's began are void.
func (v variates) begin(since uint32) variates {
	if v.round < since {
		return variates{}
	}
	return v
}

// corrections returns by scope the correction of the gradients, the server's variates minus the client's own; nil if the
// server has none.
func (v variates) corrections(model []component, controls map[string]component) (map[string]vector, error) {
	if len(controls) == 0 {
		return nil, nil
	}
	corrections := map[string]vector{}
	for _, c := range model {
		scope := c.layout.scope
		correction, own := elements(controls[scope].data), v.own[scope]
		fits := uint64(len(correction)) == c.layout.elements && (own == nil || len(own) == len(correction))
		if !c.layout.isFloat32() || !fits { // this example can't compute with other dtypes
			return nil, fmt.Errorf("expected %s in float32, and %s%s with as many numbers", scope, controlPrefix, scope)
		}
		for i, x := range own {
			correction[i] -= x
		}
		corrections[scope] = correction
	}
	return corrections, nil
}

// following returns the client's variates for when its update counts: own - server's - delta / rateSum, with the delta as
// sent. With a rateSum of 0 the variates don't change.
func (v variates) following(round uint32, corrections map[string]vector, sent []component, rateSum float64) variates {
	if rateSum == 0 {
		return v
	}
	next := variates{round, map[string]vector{}}
	for _, c := range sent {
		own := elements(c.data)
		for i, correction := range corrections[c.layout.scope] {
			own[i] = float32(-float64(correction) - float64(own[i])/rateSum)
		}
		next.own[c.layout.scope] = own
	}
	return next
}

// descend writes the steps of parameters that the loss doesn't use, here the encoder: their gradient is 0, and the
// correction is added to it.
func (correction vector) descend(delta []byte, rateSum float64) {
	for i, x := range correction {
		binary.LittleEndian.PutUint32(delta[4*i:], math.Float32bits(float32(-rateSum*float64(x))))
	}
}

// headCorrection returns the head's part of the corrections; nil if there are none.
func headCorrection(corrections map[string]vector, model []component, where *place) *head {
	if corrections == nil || where == nil {
		return nil
	}
	correction := corrections[model[where.component].layout.scope]
	part := func(t tensor) []float64 {
		values := make([]float64, t.elements)
		for i := range values {
			values[i] = float64(correction[int(t.offset/4)+i])
		}
		return values
	}
	return &head{weight: part(where.weight), bias: part(where.bias)}
}

// elements reads a component with only float32 numbers.
func elements(data []byte) vector {
	values := make(vector, len(data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values
}
