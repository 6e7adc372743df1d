package main

import (
	"context"
	"errors"
	"io"

	pb "fedmtl-go/fedmtlpb"
)

// download gets a slice from its first byte, and checks it.
func download(ctx context.Context, stub pb.FederatedMtlServiceClient, request *pb.GetSliceRequest) (
	*pb.SliceHeader, []component, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the call where it is left early
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
	parts, err := newAssembler(header)
	if err != nil {
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

// upload sends an update from its first byte. Sent again with the same header it counts once.
func upload(ctx context.Context, stub pb.FederatedMtlServiceClient, header *pb.UpdateHeader, components []component) (
	*pb.PushUpdateResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := stub.PushUpdate(ctx)
	if err != nil {
		return nil, err
	}
	part := &pb.PushUpdateRequest_Header{Header: header}
	// io.EOF means that the call is over, and CloseAndRecv says why.
	if err := stream.Send(&pb.PushUpdateRequest{Part: part}); err != nil && err != io.EOF {
		return nil, err
	}
	if len(components) > 0 {
		if _, err := stream.Header(); err != nil { // comes when the server has room for the chunks
			return nil, err
		}
	}
	for _, c := range components {
		for _, chunk := range cut(c.layout.scope, c.data) {
			err := stream.Send(&pb.PushUpdateRequest{Part: &pb.PushUpdateRequest_Chunk{Chunk: chunk}})
			if err == io.EOF {
				return stream.CloseAndRecv()
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return stream.CloseAndRecv()
}
