// From a prompt to a PNG file. Ctrl-C cancels the job.

#include <grpcpp/grpcpp.h>

#include <csignal>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <thread>

#include "ditmesh/v1/pipeline.grpc.pb.h"
#include "ditmesh/v1/sampler.grpc.pb.h"
#include "google_rpc.pb.h"

using namespace ditmesh::v1;
std::map<std::string, std::string> options = {
    {"--address", "localhost:50050"}, {"--ca", ""}, {"--deadline", "60"}, {"--seed", "0"},
    {"--model", "pixel-portraits"}, {"--prompt", ""}, {"--steps", "8"}, {"--size", "128"},
    {"--output", "picture.png"}};
std::chrono::system_clock::time_point give_up;
std::mutex writing;  // one Write at a time; a Read may run beside it
volatile std::sig_atomic_t interrupted = 0;

struct Call : grpc::ClientContext {
  Call() {
    set_deadline(give_up);
    if (const char* token = std::getenv("DITMESH_TOKEN"))
      AddMetadata("authorization", std::string("Bearer ") + token);
  }
};

// Tensors as they came, in pieces that can go up again should the server ask.
struct Tensors {
  google::protobuf::RepeatedPtrField<TensorSpec> specs;
  std::vector<TensorChunk> chunks;
};

// Sends what the server lacks. Write waits while the stream is full, so memory stays small.
void upload(auto& stream, auto request, const Tensors& tensors, const TensorsNeeded& needed) {
  size_t uploaded = 0;
  for (unsigned index : needed.tensors())
    for (const TensorChunk& chunk : tensors.chunks) {
      *request.mutable_chunk() = chunk;
      std::lock_guard lock(writing);
      // When Write fails, the call has failed, and Finish says why.
      if (chunk.tensor() != index || !stream.Write(request)) continue;
      std::cout << "uploaded " << (uploaded += chunk.data().size()) << " bytes" << std::endl;
    }
}

std::pair<Tensors, Conditioning> encode(PipelineService::Stub& pipeline) {
  Call call;
  EncodePromptRequest request;
  request.set_model(options["--model"]);
  request.set_prompt(options["--prompt"]);
  std::pair<Tensors, Conditioning> found;
  auto stream = pipeline.EncodePrompt(&call, request);
  for (EncodePromptResponse response; stream->Read(&response);)
    if (response.has_encoded())
      found = {{response.encoded().tensors(), {}}, response.encoded().conditioning()};
    else
      found.first.chunks.push_back(response.chunk());
  if (auto status = stream->Finish(); !status.ok()) throw status;
  return found;
}

// The specs carry hashes: the server still has the prompt's tensors, and asks for none of them.
Tensors sample(SamplerService::Stub& sampler, const Tensors& inputs, const Conditioning& positive) {
  SampleRequest request;
  JobSpec& job = *request.mutable_job();
  job.set_model(options["--model"]);
  job.set_sampler("euler");
  job.set_seed(std::stoull(options["--seed"]));
  auto& schedule = *job.mutable_schedule()->mutable_named();
  schedule.set_scheduler("simple");
  schedule.set_steps(std::stoi(options["--steps"]));
  *job.mutable_positive() = positive;
  *job.mutable_tensors() = inputs.specs;
  auto& size = *job.mutable_empty_latent();
  size.set_batch(1);
  size.set_width(std::stoi(options["--size"]) / 8);  // Flux; ClusterService tells it of any model
  size.set_height(size.width());
  Call call;
  Tensors latent;
  auto stream = sampler.Sample(&call);
  stream->Write(request);
  std::jthread canceller([&](std::stop_token over) {
    while (!interrupted && !over.stop_requested())
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    request.mutable_cancel();
    if (std::lock_guard lock(writing); interrupted) stream->Write(request);
  });
  for (SampleResponse response; stream->Read(&response);) {
    upload(*stream, SampleRequest(), inputs, response.needed());
    if (response.has_accepted()) std::cout << "job " << response.accepted().job_id() << std::endl;
    if (response.has_progress())
      std::cout << "step " << response.progress().step() << "/" << options["--steps"] << std::endl;
    if (response.has_result()) latent.specs = response.result().tensors();  // one: no state asked
    if (response.has_chunk()) latent.chunks.push_back(response.chunk());
    for (const Fallback& note : response.summary().fallbacks())
      std::cout << "fallback to " << note.target() << ": " << note.message() << std::endl;
  }
  canceller.request_stop();
  canceller.join();
  if (auto status = stream->Finish(); !status.ok()) throw status;
  return latent;
}

std::string decode(PipelineService::Stub& pipeline, const Tensors& latent) {
  Call call;
  DecodeLatentRequest request;
  request.mutable_latent()->set_model(options["--model"]);
  *request.mutable_latent()->mutable_latent() = latent.specs[0];
  request.mutable_latent()->set_format(IMAGE_FORMAT_PNG);
  std::string png;
  auto stream = pipeline.DecodeLatent(&call);
  stream->Write(request);
  for (DecodeLatentResponse response; stream->Read(&response);) {
    upload(*stream, DecodeLatentRequest(), latent, response.needed());
    if (response.has_chunk()) png += response.chunk().data();
  }
  if (auto status = stream->Finish(); !status.ok()) throw status;
  return png;
}

int main(int count, char** words) try {
  for (int i = 1; i + 1 < count; i += 2) options.at(words[i]) = words[i + 1];
  give_up = std::chrono::system_clock::now() + std::chrono::seconds(stoi(options["--deadline"]));
  std::ifstream ca(options["--ca"]);
  std::string authority(std::istreambuf_iterator<char>(ca), {});
  auto channel = grpc::CreateChannel(
      options["--address"], authority.empty() ? grpc::InsecureChannelCredentials()
                                              : grpc::SslCredentials({authority, "", ""}));
  auto pipeline = PipelineService::NewStub(channel);
  auto [inputs, positive] = encode(*pipeline);
  std::signal(SIGINT, [](int signal) {
    interrupted = 1;
    std::signal(signal, SIG_DFL);  // the second time it ends the program
  });
  Tensors latent = sample(*SamplerService::NewStub(channel), inputs, positive);
  std::ofstream(options["--output"], std::ios::binary) << decode(*pipeline, latent);
} catch (const grpc::Status& status) {
  std::cerr << "code " << status.error_code() << ": " << status.error_message() << std::endl;
  google::rpc::Status found;
  found.ParseFromString(status.error_details());
  for (const auto& detail : found.details()) std::cerr << detail.ShortDebugString() << std::endl;
  return 1;
}
