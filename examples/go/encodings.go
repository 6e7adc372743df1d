package main

import (
	"encoding/binary"
	"fmt"
	"math"

	pb "fedmtl-go/fedmtlpb"
)

// maxInt8Scale is the largest scale s for which 127 * s is finite: 8454659 * 2^98.
var maxInt8Scale = float32(math.Ldexp(8454659, 98))

// decode converts a component's encoded bytes to the component's own bytes, as docs/wire.md specifies.
func decode(l layout, encoding pb.Encoding, data []byte) ([]byte, error) {
	var elements []float32
	var err error
	switch encoding {
	case pb.Encoding_ENCODING_UNSPECIFIED, pb.Encoding_ENCODING_FLOAT32:
		if err := expectBytes(data, l.numBytes); err != nil {
			return nil, err
		}
		return data, nil
	case pb.Encoding_ENCODING_FLOAT16:
		elements, err = decodeHalves(l, data, fromFloat16)
	case pb.Encoding_ENCODING_BFLOAT16:
		elements, err = decodeHalves(l, data, fromBfloat16)
	case pb.Encoding_ENCODING_INT8:
		elements, err = decodeInt8(l, data)
	case pb.Encoding_ENCODING_TOPK:
		elements, err = decodeTopk(l, data)
	default:
		err = fmt.Errorf("unknown encoding %v", encoding)
	}
	if err != nil {
		return nil, err
	}
	return store(l, elements), nil
}

func expectBytes(data []byte, expected uint64) error {
	if uint64(len(data)) != expected {
		return fmt.Errorf("%d encoded bytes, expected %d", len(data), expected)
	}
	return nil
}

func decodeHalves(l layout, data []byte, widen func(uint16) float32) ([]float32, error) {
	if err := expectBytes(data, 2*l.elements); err != nil {
		return nil, err
	}
	elements := make([]float32, l.elements)
	for i := range elements {
		elements[i] = widen(binary.LittleEndian.Uint16(data[2*i:]))
		if !isFinite(elements[i]) {
			return nil, fmt.Errorf("element %d is %v", i, elements[i])
		}
	}
	return elements, nil
}

func decodeInt8(l layout, data []byte) ([]float32, error) {
	var numRows uint64
	for _, t := range l.tensors {
		rows, _ := t.rows()
		numRows += rows
	}
	if err := expectBytes(data, 4*numRows+l.elements); err != nil {
		return nil, err
	}
	scales, bytes := data[:4*numRows], data[4*numRows:]
	elements := make([]float32, 0, l.elements)
	for _, t := range l.tensors {
		rows, columns := t.rows()
		for ; rows > 0; rows-- {
			scale := math.Float32frombits(binary.LittleEndian.Uint32(scales))
			if !(scale >= 0 && scale <= maxInt8Scale) {
				return nil, fmt.Errorf("a scale is %v, expected 0 to %v", scale, maxInt8Scale)
			}
			for _, b := range bytes[:columns] {
				if int8(b) == -128 {
					return nil, fmt.Errorf("element %d is -128, expected -127 to 127", len(elements))
				}
				elements = append(elements, scale*float32(int8(b)))
			}
			scales, bytes = scales[4:], bytes[columns:]
		}
	}
	return elements, nil
}

func decodeTopk(l layout, data []byte) ([]float32, error) {
	kept := uint64(len(data)) / 8
	if len(data)%8 != 0 || kept > (l.elements+1)/2 {
		return nil, fmt.Errorf("%d encoded bytes, expected a multiple of 8, at most %d", len(data), (l.elements+1)/2*8)
	}
	elements := make([]float32, l.elements)
	least := uint64(0)
	for j := uint64(0); j < kept; j++ {
		index := uint64(binary.LittleEndian.Uint32(data[4*j:]))
		if index < least || index >= l.elements {
			return nil, fmt.Errorf("index %d, expected %d to %d", index, least, int64(l.elements)-1)
		}
		least = index + 1
		elements[index] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*(kept+j):]))
		if !isFinite(elements[index]) {
			return nil, fmt.Errorf("element %d is %v", index, elements[index])
		}
	}
	return elements, nil
}

func isFinite(x float32) bool {
	return math.Float32bits(x)&0x7f800000 != 0x7f800000
}

// store writes elements to a component's bytes, each element in its tensor's dtype. Padding is 0.
func store(l layout, elements []float32) []byte {
	data := make([]byte, l.numBytes)
	for _, t := range l.tensors {
		at := data[t.offset:]
		for _, x := range elements[:t.elements] {
			switch t.dtype {
			case pb.ElementType_ELEMENT_TYPE_FLOAT16:
				binary.LittleEndian.PutUint16(at, toFloat16(x))
			case pb.ElementType_ELEMENT_TYPE_BFLOAT16:
				binary.LittleEndian.PutUint16(at, toBfloat16(x))
			case pb.ElementType_ELEMENT_TYPE_FLOAT32:
				binary.LittleEndian.PutUint32(at, math.Float32bits(x))
			case pb.ElementType_ELEMENT_TYPE_FLOAT64:
				binary.LittleEndian.PutUint64(at, math.Float64bits(float64(x)))
			}
			at = at[elementBytes(t.dtype):]
		}
		elements = elements[t.elements:]
	}
	return data
}

func fromBfloat16(bits uint16) float32 {
	return math.Float32frombits(uint32(bits) << 16)
}

func fromFloat16(bits uint16) float32 {
	magnitude := float32(0)
	exponent, mantissa := uint32(bits>>10&0x1f), uint32(bits&0x3ff)
	switch exponent {
	case 0: // a denormal: a multiple of 2^-24
		magnitude = float32(math.Ldexp(float64(mantissa), -24))
	case 0x1f: // infinity or NaN
		magnitude = math.Float32frombits(0x7f800000 | mantissa<<13)
	default:
		magnitude = math.Float32frombits((exponent+127-15)<<23 | mantissa<<13)
	}
	return math.Float32frombits(math.Float32bits(magnitude) | uint32(bits&0x8000)<<16)
}

// toBfloat16 rounds a finite number to nearest, ties to even; a number that is too large becomes the largest one.
func toBfloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	magnitude := bits & 0x7fffffff
	rounded := (magnitude + 0x7fff + magnitude>>16&1) >> 16
	if rounded > 0x7f7f {
		rounded = 0x7f7f
	}
	return uint16(bits>>16&0x8000 | rounded)
}

// toFloat16 rounds a finite number to nearest, ties to even; a number that is too large becomes the largest one.
func toFloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	sign, magnitude := uint16(bits>>16&0x8000), float64(math.Float32frombits(bits&0x7fffffff))
	_, exponent := math.Frexp(magnitude) // magnitude is below 2^exponent, and at least half of that
	if exponent < -13 || magnitude == 0 {
		exponent = -13 // denormals have the spacing of the smallest normal numbers
	}
	spacing := exponent - 11
	steps := uint32(math.RoundToEven(math.Ldexp(magnitude, -spacing)))
	// Normal numbers have 2^10 to 2^11 steps; 2^10 steps add one to the exponent.
	rounded := uint32(exponent+13)<<10 + steps
	if rounded > 0x7bff {
		rounded = 0x7bff
	}
	return sign | uint16(rounded)
}
