/** What a program needs to call a ditmesh coordinator: a connection, tensors, errors. */

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { TensorChunk__Output as TensorChunk } from './generated/ditmesh/v1/TensorChunk.js';
import type { TensorSpec__Output as TensorSpec } from './generated/ditmesh/v1/TensorSpec.js';
import type { TensorsNeeded__Output as TensorsNeeded } from './generated/ditmesh/v1/TensorsNeeded.js';
import type { ProtoGrpcType as RpcProto } from './generated/google_rpc.js';
import type { ProtoGrpcType as PipelineProto } from './generated/pipeline.js';
import type { ProtoGrpcType as SamplerProto } from './generated/sampler.js';

const folder = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const files = ['ditmesh/v1/pipeline.proto', 'ditmesh/v1/sampler.proto', 'google_rpc.proto'];
// The options are those of the "types" script in package.json: values must be what the types say.
const definition = loadSync(files, {
  keepCase: true, longs: String, enums: String, oneofs: true, defaults: true,
  includeDirs: [folder('../../../proto'), folder('../../proto')],
});
type Protos = PipelineProto & SamplerProto & RpcProto;
const { ditmesh, google } = grpc.loadPackageDefinition(definition) as unknown as Protos;

/** The services. `ca`: PEM file of the server's authority; without it nothing is encrypted. */
export function connect(address: string, ca?: string, token?: string) {
  const tls = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
  const metadata = new grpc.Metadata();
  if (token) metadata.set('authorization', `Bearer ${token}`);
  return {
    pipeline: new ditmesh.v1.PipelineService(address, tls),
    sampler: new ditmesh.v1.SamplerService(address, tls),
    metadata,
  };
}

/** Tensors as they came, in pieces that can go up again should the server ask. */
export class Tensors {
  readonly chunks: TensorChunk[] = [];

  constructor(readonly specs: TensorSpec[] = []) {}

  needed = (message?: TensorsNeeded | null) =>
    (message?.tensors ?? []).flatMap((index) => this.chunks.filter((c) => c.tensor === index));
}

/** Writes, and waits while the stream is full: memory stays small however slow the server is. */
export async function send<T>(stream: Writable & { write(message: T): boolean }, message: T) {
  if (!stream.write(message)) await once(stream, 'drain');
}

/** A failed call in words: its code and sentence, then each of its details. */
export function explain(error: grpc.ServiceError): string {
  const [bytes] = error.metadata.get('grpc-status-details-bin') as Buffer[];
  const details = bytes ? google.rpc.Status.deserialize(bytes).details : [];
  const readable = details.map(({ type_url, value }) => {
    const type = google.rpc[type_url.split('.').pop() as keyof typeof google.rpc];
    return type ? JSON.stringify(type.deserialize(value)) : type_url;
  });
  return [`${grpc.status[error.code]}: ${error.details}`, ...readable].join('\n');
}
