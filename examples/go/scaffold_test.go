package main

import (
	"reflect"
	"testing"

	pb "fedmtl-go/fedmtlpb"
)

func floatsOf(t *testing.T, scope string, values ...float64) component {
	t.Helper()
	l, err := readLayout(scope, []*pb.TensorSpec{{
		Name: "w", Dtype: pb.ElementType_ELEMENT_TYPE_FLOAT32, Shape: []uint64{uint64(len(values))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, l.numBytes)
	writeFloats(data, l.tensors[0], values)
	return component{l, data}
}

func TestVariatesFollowTheFormula(t *testing.T) {
	model, controls := split([]component{
		floatsOf(t, "shared", 7, 7), floatsOf(t, "control:shared", 0.5, -1),
	})
	if len(model) != 1 || len(controls["shared"].data) != 8 {
		t.Fatalf("the slice is parted into %v and %v", model, controls)
	}
	corrections, err := variates{}.corrections(model, controls)
	if err != nil {
		t.Fatal(err)
	}
	own := variates{}.following(3, corrections, []component{floatsOf(t, "shared", 3, -2)}, 0.5)
	// 0 - c - delta / 0.5
	if expected := (variates{3, map[string]vector{"shared": {-6.5, 5}}}); !reflect.DeepEqual(own, expected) {
		t.Errorf("after the first round they are %v", own)
	}
	corrections, err = own.corrections(model, map[string]component{"shared": floatsOf(t, "control:shared", 2, 2)})
	if err != nil || !reflect.DeepEqual(corrections["shared"], vector{8.5, -3}) {
		t.Errorf("the second correction is %v: %v", corrections, err)
	}
	delta := make([]byte, 8)
	if corrections["shared"].descend(delta, 2); !reflect.DeepEqual(elements(delta), vector{-17, 6}) {
		t.Errorf("without a gradient the steps come to %v", elements(delta))
	}
	if kept := own.following(4, corrections, model, 0); kept.round != 3 {
		t.Error("steps that went nowhere are taken for gradients")
	}
}

func TestVariatesFromBeforeTheServersBeganAreVoid(t *testing.T) {
	own := variates{3, map[string]vector{"shared": {1}}}
	if got := own.begin(3); got.round != 3 || len(got.own) != 1 {
		t.Errorf("those of the same round are %v", got)
	}
	if got := own.begin(4); got.round != 0 || len(got.own) != 0 {
		t.Errorf("older ones are %v", got)
	}
}

func TestVariatesThatDoNotFitAreRefused(t *testing.T) {
	model := []component{floatsOf(t, "shared", 1, 2)}
	for name, controls := range map[string]map[string]component{
		"missing": {"task:qqp": floatsOf(t, "control:task:qqp", 1, 2)},
		"short":   {"shared": floatsOf(t, "control:shared", 1)},
	} {
		if _, err := (variates{}).corrections(model, controls); err == nil {
			t.Errorf("%s: they are taken", name)
		}
	}
}
