package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "fedmtl-go/fedmtlpb"
)

// download gets a slice, checks it, and continues with what an earlier attempt left in parts.
func download(ctx context.Context, stub pb.FederatedMtlServiceClient, request *pb.GetSliceRequest, parts *assembler) (
	*pb.SliceHeader, []component, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the call after an early return
	request.Held = parts.held()
	stream, err := stub.GetSlice(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	opening, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	header := opening.GetHeader()
	if header == nil {
		return nil, nil, errors.New("expected a header first in the slice's stream")
	}
	if err := parts.begin(header); err != nil {
		return nil, nil, err
	}
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			components, err := parts.finish()
			return header, components, err
		}
		if err != nil {
			return nil, nil, err
		}
		chunk := message.GetChunk()
		if chunk == nil {
			return nil, nil, errors.New("expected a chunk after the header in the slice's stream")
		}
		if err := parts.add(chunk); err != nil {
			return nil, nil, err
		}
	}
}

// resume sets the start_offset of an update's components to the number of bytes that the server has.
func resume(ctx context.Context, stub pb.FederatedMtlServiceClient, header *pb.UpdateHeader) error {
	answer, err := stub.QueryUpload(ctx, &pb.QueryUploadRequest{
		RunId: header.RunId, ClientId: header.ClientId, UpdateId: header.UpdateId,
	})
	if err != nil {
		return err
	}
	for _, c := range header.Components {
		c.StartOffset = 0
		for _, staged := range answer.Components {
			if staged.Scope == c.Scope {
				c.StartOffset = staged.NumBytes
			}
		}
		if c.StartOffset > c.EncodedBytes {
			return fmt.Errorf("%s: the server has %d of %d bytes", c.Scope, c.StartOffset, c.EncodedBytes)
		}
	}
	return nil
}

// upload sends an update: the bytes of each component from its start_offset. An update that is sent again with the same
// update_id counts once.
func upload(ctx context.Context, stub pb.FederatedMtlServiceClient, header *pb.UpdateHeader, components []component) (
	*pb.PushUpdateResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := stub.PushUpdate(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.PushUpdateRequest{Part: &pb.PushUpdateRequest_Header{Header: header}})
	if err == nil && len(components) > 0 {
		_, err = stream.Header() // arrives when the server has room for the chunks
	}
	for i, c := range components {
		size := uint64(len(c.data))
		for offset := header.Components[i].StartOffset; err == nil && offset < size; offset += maxChunkBytes {
			part := &pb.PushUpdateRequest_Chunk{Chunk: c.nextChunk(offset)}
			err = stream.Send(&pb.PushUpdateRequest{Part: part})
		}
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	return stream.CloseAndRecv() // after an io.EOF the call is over, and this returns the reason
}
