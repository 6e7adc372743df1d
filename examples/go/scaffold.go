package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// controlPrefix is how the scope of a server's control variate begins; the scope that it is for follows.
const controlPrefix = "control:"

// vector has a number for each element of a component.
type vector []float32

// variates are a client's own control variates (SCAFFOLD; docs/wire.md, "Control variates"): the mean gradient of its
// last training.
type variates struct {
	// round is the base_round of the update that they are of; 0 for none.
	round uint32
	// own has them by the scope that each is for. What isn't there is 0.
	own map[string]vector
}

// split parts a slice into the model's components, which an update has too, and the server's variates by the scope that
// each is for.
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

// begin gives the variates that a round begins with. Those from before the server's began are void.
func (v variates) begin(since uint32) variates {
	if v.round < since {
		return variates{}
	}
	return v
}

// corrections gives by scope what is added to the gradients, the server's variates minus the client's own; nil where
// the server has none.
func (v variates) corrections(model []component, controls map[string]component) (map[string]vector, error) {
	if len(controls) == 0 {
		return nil, nil
	}
	corrections := map[string]vector{}
	for _, c := range model {
		scope := c.layout.scope
		correction, own := elements(controls[scope].data), v.own[scope]
		fits := uint64(len(correction)) == c.layout.elements && (own == nil || len(own) == len(correction))
		if !c.layout.isFloat32() || !fits { // of other dtypes this example knows nothing but the bytes
			return nil, fmt.Errorf("expected %s in float32, and %s%s with as many numbers", scope, controlPrefix, scope)
		}
		for i, x := range own {
			correction[i] -= x
		}
		corrections[scope] = correction
	}
	return corrections, nil
}

// following gives the client's variates once its update counts: own - server's - delta / rateSum, of the delta as it is
// sent. Steps that went nowhere tell nothing.
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

// descend writes how far the steps go in what the loss doesn't see, which is the encoder here: its gradient is 0, and the
// correction is added to it all the same.
func (correction vector) descend(delta []byte, rateSum float64) {
	for i, x := range correction {
		binary.LittleEndian.PutUint32(delta[4*i:], math.Float32bits(float32(-rateSum*float64(x))))
	}
}

// headCorrection is the head's part of the corrections; nil if there is none.
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

// elements reads a component that is all float32.
func elements(data []byte) vector {
	values := make(vector, len(data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values
}
