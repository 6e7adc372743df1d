/** Checks this client's codec against the golden vectors of tests/vectors. */

import { readFileSync } from "node:fs";
import { join } from "node:path";

import { decompress } from "fzstd";

import { chunkAt, crc32c, hex } from "./chunks.js";
import { type Component, FederatedMtlService, type TensorSpec } from "./contract.js";
import { decode } from "./encodings.js";
import { UnexpectedError } from "./errors.js";

type ChunkCase = {
  name: string;
  scope: string;
  offset: number;
  data_hex: string;
  crc32c: string;
  uncompressed_bytes: number;
  encoded_hex: string;
  message_hex: string;
};

type EncodingCase = {
  name: string;
  tensors: { name: string; dtype: string; shape: number[]; offset: number }[];
  encoding: string;
  encoded_hex: string;
  decoded_hex: string;
};

const { GetSlice, PushUpdate } = FederatedMtlService.service;

/**
 * Check all vectors of a folder.
 *
 * @returns the number of vectors.
 * @throws UnexpectedError a vector differs or can't be read.
 */
export function checkVectors(folder: string): number {
  const chunks = casesIn<ChunkCase>(folder, "chunks.json");
  const encodings = casesIn<EncodingCase>(folder, "encodings.json");
  chunks.forEach(checkChunk);
  encodings.forEach(checkEncoding);
  return chunks.length + encodings.length;
}

/** Check that a message reads as its chunk in both directions, and that an uncompressed chunk gives the same bytes. */
function checkChunk(vector: ChunkCase): void {
  const { name, scope, offset } = vector;
  const message = bytesOf(vector.message_hex);
  for (const { chunk } of [GetSlice.responseDeserialize(message), PushUpdate.requestDeserialize(message)]) {
    requireSame(name, "scope", chunk?.scope, scope);
    requireSame(name, "offset", chunk?.offset, offset);
    requireSame(name, "data", chunk?.data.toString("hex"), vector.data_hex);
    requireSame(name, "crc32c", chunk && hex(chunk.crc32c), vector.crc32c);
    requireSame(name, "uncompressed_bytes", chunk?.uncompressedBytes, vector.uncompressed_bytes);
  }
  const data = bytesOf(vector.data_hex);
  requireSame(name, "the checksum of its data", hex(crc32c(data)), vector.crc32c);
  const encoded = vector.uncompressed_bytes > 0 ? decompress(data) : data;
  requireSame(name, "encoded bytes", Buffer.from(encoded).toString("hex"), vector.encoded_hex);
  if (vector.uncompressed_bytes === 0) {
    const whole = Buffer.concat([Buffer.alloc(offset), data]);
    const written = PushUpdate.requestSerialize({ chunk: chunkAt(scope, offset, whole) });
    requireSame(name, "message", written.toString("hex"), vector.message_hex);
  }
}

function checkEncoding(vector: EncodingCase): void {
  const component = {
    scope: vector.name,
    tensors: vector.tensors.map((tensor) => {
      return { ...tensor, dtype: `ELEMENT_TYPE_${tensor.dtype.toUpperCase()}` } as TensorSpec;
    }),
    numBytes: vector.decoded_hex.length / 2,
    encoding: `ENCODING_${vector.encoding.toUpperCase()}` as Component["encoding"],
  };
  const decoded = decode(component, Uint8Array.from(bytesOf(vector.encoded_hex)));
  requireSame(vector.name, "decoded bytes", Buffer.from(decoded).toString("hex"), vector.decoded_hex);
}

function casesIn<T>(folder: string, file: string): T[] {
  const path = join(folder, file);
  try {
    return (JSON.parse(readFileSync(path, "utf8")) as { cases: T[] }).cases;
  } catch (error) {
    throw new UnexpectedError(`can't read ${path}: ${(error as Error).message}`);
  }
}

function bytesOf(digits: string): Buffer {
  return Buffer.from(digits, "hex");
}

function requireSame(name: string, what: string, got: unknown, expected: unknown): void {
  if (got !== expected) throw new UnexpectedError(`vector "${name}": ${what}: expected ${expected}, got ${got}`);
}
