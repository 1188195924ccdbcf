// From a prompt to a PNG file. Ctrl-C cancels the job.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	pb "ditmesh/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

var (
	address  = flag.String("address", "localhost:50050", "")
	ca       = flag.String("ca", "", "PEM file; without it nothing is encrypted")
	deadline = flag.Uint("deadline", 60, "seconds")
	model    = flag.String("model", "pixel-portraits", "")
	prompt   = flag.String("prompt", "", "")
	output   = flag.String("output", "picture.png", "")
	size     = flag.Uint("size", 128, "pixels of a side")
	steps    = flag.Uint("steps", 8, "")
	seed     = flag.Uint64("seed", 0, "")
)

func encode(ctx context.Context, server pb.PipelineServiceClient) (
	inputs tensors, positive *pb.Conditioning) {
	request := &pb.EncodePromptRequest{Model: *model, Prompt: *prompt}
	each(must(server.EncodePrompt(ctx, request)).Recv, func(response *pb.EncodePromptResponse) {
		if chunk := response.GetChunk(); chunk != nil {
			inputs.chunks = append(inputs.chunks, chunk)
		} else if encoded := response.GetEncoded(); encoded != nil {
			inputs.specs, positive = encoded.Tensors, encoded.Conditioning
		}
	})
	return
}

// sample runs the job. The specs carry hashes: the server still has the prompt's tensors.
func sample(call pb.SamplerService_SampleClient, job *pb.JobSpec, inputs tensors) (latent tensors) {
	var writing sync.Mutex // one Send at a time; a Recv may run beside it
	send := func(request *pb.SampleRequest) error {
		writing.Lock()
		defer writing.Unlock()
		return call.Send(request)
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		signal.Stop(interrupted) // the second time it ends the program
		send(&pb.SampleRequest{Message: &pb.SampleRequest_Cancel{Cancel: &pb.CancelJob{}}})
	}()
	send(&pb.SampleRequest{Message: &pb.SampleRequest_Job{Job: job}})
	each(call.Recv, func(response *pb.SampleResponse) {
		inputs.upload(response.GetNeeded(), func(chunk *pb.TensorChunk) error {
			return send(&pb.SampleRequest{Message: &pb.SampleRequest_Chunk{Chunk: chunk}})
		})
		switch message := response.Message.(type) {
		case *pb.SampleResponse_Accepted:
			fmt.Println("job", message.Accepted.JobId)
		case *pb.SampleResponse_Progress:
			fmt.Printf("step %d/%d\n", message.Progress.Step, message.Progress.Steps)
		case *pb.SampleResponse_Result:
			latent.specs = message.Result.Tensors // one: no state was asked for
		case *pb.SampleResponse_Chunk:
			latent.chunks = append(latent.chunks, message.Chunk)
		}
		for _, note := range response.GetSummary().GetFallbacks() {
			fmt.Printf("fallback to %s: %s\n", note.Target, note.Message)
		}
	})
	return
}

func decode(call pb.PipelineService_DecodeLatentClient, latent tensors) (png []byte) {
	wanted := pb.LatentToDecode{
		Model: *model, Latent: latent.specs[0], Format: pb.ImageFormat_IMAGE_FORMAT_PNG}
	call.Send(&pb.DecodeLatentRequest{Message: &pb.DecodeLatentRequest_Latent{Latent: &wanted}})
	each(call.Recv, func(response *pb.DecodeLatentResponse) {
		latent.upload(response.GetNeeded(), func(chunk *pb.TensorChunk) error {
			piece := &pb.DecodeLatentRequest_Chunk{Chunk: chunk}
			return call.Send(&pb.DecodeLatentRequest{Message: piece})
		})
		png = append(png, response.GetChunk().GetData()...)
	})
	return
}

func main() {
	flag.Parse()
	limit := time.Duration(*deadline) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if token, found := os.LookupEnv("DITMESH_TOKEN"); found {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	encryption := grpc.WithInsecure()
	if *ca != "" {
		encryption = grpc.WithTransportCredentials(must(credentials.NewClientTLSFromFile(*ca, "")))
	}
	connection := must(grpc.Dial(*address, encryption, asProto))
	pipeline := pb.NewPipelineServiceClient(connection)
	sampler := pb.NewSamplerServiceClient(connection)
	inputs, positive := encode(ctx, pipeline)
	cells := uint32(*size / 8) // Flux; ClusterService tells it of any model
	latent := sample(must(sampler.Sample(ctx)), &pb.JobSpec{
		Model: *model, Sampler: "euler", Seed: *seed, Positive: positive, Tensors: inputs.specs,
		Schedule: &pb.Schedule{Kind: &pb.Schedule_Named{
			Named: &pb.NamedSchedule{Scheduler: "simple", Steps: uint32(*steps)}}},
		Latent: &pb.JobSpec_EmptyLatent{
			EmptyLatent: &pb.EmptyLatent{Batch: 1, Height: cells, Width: cells}},
	}, inputs)
	png := decode(must(pipeline.DecodeLatent(ctx)), latent)
	must(0, os.WriteFile(*output, png, 0o666))
}
