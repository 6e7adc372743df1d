/** Cuts encoded bytes into chunks, and assembles chunks (docs/wire.md, Chunks), without a socket. */

import type { Chunk, Component } from "./contract.js";
import { DamagedError, UnexpectedError } from "./errors.js";

export const MAX_CHUNK_BYTES = 2 * 1024 * 1024;

const CRC32C_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

/** CRC32C (Castagnoli) of some bytes. One table, at about 0.4 GB/s, is enough for an example. */
export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < data.length; i++) crc = CRC32C_TABLE[(crc ^ data[i]!) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** The chunk that begins at a byte of the encoded form. protobufjs writes every field that is set, so 0 is left unset. */
export function chunkAt(scope: string, offset: number, encoded: Uint8Array) {
  const data = encoded.subarray(offset, offset + MAX_CHUNK_BYTES) as Buffer; // protobufjs accepts any Uint8Array
  return { scope, offset: offset || undefined, data, crc32c: crc32c(data) };
}

/** One component of a download in progress, from as many streams as necessary. */
export class ArrivingComponent {
  /** The encoded form; its first `numArrived` bytes have arrived. */
  readonly encoded: Uint8Array<ArrayBuffer>;
  numArrived = 0;

  constructor(public header: Component) {
    this.encoded = new Uint8Array(header.encodedBytes);
  }

  /** Whether a later stream's header is for the same bytes, so that the bytes that have arrived stay valid. */
  isContinuedBy(header: Component): boolean {
    return (
      header.digest.equals(this.header.digest) &&
      header.encoding === this.header.encoding &&
      header.encodedBytes === this.header.encodedBytes
    );
  }

  /** Read a stream's header: the stream's chunks begin at `startOffset`. */
  continueFrom(header: Component): void {
    if (header.startOffset > this.numArrived) {
      throw new UnexpectedError(
        `${header.scope}: the server continues at byte ${header.startOffset}, but only ${this.numArrived} are here`,
      );
    }
    this.header = header;
    this.numArrived = header.startOffset;
  }

  /** Check the next chunk, and copy it to its place. */
  add(chunk: Chunk): void {
    const { scope, offset, data } = chunk;
    const end = offset + data.length;
    if (data.length === 0 || offset !== this.numArrived || end > this.encoded.length) {
      throw new UnexpectedError(
        `${scope}: a chunk of bytes ${offset} to ${end}, expected byte ${this.numArrived} next of ${this.encoded.length}`,
      );
    }
    if (data.length > MAX_CHUNK_BYTES || chunk.uncompressedBytes !== 0) {
      throw new UnexpectedError(`${scope}: a chunk at byte ${offset} is too large, or compressed, which wasn't asked for`);
    }
    const crc = crc32c(data);
    if (crc !== chunk.crc32c) {
      throw new DamagedError(`${scope}: the chunk at byte ${offset} has CRC32C ${hex(crc)}, expected ${hex(chunk.crc32c)}`);
    }
    this.encoded.set(data, offset);
    this.numArrived = end;
  }
}

/** A checksum in hexadecimal. */
export function hex(crc: number): string {
  return crc.toString(16).padStart(8, "0");
}
