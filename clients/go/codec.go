package main

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// asProto lets Debian's gRPC (1.33), which is older than its protobuf library, carry what the
// latter generates. A current gRPC needs none of this file.
var asProto = grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}))

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(bytes []byte, message interface{}) error {
	return proto.Unmarshal(bytes, message.(proto.Message))
}
