/** The contract for grpc-js: the program reads the proto file at its start; `npm run generate` made the types from it. */

import { fileURLToPath } from "node:url";

import { loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import type { ProtoGrpcType } from "./generated/federation.js";

export type { Chunk__Output as Chunk } from "./generated/fedmtl/v1/Chunk.js";
export type { Component as ComponentToSend, Component__Output as Component } from "./generated/fedmtl/v1/Component.js";
export type { FederatedMtlServiceClient } from "./generated/fedmtl/v1/FederatedMtlService.js";
export type { HeldComponent } from "./generated/fedmtl/v1/HeldComponent.js";
export type { PushUpdateRequest } from "./generated/fedmtl/v1/PushUpdateRequest.js";
export type { PushUpdateResponse__Output as Receipt } from "./generated/fedmtl/v1/PushUpdateResponse.js";
export type { QueryUploadResponse__Output as StagedUpload } from "./generated/fedmtl/v1/QueryUploadResponse.js";
export type { SliceHeader__Output as SliceHeader } from "./generated/fedmtl/v1/SliceHeader.js";
export type { TensorSpec__Output as TensorSpec } from "./generated/fedmtl/v1/TensorSpec.js";
export type { TrainingPlan__Output as TrainingPlan } from "./generated/fedmtl/v1/TrainingPlan.js";
export type { UpdateHeader } from "./generated/fedmtl/v1/UpdateHeader.js";
export type { WatchRoundsResponse__Output as RoundEvent } from "./generated/fedmtl/v1/WatchRoundsResponse.js";

const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));

/** The options of `npm run generate`, which the types depend on. A number holds sizes up to 2^53 exactly. */
const OPTIONS = { longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: [PROTOS] };

const loaded = loadPackageDefinition(loadSync("fedmtl/v1/federation.proto", OPTIONS)) as unknown as ProtoGrpcType;

export const { FederatedMtlService } = loaded.fedmtl.v1;
