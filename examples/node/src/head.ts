/** The task's head, a linear layer, and the rows that this example trains it on: outputs = weight · features + bias. */

import type { TensorSpec, TrainingPlan } from "./contract.js";
import type { WholeComponent } from "./download.js";
import { UnexpectedError } from "./errors.js";

export const NUM_ROWS = 8;
export const NUM_STEPS = 5;
export const LEARNING_RATE = 0.25; // small enough that descent on rows of length 1 does not overshoot
/** The number of features of the rows if the slice has no head that determines it. */
const OWN_WIDTH = 16;

/** The metrics of an evaluation, by their names in the update. */
export type Metrics = { loss: number; accuracy?: number };

/** The position of a head in a slice: the index of its component, and its tensors there. */
export type Place = { component: number; weight: TensorSpec; bias: TensorSpec };

/** Numbers for a head's parameters: `(outputs, width)`, row by row, and `(outputs)`. */
export type Numbers = { weight: Float64Array; bias: Float64Array };

/** The names of a head's parameters. */
export function headTensors(task: string): { weight: string; bias: string } {
  return { weight: `heads.${task}.weight`, bias: `heads.${task}.bias` };
}

/**
 * The head, in place of a real model. A client with an encoder runs its texts through the encoder, and the head gets the
 * pooled output. This client has fixed features instead, and sends the encoder back unchanged.
 */
export class Head implements Numbers {
  private readonly rows: Float64Array[];
  private readonly labels: number[];

  private constructor(
    readonly weight: Float64Array,
    readonly bias: Float64Array,
    private readonly isRegression: boolean,
  ) {
    const width = weight.length / bias.length;
    this.rows = Array.from({ length: NUM_ROWS }, (_, row) => features(row, width));
    this.labels = this.rows.map((_, row) => (isRegression ? row / (NUM_ROWS - 1) : row % bias.length));
  }

  /**
   * A head of zeros.
   *
   * @param plan has the task type.
   * @throws UnexpectedError this client doesn't know the task type, and would misread every label.
   */
  static first(plan: TrainingPlan): Head {
    const numOutputs = outputsOf(plan);
    const isRegression = plan.taskType === "TASK_TYPE_REGRESSION";
    return new Head(new Float64Array(numOutputs * OWN_WIDTH), new Float64Array(numOutputs), isRegression);
  }

  /**
   * The head in a slice, and its position. The server decides which component it is in: if tasks have encoder layers of
   * their own, these layers can be in the head's component.
   *
   * @throws UnexpectedError the slice has no head, or the head doesn't fit the plan's task.
   */
  static in(model: WholeComponent[], task: string, plan: TrainingPlan): { head: Head; place: Place } {
    const numOutputs = outputsOf(plan);
    const names = headTensors(task);
    const isOfHead = ({ name }: TensorSpec) => name.startsWith(`heads.${task}.`);
    const component = model.findIndex(({ layout }) => layout.tensors.some(isOfHead));
    const tensors = model[component]?.layout.tensors.filter(isOfHead) ?? [];
    const weight = tensors.find(({ name }) => name === names.weight);
    const bias = tensors.find(({ name }) => name === names.bias);
    const isLinear = weight?.shape.length === 2 && bias?.shape.length === 1 && weight.shape[0] === bias.shape[0];
    const isFloat32 = tensors.every(({ dtype }) => dtype === "ELEMENT_TYPE_FLOAT32");
    if (!isLinear || !isFloat32 || tensors.length !== 2) {
      throw new UnexpectedError(
        `expected a slice with ${names.weight} (outputs, inputs) and ${names.bias} (outputs) in float32`,
      );
    }
    // A client with its own rows compares `plan.taskType` and `plan.labels` with those of its rows here, and stops if they
    // differ. The built-in rows have only label numbers, so the head must have as many outputs as the plan has labels.
    if (bias.shape[0] !== numOutputs) {
      throw new UnexpectedError(
        `the head of ${task} has ${bias.shape[0]} outputs, expected ${numOutputs} as the plan's task has`,
      );
    }
    const place = { component, weight, bias };
    return { head: Head.first(plan).with(read(model[component]!.bytes, place)), place };
  }

  /** The mean loss over the rows, and the accuracy. */
  evaluate(): Metrics {
    const results = this.rows.map((row, i) => this.result(row, this.labels[i]!));
    const loss = mean(results.map((result) => result.loss));
    return this.isRegression ? { loss } : { loss, accuracy: mean(results.map((result) => Number(result.isRight))) };
  }

  /**
   * The head after a few steps of gradient descent over all rows.
   *
   * @param correction the correction to add to the gradients.
   */
  trained(rate: number, correction?: Numbers): Head {
    let after: Head = this;
    for (let step = 0; step < NUM_STEPS; step++) {
      let slopes = after.gradient();
      if (correction) slopes = plus(slopes, correction, 1);
      after = after.with(plus(after, slopes, -rate));
    }
    return after;
  }

  private with({ weight, bias }: Numbers): Head {
    return new Head(weight, bias, this.isRegression);
  }

  /** The derivatives of the mean loss over the rows. */
  private gradient(): Numbers {
    const [weight, bias] = [new Float64Array(this.weight.length), new Float64Array(this.bias.length)];
    this.rows.forEach((row, i) => {
      this.result(row, this.labels[i]!).slopes.forEach((slope, output) => {
        bias[output]! += slope / NUM_ROWS;
        row.forEach((feature, j) => (weight[output * row.length + j]! += (slope * feature) / NUM_ROWS));
      });
    });
    return { weight, bias };
  }

  /** One row's loss (cross entropy, or squared error), and its derivatives by the outputs. */
  private result(row: Float64Array, label: number): { loss: number; isRight: boolean; slopes: number[] } {
    const outputs = Array.from(this.bias, (bias, output) => bias + this.product(row, output));
    if (this.isRegression) {
      const error = outputs[0]! - label;
      return { loss: error ** 2, isRight: error === 0, slopes: [2 * error] };
    }
    const largest = Math.max(...outputs);
    const powers = outputs.map((output) => Math.exp(output - largest));
    const sum = powers.reduce((a, b) => a + b);
    return {
      loss: Math.log(sum) - (outputs[label]! - largest),
      isRight: outputs.indexOf(largest) === label,
      slopes: powers.map((power, output) => power / sum - Number(output === label)),
    };
  }

  private product(row: Float64Array, output: number): number {
    return row.reduce((sum, feature, j) => sum + feature * this.weight[output * row.length + j]!, 0);
  }
}

/** a + scale * b. */
export function plus(a: Numbers, b: Numbers, scale: number): Numbers {
  return {
    weight: a.weight.map((x, i) => x + scale * b.weight[i]!),
    bias: a.bias.map((x, i) => x + scale * b.bias[i]!),
  };
}

/** A head's numbers in its component's bytes. */
export function read(bytes: Uint8Array<ArrayBuffer>, { weight, bias }: Place): Numbers {
  return { weight: Float64Array.from(view(weight, bytes)), bias: Float64Array.from(view(bias, bytes)) };
}

/** Write a head's numbers to its component's bytes. */
export function write(numbers: Numbers, bytes: Uint8Array<ArrayBuffer>, { weight, bias }: Place): void {
  view(weight, bytes).set(numbers.weight);
  view(bias, bytes).set(numbers.bias);
}

/** The number of outputs of the head for a plan's task. */
function outputsOf({ taskType, labels }: TrainingPlan): number {
  const numOutputs = { TASK_TYPE_CLASSIFICATION: labels.length, TASK_TYPE_REGRESSION: 1 }[taskType as string];
  if (!numOutputs) {
    throw new UnexpectedError(
      `the plan's task is of the kind ${taskType} with ${labels.length} labels; ` +
        "this example knows classification and regression alone",
    );
  }
  return numOutputs;
}

/** One row's features: a fixed vector of length 1 that differs from the other rows' vectors. */
function features(row: number, width: number): Float64Array {
  const waves = Float64Array.from({ length: width }, (_, j) => Math.cos((row + 1) * (j + 1)));
  const length = Math.hypot(...waves);
  return waves.map((wave) => wave / length);
}

/** A float32 tensor's numbers, in place. Typed arrays are little-endian on most machines; main.ts checks it. */
function view(tensor: TensorSpec, bytes: Uint8Array<ArrayBuffer>): Float32Array {
  const count = tensor.shape.reduce((product, size) => product * size, 1);
  return new Float32Array(bytes.buffer, bytes.byteOffset + tensor.offset, count);
}

function mean(numbers: number[]): number {
  return numbers.reduce((a, b) => a + b) / numbers.length;
}
