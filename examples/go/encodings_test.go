package main

import (
	"math"
	"testing"

	pb "fedmtl-go/fedmtlpb"
)

func TestEveryFiniteHalfIsReadAndWrittenAsItself(t *testing.T) {
	for bits := 0; bits < 1<<16; bits++ {
		half := uint16(bits)
		if x := fromFloat16(half); isFinite(x) && toFloat16(x) != half {
			t.Fatalf("float16 %04x is %v, which is written as %04x", half, x, toFloat16(x))
		}
		if x := fromBfloat16(half); isFinite(x) && toBfloat16(x) != half {
			t.Fatalf("bfloat16 %04x is %v, which is written as %04x", half, x, toBfloat16(x))
		}
	}
}

func TestRoundingGoesToTheNearestAndTiesToEven(t *testing.T) {
	for x, expected := range map[float32]uint16{
		1 + 1.0/2048: 0x3c00, 1 + 3.0/2048: 0x3c02, 1 + 1.0/1024: 0x3c01,
		65519: 0x7bff, -1e30: 0xfbff, // saturated
		float32(math.Ldexp(1, -25)): 0x0000, float32(math.Ldexp(3, -25)): 0x0002, // denormals
		float32(math.Ldexp(2047, -25)): 0x0400, // the largest denormal, rounded up to the smallest normal number
	} {
		if got := toFloat16(x); got != expected {
			t.Errorf("%v is written as %04x, expected %04x", x, got, expected)
		}
	}
}

func TestEncodedBytesThatNoEncoderWritesAreRefused(t *testing.T) {
	l, err := readLayout("shared", []*pb.TensorSpec{
		{Name: "a", Dtype: pb.ElementType_ELEMENT_TYPE_FLOAT32, Shape: []uint64{1, 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		encoding pb.Encoding
		data     []byte
	}{
		"short float32":        {pb.Encoding_ENCODING_FLOAT32, make([]byte, 4)},
		"short float16":        {pb.Encoding_ENCODING_FLOAT16, make([]byte, 2)},
		"infinite float16":     {pb.Encoding_ENCODING_FLOAT16, []byte{0, 0x7c, 0, 0}},
		"bfloat16 NaN":         {pb.Encoding_ENCODING_BFLOAT16, []byte{0xc0, 0x7f, 0, 0}},
		"long int8":            {pb.Encoding_ENCODING_INT8, make([]byte, 7)},
		"int8 of -128":         {pb.Encoding_ENCODING_INT8, []byte{0, 0, 0x80, 0x3f, 0x80, 0}},
		"negative scale":       {pb.Encoding_ENCODING_INT8, []byte{0, 0, 0x80, 0xbf, 0, 0}},
		"scale of NaN":         {pb.Encoding_ENCODING_INT8, []byte{0, 0, 0xc0, 0x7f, 0, 0}},
		"topk of all":          {pb.Encoding_ENCODING_TOPK, make([]byte, 16)},
		"topk beyond the end":  {pb.Encoding_ENCODING_TOPK, []byte{2, 0, 0, 0, 0, 0, 0, 0}},
		"topk of half a value": {pb.Encoding_ENCODING_TOPK, make([]byte, 6)},
		"unknown encoding":     {pb.Encoding(99), make([]byte, 8)},
	} {
		if _, err := decode(l, c.encoding, c.data); err == nil {
			t.Errorf("%s: is taken", name)
		}
	}
}
