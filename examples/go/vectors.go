package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "fedmtl-go/fedmtlpb"
)

// hexBytes are bytes that are hexadecimal in JSON.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

type chunkCase struct {
	Name              string   `json:"name"`
	Scope             string   `json:"scope"`
	Offset            uint64   `json:"offset"`
	Data              hexBytes `json:"data_hex"`
	Crc32c            string   `json:"crc32c"`
	UncompressedBytes uint32   `json:"uncompressed_bytes"`
	Message           hexBytes `json:"message_hex"`
}

type encodingCase struct {
	Name    string `json:"name"`
	Tensors []struct {
		Name   string   `json:"name"`
		Dtype  string   `json:"dtype"`
		Shape  []uint64 `json:"shape"`
		Offset uint64   `json:"offset"`
	} `json:"tensors"`
	Encoding string   `json:"encoding"`
	Encoded  hexBytes `json:"encoded_hex"`
	Decoded  hexBytes `json:"decoded_hex"`
}

// checkVectors checks this client's reading and writing against the golden vectors in a folder.
func checkVectors(folder string) error {
	var chunks struct{ Cases []chunkCase }
	var encodings struct{ Cases []encodingCase }
	if err := readJSON(filepath.Join(folder, "chunks.json"), &chunks); err != nil {
		return err
	}
	if err := readJSON(filepath.Join(folder, "encodings.json"), &encodings); err != nil {
		return err
	}
	for _, c := range chunks.Cases {
		if err := c.check(); err != nil {
			return fmt.Errorf("chunks.json: %s: %w", c.Name, err)
		}
	}
	for _, c := range encodings.Cases {
		if err := c.check(); err != nil {
			return fmt.Errorf("encodings.json: %s: %w", c.Name, err)
		}
	}
	logf("%d vectors passed", len(chunks.Cases)+len(encodings.Cases))
	return nil
}

func readJSON(path string, into interface{}) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// check reads the message as part of a download and as part of an upload, and writes it again.
func (c chunkCase) check() error {
	expected := newChunk(c.Scope, c.Offset, c.Data)
	expected.UncompressedBytes = c.UncompressedBytes
	if sum := fmt.Sprintf("%08x", expected.Crc32C); sum != c.Crc32c {
		return fmt.Errorf("CRC32C is %s, expected %s", sum, c.Crc32c)
	}
	var response pb.GetSliceResponse
	var request pb.PushUpdateRequest
	for _, message := range []proto.Message{&response, &request} {
		if err := proto.Unmarshal(c.Message, message); err != nil {
			return err
		}
	}
	for _, chunk := range []*pb.Chunk{response.GetChunk(), request.GetChunk()} {
		if !proto.Equal(chunk, expected) {
			return fmt.Errorf("the message says %v, expected %v", chunk, expected)
		}
		if err := verify(chunk); err != nil {
			return err
		}
	}
	written, err := proto.Marshal(&pb.PushUpdateRequest{Part: &pb.PushUpdateRequest_Chunk{Chunk: expected}})
	if err == nil && !bytes.Equal(written, c.Message) {
		err = fmt.Errorf("it is written as %x, expected %x", written, []byte(c.Message))
	}
	return err
}

// check decodes the encoded bytes.
func (c encodingCase) check() error {
	var specs []*pb.TensorSpec
	for _, t := range c.Tensors {
		dtype := pb.ElementType(pb.ElementType_value["ELEMENT_TYPE_"+strings.ToUpper(t.Dtype)])
		specs = append(specs, &pb.TensorSpec{Name: t.Name, Dtype: dtype, Shape: t.Shape, Offset: t.Offset})
	}
	l, err := readLayout("shared", specs)
	if err != nil {
		return err
	}
	encoding, known := pb.Encoding_value["ENCODING_"+strings.ToUpper(c.Encoding)]
	if !known {
		return fmt.Errorf("unknown encoding %q", c.Encoding)
	}
	decoded, err := decode(l, pb.Encoding(encoding), c.Encoded)
	if err == nil && !bytes.Equal(decoded, c.Decoded) {
		err = fmt.Errorf("decoded to %x, expected %x", decoded, []byte(c.Decoded))
	}
	return err
}
