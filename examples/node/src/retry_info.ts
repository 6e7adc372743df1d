/** The delay before a retry that a server asks for: google.rpc.RetryInfo in the status's details. */

import { Metadata, type ServiceError } from "@grpc/grpc-js";
import protobuf from "protobufjs";

const DETAILS_KEY = "grpc-status-details-bin";

/** The parts of google/rpc/status.proto, error_details.proto and their imports that this client reads. */
const { root } = protobuf.parse(`
  syntax = "proto3";
  message Status { repeated Any details = 3; }
  message Any { string type_url = 1; bytes value = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
`);

type Detail = { typeUrl: string; value: Uint8Array };
type RetryInfo = { retryDelay?: { seconds: number; nanos: number } };

/** The wait in milliseconds that a failed call asks for; undefined without one. */
export function retryDelayMs(error: unknown): number | undefined {
  const { metadata } = error as Partial<ServiceError>;
  const value = metadata instanceof Metadata ? metadata.get(DETAILS_KEY)[0] : undefined;
  if (!Buffer.isBuffer(value)) return undefined;
  const { details } = decoded<{ details?: Detail[] }>("Status", value);
  const detail = details?.find(({ typeUrl }) => typeUrl.endsWith("/google.rpc.RetryInfo"));
  const delay = detail && decoded<RetryInfo>("RetryInfo", detail.value).retryDelay;
  return delay && delay.seconds * 1e3 + delay.nanos / 1e6;
}

function decoded<T>(type: string, bytes: Uint8Array): T {
  const message = root.lookupType(type);
  return message.toObject(message.decode(bytes), { longs: Number, defaults: true }) as T;
}
