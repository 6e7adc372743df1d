/** Decodes components (docs/wire.md, Encodings). */

import type { Component, TensorSpec } from "./contract.js";
import { UnexpectedError } from "./errors.js";

const NUMBERS = new DataView(new ArrayBuffer(4));

/**
 * The bytes of a component, as its table of contents lays them out.
 *
 * @param component the layout and the encoding. The result for a difference is the difference; the caller adds it.
 * @param encoded the encoded form, in memory of its own.
 */
export function decode(
  component: Pick<Component, "scope" | "tensors" | "numBytes" | "encoding">,
  encoded: Uint8Array<ArrayBuffer>,
): Uint8Array<ArrayBuffer> {
  const { scope, tensors, numBytes, encoding } = component;
  const count = tensors.reduce((sum, tensor) => sum + numElements(tensor), 0);
  const view = new DataView(encoded.buffer, encoded.byteOffset, encoded.byteLength);
  switch (encoding) {
    case "ENCODING_UNSPECIFIED":
    case "ENCODING_FLOAT32":
      requireSize(scope, encoded, numBytes);
      return encoded;
    case "ENCODING_FLOAT16":
      requireSize(scope, encoded, 2 * count);
      return laidOut(component, Float32Array.from({ length: count }, (_, i) => fromHalf(view.getUint16(2 * i, true))));
    case "ENCODING_BFLOAT16":
      requireSize(scope, encoded, 2 * count);
      return laidOut(component, Float32Array.from({ length: count }, (_, i) => fromBits(view.getUint16(2 * i, true) << 16)));
    case "ENCODING_INT8":
      return laidOut(component, fromInt8(scope, tensors, view, count));
    case "ENCODING_TOPK":
      return laidOut(component, fromTopk(scope, view, count));
    default:
      throw new UnexpectedError(`${scope}: an encoding that this client doesn't know: ${encoding}`);
  }
}

export function numElements(tensor: TensorSpec): number {
  return tensor.shape.reduce((product, size) => product * size, 1);
}

function requireSize(scope: string, encoded: Uint8Array, expected: number): void {
  if (encoded.length !== expected) {
    throw new UnexpectedError(`${scope}: ${encoded.length} encoded bytes, expected ${expected}`);
  }
}

/** Scales, then signed bytes. Each row, along a tensor's last dimension, has a scale. */
function fromInt8(scope: string, tensors: TensorSpec[], view: DataView, count: number): Float32Array {
  const rowLengths = tensors.flatMap((tensor) => {
    const length = tensor.shape.at(-1) ?? 1;
    return new Array<number>(length && numElements(tensor) / length).fill(length);
  });
  requireSize(scope, new Uint8Array(view.buffer, view.byteOffset, view.byteLength), 4 * rowLengths.length + count);
  const numbers = new Float32Array(count); // each product is rounded to binary32 as it is stored
  let element = 0;
  rowLengths.forEach((length, row) => {
    const scale = view.getFloat32(4 * row, true);
    for (const end = element + length; element < end; element++) {
      numbers[element] = scale * view.getInt8(4 * rowLengths.length + element);
    }
  });
  return numbers;
}

/** Ascending indices, then as many values; all other elements are 0. */
function fromTopk(scope: string, view: DataView, count: number): Float32Array {
  const kept = view.byteLength / 8;
  const numbers = new Float32Array(count);
  let last = -1;
  for (let j = 0; j < kept; j++) {
    const index = view.getUint32(4 * j, true);
    if (!Number.isInteger(kept) || index <= last || index >= count) {
      throw new UnexpectedError(`${scope}: topk: index ${index} after ${last}, of ${count} elements`);
    }
    numbers[index] = view.getFloat32(4 * (kept + j), true);
    last = index;
  }
  return numbers;
}

/** Writes binary32 numbers in the tensors' dtypes to the tensors' places. Padding is 0. */
function laidOut(component: Pick<Component, "tensors" | "numBytes">, numbers: Float32Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(component.numBytes);
  const view = new DataView(bytes.buffer);
  let element = 0;
  for (const tensor of component.tensors) {
    const { size, write } = writerOf(tensor);
    for (let i = 0; i < numElements(tensor); i++) write(view, tensor.offset + size * i, numbers[element++]!);
  }
  return bytes;
}

type Writer = { size: number; write: (view: DataView, offset: number, value: number) => void };

function writerOf(tensor: TensorSpec): Writer {
  switch (tensor.dtype) {
    case "ELEMENT_TYPE_FLOAT32":
      return { size: 4, write: (view, offset, value) => view.setFloat32(offset, value, true) };
    case "ELEMENT_TYPE_FLOAT64":
      return { size: 8, write: (view, offset, value) => view.setFloat64(offset, value, true) };
    case "ELEMENT_TYPE_FLOAT16":
      return { size: 2, write: (view, offset, value) => view.setUint16(offset, toHalf(value), true) };
    case "ELEMENT_TYPE_BFLOAT16":
      return { size: 2, write: (view, offset, value) => view.setUint16(offset, toBfloat(value), true) };
    default:
      throw new UnexpectedError(`${tensor.name}: a dtype that this client doesn't know: ${tensor.dtype}`);
  }
}

function fromBits(bits: number): number {
  NUMBERS.setInt32(0, bits);
  return NUMBERS.getFloat32(0);
}

function bitsOf(value: number): number {
  NUMBERS.setFloat32(0, value);
  return NUMBERS.getUint32(0);
}

function fromHalf(bits: number): number {
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  const magnitude = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** The nearest binary16, ties to even; a number that is too large becomes the largest one. */
function toHalf(value: number): number {
  const bits = bitsOf(value);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = Math.abs(value);
  if (magnitude >= 65504) return sign | 0x7bff;
  const exponent = Math.max(((bits >>> 23) & 0xff) - 127, -14); // denormals have the smallest exponent
  const steps = magnitude * 2 ** (10 - exponent); // exact and below 2048; only the rounding loses digits
  const rounded = steps % 1 === 0.5 ? 2 * Math.round(steps / 2) : Math.round(steps);
  return sign | (((exponent + 14) << 10) + rounded); // 2048 adds one to the exponent
}

/** The nearest bfloat16, ties to even; a number that is too large becomes the largest one. */
function toBfloat(value: number): number {
  const bits = bitsOf(value);
  const magnitude = bits & 0x7fffffff;
  const rounded = (magnitude + 0x7fff + ((magnitude >>> 16) & 1)) >>> 16;
  return ((bits >>> 16) & 0x8000) | Math.min(rounded, 0x7f7f);
}
