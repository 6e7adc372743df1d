package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"

	pb "fedmtl-go/fedmtlpb"
)

// maxChunkBytes is the maximum size of a chunk.
const maxChunkBytes = 2 << 20

// maxComponentBytes prevents an overflow while the sizes of an invalid table of contents are added.
const maxComponentBytes = 1 << 40

// errDamaged means that bytes were changed in transit, so that the client should ask for them again.
var errDamaged = errors.New("damaged on the way")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// tensor is one tensor and its place in its component.
type tensor struct {
	name  string
	dtype pb.ElementType
	shape []uint64
	// offset is the tensor's first byte, from the start of the component.
	offset uint64
	// elements is the product of shape; 1 for a scalar.
	elements uint64
}

// rows is the number of the tensor's rows along its last dimension, and columns the number of elements in each row.
func (t tensor) rows() (rows, columns uint64) {
	if len(t.shape) == 0 {
		return 1, 1
	}
	columns = t.shape[len(t.shape)-1]
	if columns == 0 {
		return 0, 0
	}
	return t.elements / columns, columns
}

// layout is a component's table of contents.
type layout struct {
	scope   string
	tensors []tensor
	// numBytes is the end of the last tensor; elements is the number of elements of all tensors together.
	numBytes, elements uint64
}

// isFloat32 says whether the component has only float32 numbers, which have no padding between them.
func (l layout) isFloat32() bool {
	for _, t := range l.tensors {
		if t.dtype != pb.ElementType_ELEMENT_TYPE_FLOAT32 {
			return false
		}
	}
	return true
}

// component is a component's decoded bytes with their layout.
type component struct {
	layout layout
	data   []byte
}

// elementBytes is the size of an element, or 0 for a type that this client doesn't know.
func elementBytes(dtype pb.ElementType) uint64 {
	switch dtype {
	case pb.ElementType_ELEMENT_TYPE_FLOAT16, pb.ElementType_ELEMENT_TYPE_BFLOAT16:
		return 2
	case pb.ElementType_ELEMENT_TYPE_FLOAT32:
		return 4
	case pb.ElementType_ELEMENT_TYPE_FLOAT64:
		return 8
	}
	return 0
}

// readLayout reads a table of contents, and checks that every tensor is at the place that its alignment requires.
func readLayout(scope string, specs []*pb.TensorSpec) (layout, error) {
	l := layout{scope: scope}
	for _, spec := range specs {
		size := elementBytes(spec.Dtype)
		if size == 0 {
			return layout{}, fmt.Errorf("%s: %s has the unknown element type %v", scope, spec.Name, spec.Dtype)
		}
		elements := uint64(1)
		for _, length := range spec.Shape {
			if elements != 0 && length > maxComponentBytes/elements {
				return layout{}, fmt.Errorf("%s: %s of shape %v is too large", scope, spec.Name, spec.Shape)
			}
			elements *= length
		}
		offset := (l.numBytes + size - 1) / size * size
		if spec.Offset != offset {
			return layout{}, fmt.Errorf("%s: %s begins at byte %d, expected %d", scope, spec.Name, spec.Offset, offset)
		}
		l.tensors = append(l.tensors, tensor{spec.Name, spec.Dtype, spec.Shape, offset, elements})
		l.elements += elements
		if l.numBytes = offset + elements*size; l.numBytes > maxComponentBytes {
			return layout{}, fmt.Errorf("%s: more than %d bytes", scope, uint64(maxComponentBytes))
		}
	}
	return l, nil
}

// arrival is one component of a download in progress.
type arrival struct {
	layout   layout
	encoding pb.Encoding
	digest   []byte
	// encodedBytes is the expected total size; data has the bytes that have arrived.
	encodedBytes uint64
	data         []byte
}

// readArrival reads one component of a slice's header.
func readArrival(c *pb.Component) (*arrival, error) {
	l, err := readLayout(c.Scope, c.Tensors)
	if err != nil {
		return nil, err
	}
	if c.NumBytes != l.numBytes {
		return nil, fmt.Errorf("%s: the header says %d bytes, its tensors take %d", c.Scope, c.NumBytes, l.numBytes)
	}
	if len(c.BaseDigest) != 0 {
		return nil, fmt.Errorf("%s: the server sends a difference, though none was asked for", c.Scope)
	}
	one := &arrival{layout: l, encoding: c.Encoding, digest: c.Digest, encodedBytes: c.EncodedBytes}
	if c.Encoding == pb.Encoding_ENCODING_UNSPECIFIED && c.EncodedBytes == 0 {
		one.encodedBytes = c.NumBytes
	}
	return one, nil
}

// goesOn says whether the bytes of another arrival are the first bytes of this one.
func (one *arrival) goesOn(other *arrival) bool {
	return len(one.digest) != 0 && bytes.Equal(one.digest, other.digest) && one.encoding == other.encoding &&
		one.encodedBytes == other.encodedBytes
}

// assembler assembles a slice's chunks from as many streams as necessary.
type assembler struct {
	// arrivals are in the header's order.
	arrivals []*arrival
}

// begin reads a stream's header. Bytes that the stream continues are kept. Memory is allocated for the bytes that arrive,
// not for the announced size.
func (a *assembler) begin(header *pb.SliceHeader) error {
	var next assembler
	for _, c := range header.Components {
		one, err := readArrival(c)
		if err != nil {
			return err
		}
		if next.find(c.Scope) != nil {
			return fmt.Errorf("%s: twice in one header", c.Scope)
		}
		known := a.find(c.Scope)
		if c.StartOffset > 0 {
			if known == nil || !one.goesOn(known) || c.StartOffset > uint64(len(known.data)) {
				return fmt.Errorf("%s: the server continues at byte %d, which is not here", c.Scope, c.StartOffset)
			}
			one.data = known.data[:c.StartOffset]
		}
		next.arrivals = append(next.arrivals, one)
	}
	*a = next
	return nil
}

// held returns what the server need not send again.
func (a *assembler) held() []*pb.HeldComponent {
	var held []*pb.HeldComponent
	for _, one := range a.arrivals {
		if len(one.data) > 0 {
			held = append(held, &pb.HeldComponent{
				Scope: one.layout.scope, Digest: one.digest, NumBytes: uint64(len(one.data)), Encoding: one.encoding,
			})
		}
	}
	return held
}

func (a *assembler) find(scope string) *arrival {
	for _, one := range a.arrivals {
		if one.layout.scope == scope {
			return one
		}
	}
	return nil
}

// add checks and stores one chunk, with the checks of docs/wire.md in their order.
func (a *assembler) add(chunk *pb.Chunk) error {
	one := a.find(chunk.Scope)
	if one == nil {
		return fmt.Errorf("a chunk of %q, which the header doesn't have", chunk.Scope)
	}
	here, size := uint64(len(one.data)), uint64(len(chunk.Data))
	switch {
	case size == 0:
		return fmt.Errorf("%s: an empty chunk", chunk.Scope)
	case chunk.Offset != here:
		return fmt.Errorf("%s: a chunk at byte %d, expected %d", chunk.Scope, chunk.Offset, here)
	case size > one.encodedBytes-here:
		return fmt.Errorf("%s: a chunk ends behind the component's %d bytes", chunk.Scope, one.encodedBytes)
	case size > maxChunkBytes:
		return fmt.Errorf("%s: a chunk of %d bytes, expected at most %d", chunk.Scope, size, maxChunkBytes)
	case chunk.UncompressedBytes != 0:
		return fmt.Errorf("%s: a compressed chunk, though none was asked for", chunk.Scope)
	}
	if err := verify(chunk); err != nil {
		return err
	}
	one.data = append(one.data, chunk.Data...)
	return nil
}

// finish decodes the components and checks their digests. The components are in the header's order.
func (a *assembler) finish() ([]component, error) {
	var components []component
	for _, one := range a.arrivals {
		if here := uint64(len(one.data)); here != one.encodedBytes {
			return nil, fmt.Errorf("%s: %d of %d bytes arrived", one.layout.scope, here, one.encodedBytes)
		}
		data, err := decode(one.layout, one.encoding, one.data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.layout.scope, err)
		}
		if sum := sha256.Sum256(data); len(one.digest) != 0 && !bytes.Equal(sum[:], one.digest) {
			one.data = nil // the data can't be resumed
			return nil, fmt.Errorf("%s: SHA-256 is %x, the header says %x: %w", one.layout.scope, sum, one.digest, errDamaged)
		}
		components = append(components, component{one.layout, data})
	}
	return components, nil
}

// verify checks a chunk's checksum.
func verify(chunk *pb.Chunk) error {
	if sum := crc32.Checksum(chunk.Data, castagnoli); sum != chunk.Crc32C {
		return fmt.Errorf("%s at byte %d: CRC32C is %08x, the chunk says %08x: %w",
			chunk.Scope, chunk.Offset, sum, chunk.Crc32C, errDamaged)
	}
	return nil
}

// nextChunk returns the chunk of a component that begins at an offset.
func (c component) nextChunk(offset uint64) *pb.Chunk {
	end := offset + maxChunkBytes
	if end > uint64(len(c.data)) {
		end = uint64(len(c.data))
	}
	return newChunk(c.layout.scope, offset, c.data[offset:end])
}

func newChunk(scope string, offset uint64, data []byte) *pb.Chunk {
	return &pb.Chunk{Scope: scope, Offset: offset, Data: data, Crc32C: crc32.Checksum(data, castagnoli)}
}

// toProto returns a component for an update's header, in the exact encoding and from its first byte.
func (l layout) toProto() *pb.Component {
	out := &pb.Component{
		Scope: l.scope, NumBytes: l.numBytes, Encoding: pb.Encoding_ENCODING_FLOAT32, EncodedBytes: l.numBytes,
	}
	for _, t := range l.tensors {
		out.Tensors = append(out.Tensors,
			&pb.TensorSpec{Name: t.name, Dtype: t.dtype, Shape: t.shape, Offset: t.offset})
	}
	return out
}
