/** The contract's calls, with retries while the server is temporarily unavailable. */

import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

import { type ChannelCredentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { chunkAt, MAX_CHUNK_BYTES } from "./chunks.js";
import {
  type ComponentToSend,
  FederatedMtlService,
  type FederatedMtlServiceClient,
  type PushUpdateRequest,
  type Receipt,
  type RoundEvent,
  type StagedUpload,
  type UpdateHeader,
} from "./contract.js";
import { Download, type Slice, type WholeComponent } from "./download.js";
import { DamagedError, UnexpectedError } from "./errors.js";
import { retryDelayMs } from "./retry_info.js";

/** The maximum time for the first connection. */
const CONNECT_MS = 3_000;
/** The maximum time that a server, once reached, may be unavailable. */
const PATIENCE_MS = 300_000;
const FIRST_WAIT_MS = 200;
const MAX_WAIT_MS = 10_000;

/** These settings detect a dead connection within half a minute. */
const CHANNEL_OPTIONS = {
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.initial_reconnect_backoff_ms": 200,
  "grpc.max_reconnect_backoff_ms": 5_000,
};

/** The common methods of grpc-js's calls. */
type Call = { cancel(): void; on(event: string, listener: () => void): unknown };

/** A connection to one server, for one client. */
export class Api {
  private readonly stub: FederatedMtlServiceClient;
  private readonly metadata = new Metadata();
  private readonly calls = new Set<Call>();
  private readonly closed = new AbortController();
  private lastContact = 0;

  /**
   * @param address `HOST:PORT`.
   * @param token the token to send with every call, if there is one.
   * @param log gets a line when the server is unavailable.
   */
  constructor(
    private readonly address: string,
    credentials: ChannelCredentials,
    readonly clientId: string,
    readonly task: string,
    token: string | undefined,
    private readonly log: (line: string) => void,
  ) {
    this.stub = new FederatedMtlService(address, credentials, CHANNEL_OPTIONS);
    if (token !== undefined) this.metadata.set("authorization", `Bearer ${token}`);
  }

  /** Wait for the server, but not for long, because a user is waiting. */
  connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.stub.waitForReady(Date.now() + CONNECT_MS, (error) => {
        if (error) reject(new UnexpectedError(`no server at ${this.address}; is it running, and is that its address?`));
        else resolve();
      });
    });
  }

  /** End every call; code that waits for a call gets an error. */
  close(): void {
    this.closed.abort();
    for (const call of this.calls) call.cancel();
    this.stub.close();
  }

  /** The run's events until it is over, from as many streams as necessary. The open stream marks the client as present. */
  async *watch(): AsyncGenerator<RoundEvent> {
    const request = { clientId: this.clientId, task: this.task };
    let [lostAt, inVain] = [Date.now(), 0];
    for (;;) {
      try {
        for await (const event of this.opened(this.stub.watchRounds(request, this.metadata))) {
          lostAt = 0;
          yield event;
        }
        throw Object.assign(new Error("the server has ended the events"), { code: status.UNAVAILABLE });
      } catch (error) {
        if (lostAt === 0) [lostAt, inVain] = [Date.now(), 0]; // a round can be long: the connection was good until now
        await this.waitAfter(error, inVain++, lostAt);
      }
    }
  }

  /** Get the slice for a round. An interrupted download resumes where it stopped. */
  getSlice(runId: string, round: number): Promise<Slice> {
    const download = new Download();
    const request = { runId, round, clientId: this.clientId, task: this.task };
    return this.patiently(async () => {
      const call = this.opened(this.stub.getSlice({ ...request, held: download.held() }, this.metadata));
      try {
        let isFirst = true;
        for await (const message of call) {
          this.lastContact = Date.now();
          if (isFirst && message.header) download.begin(message.header);
          else download.add(message.chunk);
          isFirst = false;
        }
      } finally {
        call.cancel(); // after an early return; has no effect on a call that is over
      }
      return download.finish();
    });
  }

  /** Send an update. An interrupted upload resumes where it stopped; its `updateId` counts once. */
  pushUpdate(header: UpdateHeader, components: WholeComponent[]): Promise<Receipt> {
    const parts = components.map(({ layout: { scope, tensors, numBytes } }): ComponentToSend => {
      return { scope, tensors, numBytes, encoding: "ENCODING_FLOAT32", encodedBytes: numBytes, startOffset: 0 };
    });
    let mayBeStaged = false;
    return this.patiently(async () => {
      if (mayBeStaged) {
        const staged = (await this.queryUpload(header)).components;
        for (const part of parts) part.startOffset = staged.find(({ scope }) => scope === part.scope)?.numBytes ?? 0;
        mayBeStaged = false; // the server has answered; a refusal of the next call doesn't change that
      }
      return this.upload({ ...header, components: parts }, components, () => (mayBeStaged = true));
    });
  }

  private upload(header: UpdateHeader, components: WholeComponent[], onChunk: () => void): Promise<Receipt> {
    return new Promise((resolve, reject) => {
      const call = this.stub.pushUpdate(this.metadata, (error, receipt) => {
        messages.destroy();
        if (error) reject(error);
        else resolve(receipt!);
      });
      this.opened(call);
      const hasRoom = new Promise<boolean>((answer) => {
        call.on("metadata", () => answer(true));
        call.on("status", () => answer(false)); // refused
      });
      const messages = Readable.from(this.messages(header, components, hasRoom, onChunk));
      // It waits while the transport is full. Its type is for bytes, but the call takes messages.
      messages.pipe(call as unknown as NodeJS.WritableStream);
    });
  }

  /** An update's messages. The chunks follow once the server has answered the header, when it has room for them. */
  private async *messages(
    header: UpdateHeader,
    components: WholeComponent[],
    hasRoom: Promise<boolean>,
    onChunk: () => void,
  ): AsyncGenerator<PushUpdateRequest> {
    yield { header };
    if (components.length > 0 && !(await hasRoom)) return;
    for (const [i, { layout, bytes }] of components.entries()) {
      for (let offset = Number(header.components![i]!.startOffset); offset < bytes.length; offset += MAX_CHUNK_BYTES) {
        onChunk();
        yield { chunk: chunkAt(layout.scope, offset, bytes) };
        this.lastContact = Date.now(); // the transport has room for another message
      }
    }
  }

  private queryUpload({ runId, clientId, updateId }: UpdateHeader): Promise<StagedUpload> {
    return new Promise((resolve, reject) => {
      const answer = (error: ServiceError | null, staged?: StagedUpload) => (error ? reject(error) : resolve(staged!));
      this.opened(this.stub.queryUpload({ runId, clientId, updateId }, this.metadata, answer));
    });
  }

  /** Repeat a call until it succeeds, or fails permanently. */
  private async patiently<T>(attempt: () => Promise<T>): Promise<T> {
    const began = Date.now();
    let inVain = 0;
    for (;;) {
      const lastContact = this.lastContact;
      try {
        return await attempt();
      } catch (error) {
        if (this.lastContact > lastContact) inVain = 0; // the call made progress
        await this.waitAfter(error, inVain++, Math.max(began, this.lastContact));
      }
    }
  }

  /** Wait before the next attempt, or throw the error if the call must not be retried. */
  private async waitAfter(error: unknown, inVain: number, awaySince: number): Promise<void> {
    const asked = hasCode(error, status.RESOURCE_EXHAUSTED) ? retryDelayMs(error) : undefined;
    const mayPass = asked !== undefined || error instanceof DamagedError || hasCode(error, ...COME_BACK);
    if (!mayPass || this.closed.signal.aborted || Date.now() - awaySince > PATIENCE_MS) throw error;
    // A random wait, so that clients don't retry at the same moment.
    const backoff = Math.random() * Math.min(MAX_WAIT_MS, FIRST_WAIT_MS * 2 ** inVain);
    const wait = asked === undefined ? backoff : asked * (1 + Math.random() / 2);
    this.log(`trying again in ${(wait / 1000).toFixed(1)} s: ${messageOf(error)}`);
    await sleep(wait, undefined, { signal: this.closed.signal });
  }

  /** Register a call, so that `close` ends it. */
  private opened<T extends Call>(call: T): T {
    this.calls.add(call);
    call.on("status", () => this.calls.delete(call));
    call.on("error", () => {}); // the stream's reader gets the error; without a listener it would end the process
    return call;
  }
}

const COME_BACK = [status.UNAVAILABLE, status.DATA_LOSS, status.CANCELLED, status.DEADLINE_EXCEEDED];

/** Whether an error is a gRPC status of one of these codes. */
export function hasCode(error: unknown, ...codes: status[]): boolean {
  return codes.includes((error as Partial<ServiceError>).code as status);
}

/** An error's message; for a failed call the server's message. */
export function messageOf(error: unknown): string {
  const { details, message } = error as Partial<ServiceError>;
  return details || message || String(error);
}
