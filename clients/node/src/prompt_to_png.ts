/** From a prompt to a PNG file. Ctrl-C cancels the job. */

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import type { ServiceError } from '@grpc/grpc-js';
import { connect, explain, send, Tensors } from './ditmesh.js';
import type { Conditioning } from './generated/ditmesh/v1/Conditioning.js';

const preset = (value: string) => ({ type: 'string' as const, default: value });
const { values: options } = parseArgs({ options: {
  address: preset('localhost:50050'), ca: preset(''), deadline: preset('60'),
  model: preset('pixel-portraits'), prompt: preset(''), output: preset('picture.png'),
  size: preset('128'), steps: preset('8'), seed: preset('0'),
} });
const { model, prompt, seed, output } = options;
const cells = Number(options.size) / 8; // Flux; ClusterService tells it of any model
const server = connect(options.address, options.ca, process.env['DITMESH_TOKEN']);
const deadline = Date.now() + 1000 * Number(options.deadline);

async function encode(): Promise<[Tensors, Conditioning]> {
  const call = server.pipeline.EncodePrompt({ model, prompt }, server.metadata, { deadline });
  let [tensors, conditioning]: [Tensors, Conditioning] = [new Tensors(), {}];
  for await (const { encoded, chunk } of call) {
    if (encoded) [tensors, conditioning] = [new Tensors(encoded.tensors), encoded.conditioning!];
    if (chunk) tensors.chunks.push(chunk);
  }
  return [tensors, conditioning];
}

/** The specs carry hashes: the server still has the prompt's tensors, and asks for none of them. */
async function sample(inputs: Tensors, positive: Conditioning): Promise<Tensors> {
  const call = server.sampler.Sample(server.metadata, { deadline });
  process.once('SIGINT', () => call.write({ cancel: {} }));
  await send(call, { job: {
    model, sampler: 'euler', seed, positive, tensors: inputs.specs,
    schedule: { named: { scheduler: 'simple', steps: Number(options.steps) } },
    empty_latent: { batch: 1, height: cells, width: cells },
  } });
  let [latent, uploaded] = [new Tensors(), 0];
  for await (const { needed, accepted, queue, progress, result, chunk, summary } of call) {
    for (const piece of inputs.needed(needed)) {
      await send(call, { chunk: piece });
      console.log(`uploaded ${(uploaded += piece.data.length)} bytes`);
    }
    if (accepted) console.log(`job ${accepted.job_id}, ${accepted.queue_position} before it`);
    if (queue) console.log(`${queue.position} before it`);
    if (progress) console.log(`step ${progress.step}/${progress.steps} ${progress.executor}`);
    if (result) latent = new Tensors(result.tensors); // one: no state was asked for
    if (chunk) latent.chunks.push(chunk);
    for (const note of summary?.fallbacks ?? [])
      console.log(`fallback from ${note.source} to ${note.target}: ${note.reason}, ${note.message}`);
    if (summary) call.end();
  }
  return latent;
}

async function decode(latent: Tensors): Promise<Buffer> {
  const call = server.pipeline.DecodeLatent(server.metadata, { deadline });
  await send(call, { latent: { model, latent: latent.specs[0], format: 'IMAGE_FORMAT_PNG' } });
  let pictures = new Tensors();
  for await (const { needed, images, chunk } of call) {
    for (const piece of latent.needed(needed)) await send(call, { chunk: piece });
    if (needed) call.end();
    if (images) pictures = new Tensors(images.tensors);
    if (chunk) pictures.chunks.push(chunk);
  }
  return Buffer.concat(pictures.chunks.map(({ data }) => data));
}

try {
  const png = await decode(await sample(...(await encode())));
  writeFileSync(output, png);
  console.log(`${output}: ${png.length} bytes`);
} catch (error) {
  console.error(explain(error as ServiceError));
  process.exitCode = 1;
}
