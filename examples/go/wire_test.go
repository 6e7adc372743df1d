package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	pb "fedmtl-go/fedmtlpb"
)

// headerOf announces one component of float32 numbers.
func headerOf(data []byte) *pb.SliceHeader {
	sum := sha256.Sum256(data)
	numBytes := uint64(len(data))
	return &pb.SliceHeader{Components: []*pb.Component{{
		Scope: "shared", NumBytes: numBytes, EncodedBytes: numBytes, Digest: sum[:],
		Encoding: pb.Encoding_ENCODING_FLOAT32,
		Tensors: []*pb.TensorSpec{{
			Name: "a", Dtype: pb.ElementType_ELEMENT_TYPE_FLOAT32, Shape: []uint64{numBytes / 4},
		}},
	}}}
}

func sliceOf(t *testing.T, data []byte) *assembler {
	t.Helper()
	a := &assembler{}
	if err := a.begin(headerOf(data)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAComponentIsCutAndPutTogetherAgain(t *testing.T) {
	data := make([]byte, 2*maxChunkBytes+4)
	data[0], data[len(data)-1] = 1, 2
	a := sliceOf(t, data)
	whole := component{a.arrivals[0].layout, data}
	if last := whole.nextChunk(2 * maxChunkBytes); len(last.Data) != 4 {
		t.Fatalf("the last chunk has %d bytes", len(last.Data))
	}
	for offset := uint64(0); offset < uint64(len(data)); offset += maxChunkBytes {
		if err := a.add(whole.nextChunk(offset)); err != nil {
			t.Fatal(err)
		}
	}
	components, err := a.finish()
	if err != nil || !bytes.Equal(components[0].data, data) {
		t.Fatalf("it isn't what was cut: %v", err)
	}
}

func TestADownloadGoesOnWithWhatIsHere(t *testing.T) {
	data := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	a := sliceOf(t, data)
	if err := a.add(newChunk("shared", 0, data[:6])); err != nil {
		t.Fatal(err)
	}
	if held := a.held(); len(held) != 1 || held[0].NumBytes != 6 {
		t.Fatalf("held: %v", held)
	}
	header := headerOf(data)
	header.Components[0].StartOffset = 4 // the server may go back a little
	if err := a.begin(header); err != nil {
		t.Fatal(err)
	}
	if err := a.add(newChunk("shared", 4, data[4:])); err != nil {
		t.Fatal(err)
	}
	if components, err := a.finish(); err != nil || !bytes.Equal(components[0].data, data) {
		t.Fatalf("it isn't the whole: %v", err)
	}
	other := headerOf([]byte{8, 7, 6, 5, 4, 3, 2, 1})
	other.Components[0].StartOffset = 4
	if err := a.begin(other); err == nil {
		t.Error("another version continues with these bytes")
	}
}

func TestDamagedBytesAreWorthAskingForAgain(t *testing.T) {
	data := []byte{1, 2, 3, 4}
	chunk := newChunk("shared", 0, []byte{1, 2, 3, 5})
	chunk.Crc32C++
	if err := sliceOf(t, data).add(chunk); !errors.Is(err, errDamaged) {
		t.Errorf("a chunk that contradicts its checksum: %v", err)
	}
	a := sliceOf(t, data)
	if err := a.add(newChunk("shared", 0, []byte{1, 2, 3, 5})); err != nil {
		t.Fatal(err)
	}
	if _, err := a.finish(); !errors.Is(err, errDamaged) {
		t.Errorf("bytes that contradict the digest: %v", err)
	}
}

func TestChunksThatDoNotFitAreRefused(t *testing.T) {
	data := make([]byte, 8)
	compressed := newChunk("shared", 0, data)
	compressed.UncompressedBytes = 8
	for name, chunk := range map[string]*pb.Chunk{
		"unknown component": newChunk("task:qqp", 0, data),
		"empty":             newChunk("shared", 0, nil),
		"gap":               newChunk("shared", 4, data[:4]),
		"too long":          newChunk("shared", 0, make([]byte, 12)),
		"compressed":        compressed,
	} {
		if err := sliceOf(t, data).add(chunk); err == nil || errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sliceOf(t, data).finish(); err == nil {
		t.Error("bytes are missing, and nobody says so")
	}
}

func TestATableOfContentsThatMakesNoSenseIsRefused(t *testing.T) {
	float32s := pb.ElementType_ELEMENT_TYPE_FLOAT32
	for name, spec := range map[string]*pb.TensorSpec{
		"offset":       {Name: "a", Dtype: float32s, Shape: []uint64{1}, Offset: 4},
		"element type": {Name: "a", Shape: []uint64{1}},
		"size":         {Name: "a", Dtype: float32s, Shape: []uint64{1 << 32, 1 << 32}},
	} {
		if _, err := readLayout("shared", []*pb.TensorSpec{spec}); err == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
}
