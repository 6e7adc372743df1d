/** The contract's calls as this client makes them, patient with a server that is away for a moment. */

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

/** How long the first connection may take. */
const CONNECT_MS = 3_000;
/** How long a server that was reached once may be away. */
const PATIENCE_MS = 300_000;
const FIRST_WAIT_MS = 200;
const MAX_WAIT_MS = 10_000;

/** A connection's death is noticed within half a minute. */
const CHANNEL_OPTIONS = {
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.initial_reconnect_backoff_ms": 200,
  "grpc.max_reconnect_backoff_ms": 5_000,
};

/** What all of grpc-js's calls can do. */
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
   * @param token sent with every call, if there is one.
   * @param log told when the server is away.
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

  /** Wait until there is a server, but not for long: who typed the address looks on. */
  connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.stub.waitForReady(Date.now() + CONNECT_MS, (error) => {
        if (error) reject(new UnexpectedError(`no server at ${this.address}; is it running, and is that its address?`));
        else resolve();
      });
    });
  }

  /** End every call; what waits for one fails. */
  close(): void {
    this.closed.abort();
    for (const call of this.calls) call.cancel();
    this.stub.close();
  }

  /** The run's events for as long as it lasts, over however many connections. The open stream is our presence. */
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
        if (lostAt === 0) [lostAt, inVain] = [Date.now(), 0]; // a round may be long: until now all was well
        await this.waitAfter(error, inVain++, lostAt);
      }
    }
  }

  /** Our slice for a round. A download that breaks goes on where it stopped. */
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
        call.cancel(); // where it is left early; one that is over doesn't mind
      }
      return download.finish();
    });
  }

  /** Send an update. An upload that breaks goes on where it stopped; its one `updateId` counts once. */
  pushUpdate(header: UpdateHeader, components: WholeComponent[]): Promise<Receipt> {
    const parts = components.map(({ layout: { scope, tensors, numBytes } }): ComponentToSend => {
      return { scope, tensors, numBytes, encoding: "ENCODING_FLOAT32", encodedBytes: numBytes, startOffset: 0 };
    });
    let mayBeStaged = false;
    return this.patiently(async () => {
      if (mayBeStaged) {
        const staged = (await this.queryUpload(header)).components;
        for (const part of parts) part.startOffset = staged.find(({ scope }) => scope === part.scope)?.numBytes ?? 0;
        mayBeStaged = false; // the server has said; a refusal of the next call doesn't change it
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
      // It waits while the transport is full. Its type speaks of bytes, the call takes messages.
      messages.pipe(call as unknown as NodeJS.WritableStream);
    });
  }

  /** An update's messages; the chunks only once the server has answered the header, which says that it has room. */
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
        this.lastContact = Date.now(); // there is room for another
      }
    }
  }

  private queryUpload({ runId, clientId, updateId }: UpdateHeader): Promise<StagedUpload> {
    return new Promise((resolve, reject) => {
      const answer = (error: ServiceError | null, staged?: StagedUpload) => (error ? reject(error) : resolve(staged!));
      this.opened(this.stub.queryUpload({ runId, clientId, updateId }, this.metadata, answer));
    });
  }

  /** Try until it works, or fails for a reason that won't pass. */
  private async patiently<T>(attempt: () => Promise<T>): Promise<T> {
    const began = Date.now();
    let inVain = 0;
    for (;;) {
      const lastContact = this.lastContact;
      try {
        return await attempt();
      } catch (error) {
        if (this.lastContact > lastContact) inVain = 0; // it went well for a while
        await this.waitAfter(error, inVain++, Math.max(began, this.lastContact));
      }
    }
  }

  /** Wait before the next attempt, or throw the error if there should be none. */
  private async waitAfter(error: unknown, inVain: number, awaySince: number): Promise<void> {
    const asked = hasCode(error, status.RESOURCE_EXHAUSTED) ? retryDelayMs(error) : undefined;
    const mayPass = asked !== undefined || error instanceof DamagedError || hasCode(error, ...COME_BACK);
    if (!mayPass || this.closed.signal.aborted || Date.now() - awaySince > PATIENCE_MS) throw error;
    // At random, so that not all clients come back at once.
    const backoff = Math.random() * Math.min(MAX_WAIT_MS, FIRST_WAIT_MS * 2 ** inVain);
    const wait = asked === undefined ? backoff : asked * (1 + Math.random() / 2);
    this.log(`trying again in ${(wait / 1000).toFixed(1)} s: ${messageOf(error)}`);
    await sleep(wait, undefined, { signal: this.closed.signal });
  }

  /** Keep a call among those that `close` ends. */
  private opened<T extends Call>(call: T): T {
    this.calls.add(call);
    call.on("status", () => this.calls.delete(call));
    call.on("error", () => {}); // whoever reads the stream gets it; one that nobody listens to would end the process
    return call;
  }
}

const COME_BACK = [status.UNAVAILABLE, status.DATA_LOSS, status.CANCELLED, status.DEADLINE_EXCEEDED];

/** Whether an error is a gRPC status of one of these codes. */
export function hasCode(error: unknown, ...codes: status[]): boolean {
  return codes.includes((error as Partial<ServiceError>).code as status);
}

/** What an error says, for people: of a failed call the server's own words. */
export function messageOf(error: unknown): string {
  const { details, message } = error as Partial<ServiceError>;
  return details || message || String(error);
}
