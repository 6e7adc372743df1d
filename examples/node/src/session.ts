/** A client's life in a run: watch the rounds; in each round get the slice, work on it, push the update. */

import { randomUUID } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { type Api, hasCode, messageOf } from "./api.js";
import type { RoundEvent, TrainingPlan, UpdateHeader } from "./contract.js";
import type { Slice, WholeComponent } from "./download.js";
import { UnexpectedError } from "./errors.js";
import { Head, headTensors, LEARNING_RATE, NUM_ROWS, NUM_STEPS, type Place, plus, read, write } from "./head.js";
import { float32s, split, Variates, type Vectors } from "./scaffold.js";

/** The state that a client keeps from round to round of one run. It changes only with updates that count. */
type Kept = {
  /** The client's own head if the plan leaves the head to the clients; undefined before the first round. */
  head?: Head;
  variates: Variates;
};

/**
 * Participate until the run is over.
 *
 * @param log gets one line for each event.
 */
export async function takePart(api: Api, log: (line: string) => void): Promise<void> {
  let [runId, kept]: [string, Kept] = ["", { variates: new Variates() }];
  for await (const event of api.watch()) {
    if (event.runId !== runId) [runId, kept] = [event.runId, { variates: new Variates() }];
    const name = `round ${event.round}`;
    switch (event.kind) {
      case "ROUND_EVENT_KIND_WAITING":
        log(`${name}: waiting${event.waitingFor && ` for ${event.waitingFor}`}`);
        break;
      case "ROUND_EVENT_KIND_OPENED":
        // The server can announce the round again, with another deadline or after a restart.
        if (event.inCohort && !event.reported) {
          const done = await work(api, event, kept);
          kept = done.kept;
          log(`${name}: ${done.line}`);
        }
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

/** Do a round's work. If the round closes meanwhile, return the old state; the client waits for the next event. */
async function work(api: Api, event: RoundEvent, kept: Kept): Promise<{ line: string; kept: Kept }> {
  try {
    return await answer(api, await api.getSlice(event.runId, event.round), kept);
  } catch (error) {
    if (hasCode(error, status.ABORTED, status.FAILED_PRECONDITION)) return { line: `missed: ${messageOf(error)}`, kept };
    throw error;
  }
}

/** Do the work that the round asks for on a slice, and send the result. */
async function answer(api: Api, { header, components }: Slice, kept: Kept): Promise<{ line: string; kept: Kept }> {
  const { plan } = header;
  if (!plan) throw new UnexpectedError("expected a slice with a plan");
  const { model, controls } = split(components);
  const { head, place } = findHead(model, api.task, plan, kept);
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
    return { line: `${size}, loss ${received.loss.toFixed(4)} in the final evaluation, ${wordFor(outcome)}`, kept };
  }
  // With SGD the plan's rate fits these steps.
  const rate = plan.optimizer === "LOCAL_OPTIMIZER_SGD" ? plan.learningRate : LEARNING_RATE;
  const rateSum = NUM_STEPS * rate;
  const own = kept.variates.begin(header.controlSince);
  const corrections = own.corrections(model, controls);
  const after = head.trained(rate, corrections && place && correctionOf(corrections, model, place));
  const isDelta = plan.updateKind === "UPDATE_KIND_DELTA" || corrections !== undefined;
  const sent = model.map((component, i) => {
    const changed = isDelta ? unmoved(component, rateSum, corrections) : { ...component, bytes: component.bytes.slice() };
    if (i === place?.component) write(isDelta ? plus(after, head, -1) : after, changed.bytes, place);
    return changed;
  });
  const trained = after.evaluate();
  const { outcome } = await api.pushUpdate(
    {
      ...update,
      kind: isDelta ? "UPDATE_KIND_DELTA" : "UPDATE_KIND_PARAMETERS",
      numExamples: NUM_ROWS,
      numSteps: NUM_STEPS,
      trainedMetrics: trained,
      ...(corrections && { learningRateSum: rateSum, controlRound: own.round }),
    },
    sent,
  );
  return {
    line: `${size}, loss ${received.loss.toFixed(4)} -> ${trained.loss.toFixed(4)}, ${wordFor(outcome)}`,
    kept: {
      head: place ? undefined : after,
      variates: corrections ? own.following(header.round, corrections, sent, rateSum) : kept.variates,
    },
  };
}

/**
 * The head to train, and its position in the slice. If the plan leaves the head to the clients, the slice has no head, and
 * this client's head begins with zeros.
 *
 * @throws UnexpectedError the plan leaves other parameters to the clients.
 */
function findHead(model: WholeComponent[], task: string, plan: TrainingPlan, kept: Kept): { head: Head; place?: Place } {
  const { weight, bias } = headTensors(task);
  const other = plan.local.find((name) => name !== weight && name !== bias);
  if (other !== undefined) {
    throw new UnexpectedError(
      `each client is to keep ${other} for itself, one of ${plan.local.length} local parameters in the plan; ` +
        "this example can keep its head alone",
    );
  }
  return plan.local.length > 0 ? { head: kept.head ?? Head.first(plan) } : Head.in(model, task, plan);
}

/** The head's part of the corrections. */
function correctionOf(corrections: Vectors, model: WholeComponent[], place: Place) {
  const { buffer } = corrections.get(model[place.component]!.layout.scope)!;
  return read(new Uint8Array(buffer as ArrayBuffer), place);
}

/** The delta of a component that the loss doesn't use, here the encoder: 0, except for the corrections. */
function unmoved({ layout, bytes }: WholeComponent, rateSum: number, corrections?: Vectors): WholeComponent {
  const delta = { layout, bytes: new Uint8Array(bytes.length) };
  if (corrections) float32s(delta.bytes).set(corrections.get(layout.scope)!.map((x) => -rateSum * x));
  return delta;
}

function wordFor(outcome: string): string {
  return outcome.replace("OUTCOME_", "").toLowerCase();
}

function numUpdates(event: RoundEvent): number {
  return event.report?.tasks.reduce((sum, task) => sum + task.numUpdates, 0) ?? 0;
}
