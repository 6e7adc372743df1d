/** A client's life in a run: watch the rounds, and in each one fetch the slice, work on it, send the update. */

import { randomUUID } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { type Api, hasCode, messageOf } from "./api.js";
import type { RoundEvent, UpdateHeader } from "./contract.js";
import type { Slice } from "./download.js";
import { UnexpectedError } from "./errors.js";
import { Head, NUM_ROWS, NUM_STEPS } from "./head.js";

/**
 * Take part until the run is over.
 *
 * @param log gets one line for each event.
 */
export async function takePart(api: Api, log: (line: string) => void): Promise<void> {
  for await (const event of api.watch()) {
    const name = `round ${event.round}`;
    switch (event.kind) {
      case "ROUND_EVENT_KIND_WAITING":
        log(`${name}: waiting${event.waitingFor && ` for ${event.waitingFor}`}`);
        break;
      case "ROUND_EVENT_KIND_OPENED":
        // It may be announced again, with another deadline or by a server that was started again.
        if (event.inCohort && !event.reported) log(`${name}: ${await work(api, event)}`);
        break;
      case "ROUND_EVENT_KIND_COMMITTED":
        log(`${name}: committed with ${numUpdates(event)} updates`);
        break;
      case "ROUND_EVENT_KIND_FAILED":
        log(`${name}: given up, it lacked a quorum`);
        break;
      case "ROUND_EVENT_KIND_FINISHED":
        log(`finished after ${event.numRounds} rounds`);
        return;
    }
  }
}

/** Do a round's work. One that closes meanwhile is left; the next event says how it goes on. */
async function work(api: Api, event: RoundEvent): Promise<string> {
  try {
    return await answer(api, await api.getSlice(event.runId, event.round));
  } catch (error) {
    if (hasCode(error, status.ABORTED, status.FAILED_PRECONDITION)) return `missed: ${messageOf(error)}`;
    throw error;
  }
}

/** Make of a slice what its round asks for, and send it. */
async function answer(api: Api, { header, components }: Slice): Promise<string> {
  const own = components.find(({ layout }) => layout.scope === `task:${api.task}`);
  if (!own || !header.plan) throw new UnexpectedError(`expected a slice with the head of ${api.task}, and a plan`);
  const head = Head.in(own.layout, own.bytes, header.plan);
  const received = head.evaluate();
  const size = `slice ${(header.totalBytes / 1e6).toFixed(1)} MB`;
  const update: UpdateHeader = {
    runId: header.runId,
    clientId: api.clientId,
    task: api.task,
    baseRound: header.round,
    updateId: randomUUID(),
    kind: "UPDATE_KIND_METRICS",
    receivedMetrics: received,
    numEvalExamples: NUM_ROWS,
  };
  if (header.purpose === "ROUND_PURPOSE_EVALUATE") {
    const { outcome } = await api.pushUpdate(update, []);
    return `${size}, loss ${received.loss.toFixed(4)} in the final evaluation, ${wordFor(outcome)}`;
  }
  head.train();
  const trained = head.evaluate();
  const { outcome } = await api.pushUpdate(
    { ...update, kind: "UPDATE_KIND_PARAMETERS", numExamples: NUM_ROWS, numSteps: NUM_STEPS, trainedMetrics: trained },
    components,
  );
  return `${size}, loss ${received.loss.toFixed(4)} -> ${trained.loss.toFixed(4)}, ${wordFor(outcome)}`;
}

function wordFor(outcome: string): string {
  return outcome.replace("OUTCOME_", "").toLowerCase();
}

function numUpdates(event: RoundEvent): number {
  return event.report?.tasks.reduce((sum, task) => sum + task.numUpdates, 0) ?? 0;
}
