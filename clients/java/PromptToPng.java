import com.google.protobuf.DynamicMessage;
import ditmesh.v1.*;
import google.rpc.GoogleRpc;
import io.grpc.*;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.MetadataUtils;
import java.io.*;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.*;

/** From a prompt to a PNG file. Ctrl-C cancels the job. */
public final class PromptToPng {
  static final Map<String, String> options = new HashMap<>(Map.of(
      "--address", "localhost:50050", "--ca", "", "--deadline", "60", "--model", "pixel-portraits",
      "--prompt", "", "--output", "picture.png", "--size", "128", "--steps", "8", "--seed", "0"));

  /** Tensors as they came, in pieces that can go up again should the server ask. */
  record Tensors(List<TensorSpec> specs, List<TensorChunk> chunks) {
    void upload(TensorsNeeded needed, Consumer<TensorChunk> send) {
      long uploaded = 0;
      for (int index : needed.getTensorsList())
        for (TensorChunk chunk : chunks)
          if (chunk.getTensor() == index) {
            send.accept(chunk);
            System.out.println("uploaded " + (uploaded += chunk.getData().size()) + " bytes");
          }
    }
  }

  static EncodedPrompt encode(PipelineServiceGrpc.PipelineServiceStub server, Tensors inputs)
      throws Throwable {
    var call = new Call<EncodePromptRequest, EncodePromptResponse>();
    server.encodePrompt(EncodePromptRequest.newBuilder().setModel(options.get("--model"))
        .setPrompt(options.get("--prompt")).build(), call);
    var found = new EncodedPrompt[1];
    call.each(answer -> {
      if (answer.hasChunk()) inputs.chunks.add(answer.getChunk());
      else found[0] = answer.getEncoded();
    });
    inputs.specs.addAll(found[0].getTensorsList());
    return found[0];
  }

  /** The specs carry hashes: the server still has the prompt's tensors, and asks for none. */
  static Tensors sample(SamplerServiceGrpc.SamplerServiceStub server, JobSpec job, Tensors inputs)
      throws Throwable {
    var call = new Call<SampleRequest, SampleResponse>();
    var latent = new Tensors(new ArrayList<>(), new ArrayList<>());
    server.sample(call);
    var program = Thread.currentThread();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      call.send(SampleRequest.newBuilder().setCancel(CancelJob.getDefaultInstance()).build());
      try {
        program.join(); // it says how the job ended, and halts
      } catch (InterruptedException error) { throw new IllegalStateException(error); }
    }));
    call.send(SampleRequest.newBuilder().setJob(job).build());
    call.each(answer -> {
      inputs.upload(answer.getNeeded(),
          chunk -> call.send(SampleRequest.newBuilder().setChunk(chunk).build()));
      if (answer.hasAccepted()) System.out.println("job " + answer.getAccepted().getJobId());
      if (answer.hasProgress())
        System.out.println("step " + answer.getProgress().getStep() + "/" + options.get("--steps"));
      if (answer.hasChunk()) latent.chunks.add(answer.getChunk());
      latent.specs.addAll(answer.getResult().getTensorsList()); // one: no state was asked for
      for (Fallback note : answer.getSummary().getFallbacksList())
        System.out.println("fallback to " + note.getTarget() + ": " + note.getMessage());
    });
    return latent;
  }

  static byte[] decode(PipelineServiceGrpc.PipelineServiceStub server, Tensors latent)
      throws Throwable {
    var call = new Call<DecodeLatentRequest, DecodeLatentResponse>();
    var png = new ByteArrayOutputStream();
    server.decodeLatent(call);
    call.send(DecodeLatentRequest.newBuilder().setLatent(LatentToDecode.newBuilder()
        .setModel(options.get("--model")).setLatent(latent.specs.get(0))
        .setFormat(ImageFormat.IMAGE_FORMAT_PNG)).build());
    call.each(answer -> {
      latent.upload(answer.getNeeded(),
          chunk -> call.send(DecodeLatentRequest.newBuilder().setChunk(chunk).build()));
      png.writeBytes(answer.getChunk().getData().toByteArray());
    });
    return png.toByteArray();
  }

  static <S extends AbstractStub<S>> S ready(S stub, Deadline deadline) {
    var metadata = new Metadata();
    var key = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    if (System.getenv("DITMESH_TOKEN") != null)
      metadata.put(key, "Bearer " + System.getenv("DITMESH_TOKEN"));
    return stub.withDeadline(deadline)
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** A failed call in words: its code and sentence, then each of its details. */
  static void explain(Throwable error) throws Exception {
    var status = Status.fromThrowable(error);
    var cause = status.getCause() == null ? "" : ", " + status.getCause().getMessage();
    System.err.println(status.getCode() + ": " + status.getDescription() + cause);
    var key = Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
    var trailers = Status.trailersFromThrowable(error);
    if (trailers == null || !trailers.containsKey(key)) return;
    for (var detail : GoogleRpc.Status.parseFrom(trailers.get(key)).getDetailsList()) {
      var name = detail.getTypeUrl().substring(detail.getTypeUrl().lastIndexOf('.') + 1);
      var type = GoogleRpc.getDescriptor().findMessageTypeByName(name);
      System.err.println(DynamicMessage.parseFrom(type, detail.getValue()));
    }
  }

  public static void main(String[] words) throws Exception {
    for (int i = 0; i + 1 < words.length; i += 2) options.put(words[i], words[i + 1]);
    var deadline = Deadline.after(Long.parseLong(options.get("--deadline")), TimeUnit.SECONDS);
    int cells = Integer.parseInt(options.get("--size")) / 8; // Flux; ClusterService tells it
    try {
      var credentials = options.get("--ca").isEmpty() ? InsecureChannelCredentials.create()
          : TlsChannelCredentials.newBuilder().trustManager(new File(options.get("--ca"))).build();
      var channel = Grpc.newChannelBuilder(options.get("--address"), credentials).build();
      var pipeline = ready(PipelineServiceGrpc.newStub(channel), deadline);
      var inputs = new Tensors(new ArrayList<>(), new ArrayList<>());
      var prompt = encode(pipeline, inputs);
      var job = JobSpec.newBuilder().setModel(options.get("--model")).setSampler("euler")
          .setSeed(Long.parseUnsignedLong(options.get("--seed")))
          .setPositive(prompt.getConditioning()).addAllTensors(inputs.specs)
          .setSchedule(Schedule.newBuilder().setNamed(NamedSchedule.newBuilder()
              .setScheduler("simple").setSteps(Integer.parseInt(options.get("--steps")))))
          .setEmptyLatent(EmptyLatent.newBuilder().setBatch(1).setHeight(cells).setWidth(cells));
      var sampler = ready(SamplerServiceGrpc.newStub(channel), deadline);
      var latent = sample(sampler, job.build(), inputs);
      Files.write(Path.of(options.get("--output")), decode(pipeline, latent));
    } catch (Throwable error) {
      explain(error);
      Runtime.getRuntime().halt(1); // not exit: that would wait for the hook, which waits for us
    }
  }
}
