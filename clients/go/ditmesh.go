package main

import (
	"fmt"
	"io"
	"os"

	pb "ditmesh/v1"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // so that error details can be read
	"google.golang.org/grpc/status"
)

// tensors as they came, in pieces that can go up again should the server ask.
type tensors struct {
	specs  []*pb.TensorSpec
	chunks []*pb.TensorChunk
}

// upload sends what the server lacks. Sending waits while the stream is full: memory stays small.
func (t *tensors) upload(needed *pb.TensorsNeeded, send func(*pb.TensorChunk) error) {
	uploaded := 0
	for _, index := range needed.GetTensors() {
		for _, chunk := range t.chunks {
			// When it fails, the call has failed, and receiving says why.
			if chunk.Tensor == index && send(chunk) == nil {
				uploaded += len(chunk.Data)
				fmt.Println("uploaded", uploaded, "bytes")
			}
		}
	}
}

// must ends the program if a call failed: its code and sentence, then each of its details.
func must[T any](value T, err error) T {
	if err != nil {
		failed := status.Convert(err)
		fmt.Fprintf(os.Stderr, "code %d: %s\n", failed.Code(), failed.Message())
		for _, detail := range failed.Details() {
			fmt.Fprintln(os.Stderr, detail)
		}
		os.Exit(1)
	}
	return value
}

// each calls react with every response until the stream ends.
func each[R any](receive func() (R, error), react func(R)) {
	response, err := receive()
	for ; err != io.EOF; response, err = receive() {
		react(must(response, err))
	}
}
